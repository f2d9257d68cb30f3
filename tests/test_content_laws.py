"""What is computed depends on the content of images alone: never on labels, names, places or order, for every kind of source."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import run
from extractions import rows_of
from messages import raises
from photos import TINY_MODEL
from PIL import Image
from token_stores import make_rows, make_spec, tree, without_fsync, write_store

import layerbank
import layerbank.extraction.repair
from layerbank import open_images, open_model
from layerbank.api.data import images_from
from layerbank.cache import (
    CacheWriter,
    ChangedDataError,
    Damage,
    DamagedStoreError,
    ModelStores,
    RowSet,
    StoreFiles,
    StoreLockedError,
    Target,
    TokenStore,
    WantedRows,
    ids_of,
    known_hashes,
    list_targets,
    merge_stores,
    store_gap,
    verify_store,
    write_target,
)
from layerbank.cache.gaps import gap_of
from layerbank.cache.index import INDEX_FOLDER
from layerbank.cache.targets import is_target_file
from layerbank.cache.writing.locking import StoreLock
from layerbank.data import decoding
from layerbank.data.image_set import identify
from layerbank.data.image_source import ImageSource
from layerbank.data.pixels import PixelRule
from layerbank.data.sources import BadImage, open_source
from layerbank.data.splits.split_rows import SplitRows
from layerbank.event_text import text_of
from layerbank.events import Event, ImageSkipped, ImagesTrusted, RowsFound, StoresIgnored, ignore
from layerbank.extraction.extract import ExtractConfig, Extraction, extract_together, forecasts
from layerbank.extraction.repair import repair_and_fill
from layerbank.jobs.extract import open_rows
from layerbank.models.backbone import Backbone, open_backbone
from layerbank.models.request import ModelRequest
from layerbank.probing.tokens.split_tokens import request_tokens

__all__ = ["without_fsync"]

ARRAYS = (("block.1", "cls"), ("final", "ap"))
Pixels = dict[str, int]
"""Name of an image -> the number that its pixels follow from."""

IMAGES: Pixels = {f"{number % 3}/{number:03}": number for number in range(24)}


def pixels_of(number: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)


def encoded(number: int, format: str = "BMP") -> bytes:
    """A file without compression: all have the same size."""
    buffer = io.BytesIO()
    Image.fromarray(pixels_of(number)).save(buffer, format, compress_level=0)
    return buffer.getvalue()


def write_folder(place: Path, images: Pixels) -> str:
    for name, number in images.items():
        file = place / "train" / f"{name}.bmp"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(number))
    return f"folder:{place}"


def write_hdf5(place: Path, images: Pixels) -> str:
    place.mkdir(parents=True, exist_ok=True)
    with h5py.File(place / "train.h5", "w") as file:
        file["x"] = np.stack([pixels_of(number) for number in images.values()])
        file["y"] = np.array([int(name.split("/")[0]) for name in images])
    return f"hdf5:{place}/{{split}}.h5"


def write_wds(place: Path, images: Pixels) -> str:
    (place / "train").mkdir(parents=True, exist_ok=True)
    with tarfile.open(place / "train" / "0.tar", "w") as tar:
        for name, number in images.items():
            label, key = name.split("/")
            for member, content in ((f"{key}.png", encoded(number, "PNG")), (f"{key}.cls", label.encode())):
                info = tarfile.TarInfo(member)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return f"wds:{place}"


def write_npz(place: Path, images: Pixels) -> str:
    place.mkdir(parents=True, exist_ok=True)
    labels = [int(name.split("/")[0]) for name in images]
    np.savez(place / "train.npz", images=np.stack([pixels_of(number) for number in images.values()]), labels=labels)
    return f"npz:{place}/{{split}}.npz"


def write_csv(place: Path, images: Pixels) -> str:
    write_folder(place, images)
    lines = [f"train/{name}.bmp,{name.split('/')[0]}" for name in images]
    (place / "train.csv").write_text("\n".join(["image,label", *lines]))
    return f"csv:{place}/{{split}}.csv"


def arrow_table(images: Pixels) -> pa.Table:
    """Encoded images and labels, as Hugging Face keeps them."""
    cells = [{"bytes": encoded(number), "path": name} for name, number in images.items()]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    return pa.table({"image": pa.array(cells, kind), "label": [name.split("/")[0] for name in images]})


def write_parquet(place: Path, images: Pixels) -> str:
    place.mkdir(parents=True, exist_ok=True)
    pq.write_table(arrow_table(images), place / "train.parquet", row_group_size=10, compression="NONE")
    return f"parquet:{place}/{{split}}.parquet"


def write_hf(place: Path, images: Pixels) -> str:
    """The files that `datasets.DatasetDict.save_to_disk` writes."""
    (place / "train").mkdir(parents=True, exist_ok=True)
    table = arrow_table(images)
    with pa.OSFile(str(place / "train" / "0.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table, max_chunksize=10)
    (place / "train" / "state.json").write_text(json.dumps({"_data_files": [{"filename": "0.arrow"}]}))
    return f"hf:{place}"


Writer = Callable[[Path, Pixels], str]
WRITERS = (write_folder, write_csv, write_hdf5, write_npz, write_wds, write_parquet, write_hf)
KINDS = pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__.removeprefix("write_"))


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return open_backbone(TINY_MODEL, weights="random", image_size=32)


class Passes:
    """Extracts with one backbone, and counts the images that go through it."""

    def __init__(self, backbone: Backbone, root: Path) -> None:
        self.backbone, self.root = backbone, root
        self.events: list[Event] = []

    def __call__(self, data: str | ImageSource, **changes: Any) -> int:
        """Extract; the number of images that went through the model."""
        counted: list[int] = []
        hook = self.backbone.tower.blocks[0].register_forward_hook(lambda _, inputs, __: counted.append(len(inputs[0])))
        trusted = changes.pop("trusted", None)
        source = open_source(data, "train") if isinstance(data, str) else data
        images = identify(source, self.root, trusted=trusted, on_event=self.events.append)
        try:
            extract_together(
                [self.extraction(**changes)], SplitRows(source=source, images=images), on_event=self.events.append
            )
        finally:
            hook.remove()
        return sum(counted)

    def extraction(self, **changes: Any) -> Extraction:
        config: dict[str, Any] = {"arrays": ARRAYS, "batch_size": 4, "num_workers": 0}
        return Extraction(backbone=self.backbone, config=ExtractConfig(**config | changes), cache_root=self.root)

    def tokens(self, data: str | ImageSource, arrays: Any = ARRAYS) -> dict[str, bytes]:
        """Id -> the tokens of every array, as a probe reads them."""
        source = open_source(data, "train") if isinstance(data, str) else data
        request = request_tokens(
            self.root, self.extraction().model, self.backbone.tap, rows_of(source, self.root), arrays
        )
        split = request.open()
        values = [split.tokens(*array) for array in arrays]
        return {
            id: b"".join(one.take(np.array([position])).tobytes() for one in values)
            for id, position in zip(split.sample_ids, split.positions.tolist(), strict=True)
        }

    def stores(self) -> list[StoreFiles]:
        return ModelStores(self.root, self.extraction().model).stores

    def found(self) -> RowsFound:
        return [event for event in self.events if isinstance(event, RowsFound)][-1]


@pytest.fixture
def extract(backbone: Backbone, tmp_path: Path) -> Passes:
    return Passes(backbone, tmp_path / "caches")


def renamed_classes(images: Pixels) -> Pixels:
    return {f"{(int(name[0]) + 1) % 3}/{name[2:]}": number for name, number in images.items()}


def reordered(images: Pixels) -> Pixels:
    """The same pixels under other names, in another order."""
    numbers = [*images.values()][::-1]
    return {f"{number % 2}/x{place:03}": number for place, number in enumerate(numbers)}


@KINDS
@pytest.mark.parametrize("change", [renamed_classes, reordered, lambda images: dict(list(images.items())[5:17])])
def test_relabelled_renamed_reordered_or_split_again_is_no_forward_pass(
    write: Writer, change: Callable[[Pixels], Pixels], extract: Passes, tmp_path: Path
) -> None:
    first = write(tmp_path / "first", IMAGES)
    assert extract(first) == 24
    of_number = dict(zip(IMAGES.values(), ordered(extract.tokens(first), first), strict=True))
    images = change(IMAGES)
    second = write(tmp_path / "second", images)
    assert extract(second) == 0
    assert (extract.found().num_found, extract.found().num_missing) == (len(images), 0)
    if write is not write_folder:
        assert ordered(extract.tokens(second), second) == [of_number[number] for number in images.values()]


def ordered(tokens: dict[str, bytes], data: str) -> list[bytes]:
    return [tokens[id] for id in open_source(data, "train").ids]


@KINDS
def test_moved_or_copied_is_no_forward_pass(write: Writer, extract: Passes, tmp_path: Path) -> None:
    assert extract(write(tmp_path / "first", IMAGES)) == 24
    shutil.copytree(tmp_path / "first", tmp_path / "copy", copy_function=shutil.copyfile)
    shutil.move(tmp_path / "first", tmp_path / "moved")
    for place in ("copy", "moved"):
        data = write(tmp_path / "elsewhere", IMAGES).replace("elsewhere", place)
        assert extract(data) == 0
    assert len(extract.stores()) == 1


@KINDS
def test_added_images_are_all_that_is_computed_and_removed_ones_cost_nothing(
    write: Writer, extract: Passes, tmp_path: Path
) -> None:
    assert extract(write(tmp_path / "first", IMAGES)) == 24
    more = {"0/000": 100} | {name: number for name, number in IMAGES.items() if number} | {"2/zz": 0, "1/yy": 101}
    data = write(tmp_path / "more", more)
    assert extract(data) == 2
    assert (extract.found().num_found, extract.found().num_missing) == (24, 2)
    assert extract(data) == 0
    assert extract(write(tmp_path / "fewer", {name: more[name] for name in list(more)[3:]})) == 0
    assert sorted(len(files.rows) for files in extract.stores()) == [2, 24]
    assert all(verify_store(files.path) == [] for files in extract.stores())


@KINDS
def test_an_image_that_is_there_twice_is_computed_once(write: Writer, extract: Passes, tmp_path: Path) -> None:
    data = write(tmp_path / "twice", {"0/a": 1, "1/b": 1, "1/c": 2, "2/d": 1})
    assert extract(data) == 2
    assert (extract.found().num_rows, extract.found().num_missing) == (4, 4)
    tokens = ordered(extract.tokens(data), data)
    assert tokens[0] != tokens[2] if write is not write_folder else True
    assert len(set(tokens)) == 2


@KINDS
def test_other_pixels_under_the_same_name_size_and_mtime_are_computed_and_answered_with_the_new_tokens(
    write: Writer, extract: Passes, backbone: Backbone, tmp_path: Path
) -> None:
    data = write(tmp_path / "data", IMAGES)
    assert extract(data) == 24
    before = extract.tokens(data)
    files = {file: file.stat() for file in (tmp_path / "data").rglob("*") if file.is_file()}
    write(tmp_path / "data", IMAGES | {"0/003": 77})
    for file, status in files.items():
        assert file.stat().st_size == status.st_size
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert extract(data) == 1
    after = extract.tokens(data)
    assert len([id for id in after if after[id] != before[id]]) == 1
    fresh = Passes(backbone, tmp_path / "anew")
    fresh(data)
    assert set(fresh.tokens(data)) == set(after)
    for id, tokens in fresh.tokens(data).items():
        np.testing.assert_allclose(
            np.frombuffer(after[id], np.float16), np.frombuffer(tokens, np.float16), atol=4e-3, rtol=1e-2
        )


@KINDS
def test_other_images_under_equal_names_and_labels_in_another_folder_are_others(
    write: Writer, extract: Passes, tmp_path: Path
) -> None:
    first = write(tmp_path / "one" / "data", IMAGES)
    second = write(tmp_path / "two" / "data", {name: number + 1000 for name, number in IMAGES.items()})
    assert (extract(first), extract(second)) == (24, 24)
    one, two = extract.tokens(first), extract.tokens(second)
    assert one.keys() == two.keys()
    assert all(one[id] != two[id] for id in one)


@pytest.mark.parametrize("write", [write_folder, write_wds], ids=["folder", "wds"])
def test_wrong_trust_in_files_is_named_before_a_row_is_written(write: Writer, extract: Passes, tmp_path: Path) -> None:
    data = write(tmp_path / "data", IMAGES)
    extract(data)
    write(tmp_path / "data", IMAGES | {"0/003": 77})
    shutil.rmtree(extract.root / INDEX_FOLDER)
    trusted = lambda ids, sizes: known_hashes(extract.root, "data-train", ids, sizes)  # noqa: E731
    assert extract(data, trusted=trusted) == 0
    (told,) = [event for event in extract.events if isinstance(event, ImagesTrusted)]
    assert told.num_images == 24
    (store,) = extract.stores()
    before = tree(store.path)
    with raises("cache.changed_image", ChangedDataError):
        extract(data, trusted=trusted, arrays=(*ARRAYS, ("final", "cls")))
    assert (
        tree(store.path).items()
        >= {k: v for k, v in before.items() if k.startswith("tokens/norm2/block.1/cls/c")}.items()
    )
    assert extract(data, arrays=(*ARRAYS, ("final", "cls"))) == 24


def test_images_that_stores_disagree_about_are_hashed(tmp_path: Path) -> None:
    """Two versions of a data set with files of equal names and sizes, and an archive with two files of one name."""

    def write(images: list[int], name: str, ids: list[str]) -> None:
        rows = make_rows(images)
        spec = make_spec(rows=rows, name=name)
        write_store(spec.path(tmp_path), spec, rows=rows, sample_ids=ids, sizes=np.full(len(ids), 7))

    write([0, 1, 2], "data-train", ["a", "b", "c"])
    write([3, 1], "data-train", ["a", "b"])
    expected = [0, int(make_rows([1]).hashes[0]), int(make_rows([2]).hashes[0]), 0]
    assert known_hashes(tmp_path, "data-train", list("abcd"), np.full(4, 7)).tolist() == expected
    assert known_hashes(tmp_path, "data-train", list("cbc"), np.full(3, 7)).tolist() == [0, expected[1], 0]
    write([5, 6], "twice", ["a", "a"])
    assert known_hashes(tmp_path, "twice", ["a"], np.full(1, 7)).tolist() == [0]


def others(images: Pixels) -> Pixels:
    return {name: number + 1000 for name, number in images.items()}


@KINDS
def test_trust_in_files_never_takes_another_data_set_for_this_one(
    write: Writer, extract: Passes, tmp_path: Path
) -> None:
    extract(write(tmp_path / "first", IMAGES))
    second = write(tmp_path / "second", others(IMAGES))  # equal ids and sizes
    source = open_source(second, "train")
    trusted = open_rows(source, extract.root, trust_files=True)
    np.testing.assert_array_equal(trusted.images.hashes, identify(source, tmp_path / "elsewhere").hashes)


def test_images_without_encoded_bytes_have_no_sizes_and_are_not_trusted(extract: Passes, tmp_path: Path) -> None:
    first, second = (images_from([pixels_of(n) for n in range(start, start + 8)]) for start in (0, 100))
    demo = open_source("demo:digits?train=8", "train")
    hdf5 = open_source(write_hdf5(tmp_path / "data", IMAGES), "train")
    for source in (first, demo, hdf5):
        extract(source)
    assert [files.sizes for files in extract.stores()] == [None, None, None]
    for source in (first, second, demo, hdf5):
        trusted = open_rows(source, extract.root, trust_files=True)
        np.testing.assert_array_equal(trusted.images.hashes, identify(source, tmp_path / "elsewhere").hashes)


def test_a_merge_of_several_data_sets_is_not_trusted(extract: Passes, tmp_path: Path) -> None:
    extract(write_folder(tmp_path / "first", IMAGES))
    extract(write_folder(tmp_path / "second", others(IMAGES)))
    merge_stores([files.path for files in extract.stores()], name="first-train", delete=True)
    (store,) = extract.stores()
    assert (len(store.rows), store.sizes) == (48, None)


# ---- stores that share rows


def test_a_level_added_for_data_that_share_rows_leaves_rows_of_absent_images_alone(
    extract: Passes, tmp_path: Path
) -> None:
    first = write_folder(tmp_path / "first", IMAGES)
    second = write_folder(tmp_path / "second", {f"0/{n}": n for n in range(12, 30)})
    assert (extract(first), extract(second)) == (24, 6)
    (large,) = [files for files in extract.stores() if len(files.rows) == 24]
    before, tokens = tree(large.path), extract.tokens(first)
    more = (*ARRAYS, ("block.2", "cls"))
    assert extract(second, arrays=more) == 18
    assert tree(large.path) == before
    assert len(extract.tokens(second, more)) == 18
    assert extract.tokens(first) == tokens
    assert extract(first, arrays=more) == 24
    assert len(extract.tokens(first, more)) == 24


class Torn(ImageSource):
    """A source whose images cannot be decoded any more from some row on, in reading order."""

    def __init__(self, data: str, num_good: int) -> None:
        self._source = open_source(data, "train")
        self.__dict__.update(self._source.__dict__)
        self.keeps_order, self.has_whole_files = self._source.keeps_order, self._source.has_whole_files
        self.is_encoded = self._source.is_encoded
        self.num_good = num_good

    def files(self) -> Any:
        return self._source.files()

    def read(self, row: int) -> Any:
        return self._source.read(row)

    def file_of(self, row: int) -> str:
        return self._source.file_of(row)

    def load(self, row: int) -> Any:
        self.num_good -= 1
        if self.num_good < 0:
            raise BadImage(id=self.ids[row], file="x", reason="unplugged")
        return self._source.load(row)


MANY: Pixels = {f"{number % 3}/{number:03}": number for number in range(700)}


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """700 small images: three row blocks."""
    place = tmp_path_factory.mktemp("many") / "data"
    write_folder(place, MANY)
    return place


@pytest.fixture(scope="module")
def whole(many: Path, backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    extract = Passes(backbone, tmp_path_factory.mktemp("whole"))
    assert extract(f"folder:{many}", arrays=ARRAYS[:1], batch_size=32) == 700
    (store,) = extract.stores()
    return tree(store.path)


def test_an_interrupted_run_with_more_images_goes_on_with_the_store_and_computes_the_rest_into_a_new_one(
    many: Path, whole: dict[str, bytes], extract: Passes, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"arrays": ARRAYS[:1], "batch_size": 32}
    other = write_folder(tmp_path / "other", {f"0/{n}": n for n in range(2000, 2005)})
    assert extract(other, **options) == 5  # another store of the model
    with pytest.raises(BadImage):
        extract(Torn(f"folder:{many}", 450), **options)
    (begun,) = [files for files in extract.stores() if len(files.rows) == 700]
    committed = int(np.repeat(begun.committed(list(begun.arrays.values())), begun.header.block_rows)[:700].sum())
    assert 0 < committed <= 450
    more = shutil.copytree(many, tmp_path / "more")
    write_folder(more, {"2/new": 900, "2/newer": 901})
    assert extract(f"folder:{more}", **options) == 702 - committed
    assert without_targets(tree(begun.path)) == without_targets(whole)
    assert sorted(len(files.rows) for files in extract.stores()) == [2, 5, 700]


def test_a_source_that_changes_while_it_is_extracted_stops_by_name_and_the_next_run_computes_the_rest(
    many: Path, extract: Passes, tmp_path: Path
) -> None:
    data = f"folder:{shutil.copytree(many, tmp_path / 'changing')}"
    options: dict[str, Any] = {"arrays": ARRAYS[:1], "batch_size": 32}
    source = open_source(data, "train")
    last = int(rows_of(source, extract.root).reading_order[600])
    Path(source.file_of(last)).write_bytes(encoded(5000))
    images = identify(open_source(f"folder:{many}", "train"), extract.root)  # as they were when they were hashed
    with raises("cache.changed_image", ChangedDataError):
        extract_together([extract.extraction(**options)], SplitRows(source=source, images=images))
    (files,) = extract.stores()
    committed = int(np.repeat(files.committed(list(files.arrays.values())), files.header.block_rows)[:700].sum())
    assert 0 < committed <= 600
    assert extract(data, **options) == 700 - committed
    assert len(extract.tokens(data, ARRAYS[:1])) == 700


@pytest.mark.parametrize(("num_good", "num_workers"), [(0, 0), (1, 0), (300, 0), (300, 1), (699, 0)])
def test_stopped_anywhere_and_started_again_with_another_level_in_between_gives_the_bytes_of_one_run(
    many: Path, backbone: Backbone, tmp_path: Path, num_good: int, num_workers: int
) -> None:
    extract = Passes(backbone, tmp_path / "caches")
    data, options = f"folder:{many}", {"batch_size": 32, "num_workers": num_workers}
    with pytest.raises(BadImage):
        extract(Torn(data, num_good), arrays=ARRAYS[:1], **{**options, "num_workers": 0})
    with pytest.raises(BadImage):
        extract(Torn(data, num_good), arrays=ARRAYS, **{**options, "num_workers": 0})
    extract(data, arrays=ARRAYS[1:], **options)
    extract(data, arrays=ARRAYS, **options)
    once = Passes(backbone, tmp_path / "once")
    assert once(data, arrays=ARRAYS, **options) == 700
    (one,), (other,) = extract.stores(), once.stores()
    assert one.path.relative_to(extract.root) == other.path.relative_to(once.root)
    assert without_targets(tree(one.path)) == without_targets(tree(other.path))
    assert extract(data, arrays=ARRAYS, **options) == 0


def test_a_writer_that_was_killed_before_its_last_step_leaves_nothing_to_compute_and_the_same_bytes(
    many: Path, whole: dict[str, bytes], extract: Passes, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"arrays": ARRAYS[:1], "batch_size": 32}

    def die(writer: Any) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("layerbank.cache.CacheWriter.complete", die)
        extract(f"folder:{many}", **options)
    (store,) = extract.stores()
    assert not store.header.complete_arrays
    assert extract(f"folder:{many}", **options) == 0
    assert without_targets(tree(store.path)) == without_targets(whole)


def without_targets(files: dict[str, bytes]) -> dict[str, bytes]:
    """Labels lie beside a store; they say where they come from."""
    return {name: content for name, content in files.items() if not is_target_file(name)}


def test_rows_that_were_lost_and_whose_images_are_absent_do_not_stop_others(
    many: Path, extract: Passes, tmp_path: Path
) -> None:
    """A store that was begun lost a file; what is at hand of its rows is computed, into another store."""
    options: dict[str, Any] = {"arrays": ARRAYS[:1], "batch_size": 32}
    with pytest.raises(BadImage):
        extract(Torn(f"folder:{many}", 650), **options)
    (begun,) = extract.stores()
    rows = begun.rows.hashes
    next(begun.path.glob("tokens/*/*/*/c*")).unlink()  # rows 0 to block_rows
    of_hash = {
        int(one): row
        for row, one in enumerate(rows_of(open_source(f"folder:{many}", "train"), extract.root).images.hashes)
    }
    files = [open_source(f"folder:{many}", "train").file_of(of_hash[int(one)]) for one in rows]
    few = tmp_path / "few" / "train" / "0"
    few.mkdir(parents=True)
    for number, file in enumerate(files[10:]):  # without ten images of the lost row block
        shutil.copyfile(file, few / f"{number:03}.bmp")
    block_rows = begun.header.block_rows
    assert extract(f"folder:{tmp_path / 'few'}", **options) >= block_rows - 10
    assert len(extract.tokens(f"folder:{tmp_path / 'few'}", ARRAYS[:1])) == 690


# ---- overwrite, read-only caches


def test_overwrite_deletes_the_stores_of_these_rows_alone_and_keeps_rows_beside_others(
    extract: Passes, tmp_path: Path
) -> None:
    first = write_folder(tmp_path / "first", IMAGES)
    part = write_folder(tmp_path / "part", {f"0/{n}": n for n in range(8)})
    mixed = write_folder(tmp_path / "mixed", {f"0/{n}": n for n in (*range(20, 24), *range(50, 52))})
    extract(part)
    extract(mixed)
    assert extract(first) == 12
    kept = next(files for files in extract.stores() if len(files.rows) == 6)
    before = tree(kept.path)
    assert extract(first, overwrite=True) == 20  # 8 and 12; 4 lie beside images that were not asked for
    assert tree(kept.path) == before
    assert sorted(len(files.rows) for files in extract.stores()) == [6, 20]
    assert extract(part) == 0
    assert len(extract.tokens(first)) == 24


def test_overwrite_makes_a_store_anew_whose_header_is_damaged(extract: Passes, tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data", IMAGES)
    extract(data)
    (store,) = extract.stores()
    before = tree(store.path)
    header = store.path / "zarr.json"
    header.write_bytes(header.read_bytes().replace(b"BMP", b"bmp")[:-9])
    rows = rows_of(open_source(data, "train"), extract.root)
    one = extract.extraction(overwrite=True)
    (planned,) = forecasts(one, rows, one.find_gaps(rows).gaps)
    assert (planned.num_missing_rows, planned.present_bytes) == (24, 0)
    assert planned.freed_bytes > planned.size_bytes // 2
    assert extract(data, overwrite=True) == 24
    assert tree(store.path) == before


def test_a_plan_of_overwrite_says_what_is_computed_again(extract: Passes, tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data", IMAGES)
    extract(data)
    rows = rows_of(open_source(data, "train"), extract.root)
    one = extract.extraction(overwrite=True)
    (planned,) = forecasts(one, rows, one.find_gaps(rows).gaps)
    assert (planned.num_missing_rows, planned.written_bytes) == (24, planned.size_bytes)
    assert planned.freed_bytes > 0


def test_overwrite_refuses_a_store_that_is_being_written_and_deletes_nothing(extract: Passes, tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data", IMAGES)
    extract(data)
    (store,) = extract.stores()
    before = tree(store.path)
    lock = StoreLock(store.path)
    lock.acquire()
    try:
        with raises("cache.store_locked", StoreLockedError):
            extract(data, overwrite=True)
    finally:
        lock.release()
    assert tree(store.path) == before


def test_overwrite_takes_a_store_whose_hashes_are_of_rule_1(extract: Passes, tmp_path: Path) -> None:
    """An upgraded store of images that are no files: its hashes are others than those of rule 2."""
    source = open_source(write_hdf5(tmp_path / "data", IMAGES), "train")
    extract(source)
    (store,) = extract.stores()
    rows = rows_of(source, extract.root)
    assert rows.images.rule1_hashes is not None
    old = RowSet(hashes=rows.images.rule1_hashes, hash_rule=1)
    assert rows.wanted.are_in(old).all()
    assert not WantedRows(rows=rows.wanted.rows).are_in(old).any()
    assert rows.wanted.are_in(store.rows).all()


def test_labels_lie_beside_a_store_also_if_its_first_writer_was_killed(extract: Passes, tmp_path: Path) -> None:
    from layerbank.cache import read_target

    data = write_folder(tmp_path / "data", IMAGES)
    with pytest.raises(BadImage):
        extract(Torn(data, 10))
    assert extract(data) == 24
    (store,) = extract.stores()
    source = open_source(data, "train")
    of_id = dict(zip(source.ids, source.labels.tolist(), strict=True))
    assert read_target(store.path, "label", num_rows=24).values.tolist() == [of_id[id] for id in store.sample_ids]


def test_an_image_that_cannot_be_read_at_all_is_named_and_has_no_row(extract: Passes, tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data", IMAGES)
    source = open_source(data, "train")
    (tmp_path / "data/train/1/001.bmp").unlink()
    with raises("data.bad_image", BadImage, id="train/1/001.bmp"):
        extract(source)
    assert extract(source, on_bad_image="skip") == 23
    assert [event.sample_id for event in extract.events if isinstance(event, ImageSkipped)] == ["train/1/001.bmp"]
    assert (extract.found().num_found, extract.found().num_missing, extract.found().num_unreadable) == (0, 23, 1)


# ---- images that could not be decoded, labels, stores that cannot be read


def refuse_to_decode(monkeypatch: pytest.MonkeyPatch, *numbers: int) -> None:
    refused, decode = {encoded(number) for number in numbers}, decoding.decode_rgb

    def decode_others(stored: Any, rule: PixelRule) -> tuple[Image.Image, str]:
        if bytes(stored) in refused:
            raise ValueError("a kind of file that the installed decoder does not know")
        return decode(stored, rule)

    monkeypatch.setattr(decoding, "decode_rgb", decode_others)


def test_an_image_that_could_not_be_decoded_is_counted_and_tried_again_under_stop(
    extract: Passes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_folder(tmp_path / "data", IMAGES)
    with monkeypatch.context() as patch:
        refuse_to_decode(patch, 7)
        extract(data, on_bad_image="skip")
        assert extract(data, on_bad_image="skip") == 0
        assert (extract.found().num_found, extract.found().num_skipped, extract.found().num_missing) == (24, 1, 0)
        assert "24 in the cache (1 unreadable when they were extracted)" in text_of(extract.found())
        with raises("data.bad_image", BadImage, id="train/1/007.bmp"):
            extract(data)
    assert extract(data, on_bad_image="skip") == 0
    assert extract(data) == 1
    assert sorted(len(files.rows) for files in extract.stores()) == [1, 24]
    assert extract(data) == 0
    assert (extract.found().num_found, extract.found().num_skipped) == (24, 0)
    assert len(extract.tokens(data)) == 24


def test_the_place_of_a_store_whose_rows_were_all_skipped_is_taken(
    extract: Passes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_folder(tmp_path / "data", {"0/7": 7, "1/8": 8})
    with monkeypatch.context() as patch:
        refuse_to_decode(patch, 7, 8)
        extract(data, on_bad_image="skip")
    assert extract(data) == 2
    assert len(extract.stores()) == 2
    assert extract(data) == 0
    assert len(extract.tokens(data)) == 2


def test_labels_are_beside_a_store_before_it_is_complete(
    extract: Passes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_folder(tmp_path / "data", IMAGES)

    def die(_: CacheWriter) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(CacheWriter, "complete", die)
        extract(data)
    (store,) = extract.stores()
    assert list_targets(store.path) == ["label"]
    shutil.rmtree(store.path / "content_hashes/.targets")
    assert extract(data) == 0
    assert list_targets(store.path) == ["label"]


def test_a_store_that_cannot_be_read_is_named(extract: Passes, tmp_path: Path) -> None:
    images = open_images(write_folder(tmp_path / "data", IMAGES))
    model = open_model(TINY_MODEL, weights="random", image_size=32, device="cpu")
    options: dict[str, Any] = {"levels": "last", "cache": extract.root}
    layerbank.extract(model, images, progress=False, **options)
    (store,) = extract.stores()
    flip(store.path / "content_hashes/c.0", 5)
    assert [*ModelStores(extract.root, extract.extraction().model).unreadable] == [store.path]
    events: list[Event] = []
    layerbank.extract(model, images, progress=events.append, **options)
    (told,) = [event for event in events if isinstance(event, StoresIgnored)]
    assert [*told.reasons] == [store.path]
    assert str(store.path) in text_of(told)


def test_a_store_records_the_uri_that_was_opened(extract: Passes, tmp_path: Path) -> None:
    model = open_model(TINY_MODEL, weights="random", image_size=32, device="cpu")
    uri = write_hdf5(tmp_path / "data", IMAGES)
    in_memory = images_from([pixels_of(n) for n in range(100, 108)], name="mine")
    recorded = []
    for images in (open_images(uri), in_memory):
        tokens = layerbank.extract(model, images, levels="last", cache=extract.root, progress=False)
        recorded.append(TokenStore.open(tokens.stores[0]).attributes["request"]["data"])
    assert recorded == [uri, "python:mine"]
    assert open_source(uri, "train").ids == open_images(uri).ids


def flip(file: Path, place: int) -> None:
    raw = bytearray(file.read_bytes())
    raw[place] ^= 1
    file.write_bytes(raw)


# ---- repair


@pytest.fixture
def recorded(tmp_path: Path) -> tuple[Path, Path]:
    """A store that says what it was made from, and its images."""
    place = tmp_path / "data"
    data = write_folder(place, IMAGES)
    request = ModelRequest(model=TINY_MODEL, weights="random", image_size=32)
    config = ExtractConfig(arrays=ARRAYS, batch_size=4, num_workers=0)
    about = {"model": request.to_dict(), "data": data, "split": "train"}
    one = Extraction(backbone=request.open("cpu"), config=config, cache_root=tmp_path / "caches", request=about)
    extract_together([one], rows_of(open_source(data, "train"), tmp_path / "caches"), on_event=ignore)
    (store,) = (tmp_path / "caches").rglob("*.zarr")
    return store, place


def damage(store: Path) -> None:
    chunk = next(iter(sorted(store.glob("tokens/final/ap/c*"))))
    chunk.write_bytes(bytes(chunk.stat().st_size))


def test_repair_finds_images_that_have_other_names_now(recorded: tuple[Path, Path]) -> None:
    store, place = recorded
    before = tree(store)
    damage(store)
    for number, file in enumerate(sorted(place.rglob("*.bmp"))):
        target = place / "train" / str(number % 2) / f"moved{number:02}.bmp"
        target.parent.mkdir(exist_ok=True)
        file.rename(target)
    repair_and_fill(store, num_workers=0)
    assert tree(store) == before


def test_repair_names_images_that_are_gone_and_drops_nothing(recorded: tuple[Path, Path]) -> None:
    store, place = recorded
    (place / "train/0/003.bmp").unlink()
    repair_and_fill(store, num_workers=0)  # nothing is damaged
    damage(store)
    before = tree(store)
    with raises("extraction.images_gone", store=store, count="1", id="train/0/003.bmp"):
        repair_and_fill(store, num_workers=0)
    assert tree(store) == before


def test_repair_restores_the_hashes_of_rows_from_the_images(recorded: tuple[Path, Path]) -> None:
    store, _ = recorded
    before = tree(store)
    chunk = next(store.glob("content_hashes/c*"))
    chunk.write_bytes(bytes(chunk.stat().st_size))
    repair_and_fill(store, num_workers=0)
    assert tree(store) == before


def test_repair_drops_damaged_targets_and_writes_the_labels_again(recorded: tuple[Path, Path]) -> None:
    store, _ = recorded
    before = tree(store)
    write_target(store, "age", Target(values=np.arange(24.0), type="regression"), num_rows=24)
    for chunk in store.glob("targets/*/c.0"):
        flip(chunk, 3)
    repaired = repair_and_fill(store, num_workers=0)
    assert repaired.dropped_targets == ("age", "label")
    assert (repaired.restored_later, repaired.still_damaged, repaired.num_rows) == ((), (), 0)
    assert tree(store) == before
    (store / "targets/zarr.json").write_bytes(b"{}")
    repair_and_fill(store, num_workers=0)
    assert tree(store) == before


def test_what_is_still_damaged_after_a_repair_is_named_and_ends_with_1(
    recorded: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = recorded
    left = Damage(file="tokens/final/ap/c.0.0", problem="altered")
    monkeypatch.setattr(layerbank.extraction.repair, "verify_store", lambda _: [left])
    result = run("cache", "repair", store)
    assert result.exit_code == 1
    assert f"still damaged: {left}" in result.output


def test_damaged_ids_are_never_written_again(recorded: tuple[Path, Path]) -> None:
    store, place = recorded
    flip(store / "sample_ids/bytes/c.0", 3)
    (place / "train/0/003.bmp").unlink()
    source = open_source(f"folder:{place}", "train")
    rows = rows_of(source, store.parent.parent)
    files = StoreFiles.read(store)
    ids = ids_of(store_gap(files, rows.wanted), rows.ids)
    (gone,) = np.flatnonzero(store_gap(files, rows.wanted).wanted < 0).tolist()
    assert ids[gone] == f"row {gone}"
    assert {*ids} == {*rows.ids, f"row {gone}"}
    with raises("cache.store_damaged", DamagedStoreError, store=store):
        merge_stores([store], name="other")
    repair_and_fill(store, num_workers=0)
    assert verify_store(store) == []
    assert list(StoreFiles.read(store).sample_ids) == ids


def test_a_store_of_which_nothing_is_wanted_is_no_gap(recorded: tuple[Path, Path]) -> None:
    files = StoreFiles.read(recorded[0])
    nothing = WantedRows(rows=RowSet(hashes=np.zeros(0, np.uint64)))
    assert (store_gap(files, nothing).wanted == -1).all()
    assert gap_of(files, nothing, [("", "final", "patch")])[0] is None
