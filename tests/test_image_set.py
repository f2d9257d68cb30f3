"""Identity by content, for every kind of source: what changed is read again, what stayed is not, names never matter."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from messages import raises
from numpy.typing import NDArray
from PIL import Image
from plugins import install_plugin
from xxhash import xxh3_64_intdigest

from layerbank.cache import index as index_module
from layerbank.cache import list_stores
from layerbank.cache.index import INDEX_FOLDER
from layerbank.data import image_set
from layerbank.data.demos import demo_sets
from layerbank.data.demos.demo_sets import Demo, DemoImages
from layerbank.data.image_set import ImageSet, identify
from layerbank.data.image_source import BadImage, row_hash, row_hash_rule1
from layerbank.data.selected_source import SelectedSource
from layerbank.data.sources import SOURCES, ImageSource, open_source
from layerbank.data.splits.split_rows import SplitRows
from layerbank.data.views import ViewRule
from layerbank.errors import WorkError
from layerbank.events import (
    Event,
    HashingFinished,
    HashingProgress,
    HashingStarted,
    ImagesTrusted,
    IndexIgnored,
    IndexNotKept,
)

NUM = 6
LONG_AGO_NS = 10 * 10**9


def pixels_of(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (12, 10, 3), dtype=np.uint8)


def encoded(seed: int, format: str = "bmp") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels_of(seed)).save(buffer, format)
    return buffer.getvalue()


class Data:
    """A split of NUM images; image i has the pixels of seed `seeds[i]`."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        self.seeds = list(range(NUM))
        self.write()

    @property
    def uri(self) -> str:
        address = {"hdf5": "x_{split}.h5"}.get(self.kind, "")
        return f"{self.kind}:{self.folder / address}"

    def open(self) -> ImageSource:
        return open_source(self.uri, "train")

    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*") if path.is_file())

    def write(self) -> None:
        """Write every image; names, sizes and shapes do not depend on the seeds."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.kind in ("folder", "images"):
            for row, seed in enumerate(self.seeds):
                path = self.folder / "train" / f"{row % 2}" / f"{row}.bmp"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encoded(seed))
        elif self.kind == "wds":
            (self.folder / "train").mkdir(exist_ok=True)
            for shard in range(2):
                with tarfile.open(self.folder / "train" / f"{shard}.tar", "w") as tar:
                    for row in range(shard, NUM, 2):
                        _add(tar, f"{row}.jpg", encoded(self.seeds[row]))
                        _add(tar, f"{row}.cls", b"0")
        elif self.kind == "hdf5":
            with h5py.File(self.folder / "x_train.h5", "w") as file:
                stack = np.stack([pixels_of(seed) for seed in self.seeds])
                file.create_dataset("x", data=stack, chunks=(4, *stack.shape[1:]))
                file["y"] = np.zeros(NUM, dtype=np.int64)
        else:
            np.save(self.folder / "train.npy", np.stack([pixels_of(seed) for seed in self.seeds]))

    def expected(self) -> dict[int, int]:
        """Seed -> hash."""
        arrays = self.kind in ("hdf5", "npy", "npyfile")
        return {seed: row_hash(pixels_of(seed) if arrays else encoded(seed)) for seed in self.seeds}


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


PLUGIN = """
import numpy as np
from layerbank.data.sources import DataSource, ImageSource

class Npy(ImageSource):
    def __init__(self, address, split):
        self.path = f"{address}/{split}.npy"
        self.pixels = np.load(self.path)
        ids = [f"{row}" for row in range(len(self.pixels))]
        super().__init__(
            name="npy", split=split, ids=ids, labels=np.zeros(len(ids)), class_names=["a"],
            sizes=np.full(len(ids), self.pixels[0].nbytes),
        )

    def read(self, row):
        return self.pixels[row]

    def file_of(self, row):
        return f"row {row}"

class NpyFile(Npy):
    def files(self):
        return [self.path], np.zeros(len(self), dtype=np.int64)

NPY = DataSource(form="npy:DIR", meaning="arrays", example="npy:x", open=Npy)
NPYFILE = DataSource(form="npyfile:DIR", meaning="arrays", example="npyfile:x", open=NpyFile)
"""

KINDS = ("folder", "images", "wds", "hdf5", "npy", "npyfile")
IN_FILES = tuple(kind for kind in KINDS if kind != "npy")


@pytest.fixture(autouse=True)
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    site = tmp_path / "site"
    site.mkdir()
    install_plugin(site, "[layerbank.sources]\nnpy = npys:NPY\nnpyfile = npys:NPYFILE\n", PLUGIN, name="npys")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.setattr(SOURCES, "_loaded", {})
    SOURCES.__dict__.pop("_plugins", None)
    yield
    SOURCES.__dict__.pop("_plugins", None)


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of the index is ten seconds ahead of the files, so that new files count as settled."""
    real = time.time_ns
    monkeypatch.setattr(image_set.time, "time_ns", lambda: real() + LONG_AGO_NS)


@pytest.fixture(params=KINDS)
def data(request: pytest.FixtureRequest, tmp_path: Path) -> Data:
    return Data(request.param, tmp_path / "data")


@pytest.fixture(params=IN_FILES)
def filed(request: pytest.FixtureRequest, tmp_path: Path, settled: None) -> Data:
    return Data(request.param, tmp_path / "data")


def hashed(source: ImageSource, cache: Path, **options: object) -> tuple[ImageSet, int]:
    """What `identify` finds, and how many images it read."""
    events: list[Event] = []
    found = identify(source, cache, on_event=events.append, **options)  # type: ignore[arg-type]
    return found, sum(event.num_images for event in events if isinstance(event, HashingFinished))


# ---- what a hash is


def test_the_hash_is_that_of_the_encoded_bytes_or_of_dtype_shape_and_bytes(data: Data, tmp_path: Path) -> None:
    source = data.open()
    images = identify(source, tmp_path / "cache")
    expected = data.expected()
    assert sorted(images.hashes.tolist()) == sorted(expected.values())
    assert images.is_known.all()
    for row in range(NUM):
        stored = source.read(row)
        assert images.hashes[row] == row_hash(stored) == source.load(row)[1]
        rule1 = images.hashes if images.rule1_hashes is None else images.rule1_hashes
        assert rule1[row] == row_hash_rule1(stored)
        assert rule1[row] == xxh3_64_intdigest(stored if isinstance(stored, bytes) else stored.tobytes())


def test_two_arrays_of_equal_bytes_and_other_shapes_differ() -> None:
    flat, high = np.arange(16, dtype=np.uint8).reshape(2, 8), np.arange(16, dtype=np.uint8).reshape(8, 2)
    assert row_hash(flat) != row_hash(high)
    assert row_hash(flat) == row_hash(np.asfortranarray(flat))


def test_archives_keep_their_order_and_files_are_read_in_the_order_of_their_hashes(data: Data, tmp_path: Path) -> None:
    images = identify(data.open(), tmp_path / "cache")
    if data.kind in ("wds", "hdf5"):
        assert images.reading_order.tolist() == list(range(NUM))
    else:
        assert images.hashes[images.reading_order].tolist() == sorted(images.hashes.tolist())


# ---- laws


def test_changed_pixels_under_unchanged_names_sizes_shapes_and_mtimes_give_the_new_hash(
    filed: Data, tmp_path: Path
) -> None:
    before, _ = hashed(filed.open(), tmp_path / "cache")
    status = {path: path.stat() for path in filed.files()}
    filed.seeds[3] = 99
    _rewrite_in_place(filed)
    for path, old in status.items():
        os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
        assert (path.stat().st_size, path.stat().st_ino) == (old.st_size, old.st_ino)
    source = filed.open()
    after, _ = hashed(source, tmp_path / "cache")
    assert sorted(after.hashes.tolist()) == sorted(filed.expected().values())
    assert (after.hashes != before.hashes).sum() == 1
    assert after.digest != before.digest


def _rewrite_in_place(data: Data) -> None:
    if data.kind == "hdf5":
        with h5py.File(data.folder / "x_train.h5", "r+") as file:
            file["x"][3] = pixels_of(99)
        return
    data.write()  # opens the same files for writing


def test_nothing_changed_reads_nothing(filed: Data, tmp_path: Path) -> None:
    first, num_read = hashed(filed.open(), tmp_path / "cache")
    assert num_read == NUM
    again, num_read = hashed(filed.open(), tmp_path / "cache")
    assert num_read == 0
    assert again.hashes.tolist() == first.hashes.tolist()
    assert again.digest == first.digest
    assert _rule1(again) == _rule1(first)


def _rule1(images: ImageSet) -> list[int] | None:
    return None if images.rule1_hashes is None else images.rule1_hashes.tolist()


def test_touched_files_are_hashed_again_and_give_the_same(filed: Data, tmp_path: Path) -> None:
    first, _ = hashed(filed.open(), tmp_path / "cache")
    for path in filed.files():
        os.utime(path, (1, 1))
    again, num_read = hashed(filed.open(), tmp_path / "cache")
    assert num_read == NUM
    assert again.digest == first.digest


def test_moved_and_copied_data_keep_their_hashes(data: Data, tmp_path: Path) -> None:
    first, _ = hashed(data.open(), tmp_path / "cache")
    shutil.copytree(data.folder, tmp_path / "copy")
    data.folder.rename(tmp_path / "moved")
    for place in ("copy", "moved"):
        data.folder = tmp_path / place
        assert hashed(data.open(), tmp_path / "cache")[0].digest == first.digest


@pytest.mark.parametrize("kind", ["folder", "images"])
def test_an_added_image_is_one_read_and_a_renamed_one_too(kind: str, tmp_path: Path, settled: None) -> None:
    data = Data(kind, tmp_path / "data")
    first, _ = hashed(data.open(), tmp_path / "cache")
    (data.folder / "train/0/00.bmp").write_bytes(encoded(50))
    added, num_read = hashed(data.open(), tmp_path / "cache")
    assert num_read == 1
    assert set(added.hashes.tolist()) - set(first.hashes.tolist()) == {row_hash(encoded(50))}
    (data.folder / "train/1/1.bmp").rename(data.folder / "train/0/9.bmp")
    renamed, num_read = hashed(data.open(), tmp_path / "cache")
    assert num_read == 1
    assert sorted(renamed.hashes.tolist()) == sorted(added.hashes.tolist())


def test_a_tar_that_changed_is_read_as_a_whole_and_the_other_not_at_all(tmp_path: Path, settled: None) -> None:
    data = Data("wds", tmp_path / "data")
    hashed(data.open(), tmp_path / "cache")
    os.utime(data.folder / "train/1.tar", (1, 1))
    assert hashed(data.open(), tmp_path / "cache")[1] == NUM // 2


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_images_of_a_tar_that_is_gone_or_cut_cannot_be_read(damage: str, tmp_path: Path, settled: None) -> None:
    data = Data("wds", tmp_path / "data")
    source = data.open()
    shard = data.folder / "train/1.tar"
    if damage == "gone":
        shard.unlink()
    else:
        os.truncate(shard, int(source._offsets[4]) + 10)  # type: ignore[attr-defined]
    images, _ = hashed(source, tmp_path / "cache")
    readable = 3 if damage == "gone" else 4
    assert [hash != 0 for hash in images.hashes.tolist()] == [True] * readable + [False] * (NUM - readable)
    assert images.is_known.all()


def test_relabelled_images_keep_their_hashes(tmp_path: Path, settled: None) -> None:
    data = Data("folder", tmp_path / "data")
    first, _ = hashed(data.open(), tmp_path / "cache")
    (data.folder / "train/0").rename(data.folder / "train/zebra")
    again, _ = hashed(data.open(), tmp_path / "cache")
    assert sorted(again.hashes.tolist()) == sorted(first.hashes.tolist())
    assert again.digest != first.digest  # another order of rows


def test_two_splits_have_their_indexes_side_by_side(tmp_path: Path, settled: None) -> None:
    data = Data("folder", tmp_path / "data")
    shutil.copytree(data.folder / "train", data.folder / "test")
    for num_expected in (NUM, 0):
        for split in ("train", "test"):
            assert hashed(open_source(data.uri, split), tmp_path / "cache")[1] == num_expected


def test_two_datasets_of_one_hdf5_file_are_not_mistaken_for_each_other(tmp_path: Path, settled: None) -> None:
    with h5py.File(tmp_path / "all.h5", "w") as file:
        for number, split in enumerate(("train", "test")):
            file[f"{split}/x"] = np.stack([pixels_of(10 * number + row) for row in range(NUM)])
            file[f"{split}/y"] = np.zeros(NUM, dtype=np.int64)
    uri = f"hdf5:{tmp_path}/all.h5?images={{split}}/x&labels={{split}}/y"
    for _ in range(2):
        digests = {identify(open_source(uri, split), tmp_path / "cache").digest for split in ("train", "test")}
        assert len(digests) == 2


def test_an_hdf5_file_replaced_while_its_source_is_open_is_read_anew(tmp_path: Path, settled: None) -> None:
    data = Data("hdf5", tmp_path / "data")
    source = data.open()
    source.load(0)  # keeps the old file open
    other = Data("hdf5", tmp_path / "other")
    other.seeds[0] = 77
    other.write()
    (other.folder / "x_train.h5").replace(data.folder / "x_train.h5")
    assert identify(source, tmp_path / "cache").hashes[0] == row_hash(pixels_of(77))


def test_a_damaged_chunk_of_an_hdf5_file_leaves_the_other_rows_their_hashes(tmp_path: Path, settled: None) -> None:
    path = tmp_path / "x_train.h5"
    stack = np.stack([pixels_of(row) for row in range(NUM)])
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=stack, chunks=(2, 12, 10, 3), fletcher32=True)
        file["y"] = np.zeros(NUM, dtype=np.int64)
        offset = file["x"].id.get_chunk_info(1).byte_offset
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\0" * 20)
    images, _ = hashed(open_source(f"hdf5:{tmp_path}/x_{{split}}.h5", "train"), tmp_path / "cache")
    assert np.flatnonzero(images.hashes == 0).tolist() == [2, 3]
    assert images.hashes[4] == row_hash(pixels_of(4))
    assert hashed(open_source(f"hdf5:{tmp_path}/x_{{split}}.h5", "train"), tmp_path / "cache")[1] == NUM


def test_a_chunk_of_a_compressed_dataset_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Data("hdf5", tmp_path / "data")
    source = data.open()
    slices: list[object] = []
    real = h5py.Dataset.__getitem__
    monkeypatch.setattr(
        h5py.Dataset, "__getitem__", lambda self, key, *rest: slices.append(key) or real(self, key, *rest)
    )
    identify(source, tmp_path / "cache")
    assert slices == [slice(0, NUM)]


# ---- demo sets


@pytest.mark.parametrize("in_files", [True, False])
def test_images_of_a_demo_set_are_hashed_as_they_are_stored(
    in_files: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settled: None
) -> None:
    paths = [tmp_path / f"{number}.bmp" for number in range(NUM)]
    pixels = np.stack([pixels_of(number) for number in range(NUM)])

    def read() -> DemoImages:
        return DemoImages(np.arange(NUM), paths if in_files else pixels, np.zeros(NUM, dtype=np.int64))

    demo = Demo("tiny", "tinies", "tiny", ["a"], read, {"train": 4, "test": 2})
    monkeypatch.setitem(demo_sets.DEMOS, "tiny", demo)
    for number, path in enumerate(paths):
        path.write_bytes(encoded(number))
    source = open_source("demo:tiny", "train")
    numbers = [int(id.removeprefix("tiny/")) for id in source.ids]
    before, _ = hashed(source, tmp_path / "cache")
    assert before.hashes.tolist() == [row_hash(encoded(n) if in_files else pixels[n]) for n in numbers]
    assert hashed(source, tmp_path / "cache")[1] == (0 if in_files else 4)
    pixels[numbers[1]] = pixels_of(99)
    paths[numbers[1]].write_bytes(encoded(99))
    after, _ = hashed(open_source("demo:tiny", "train"), tmp_path / "cache")
    assert np.flatnonzero(after.hashes != before.hashes).tolist() == [1]


# ---- planning and trust


def test_a_plan_reads_no_image(filed: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = filed.open()
    images, num_read = hashed(source, tmp_path / "cache", may_hash=False)
    assert (num_read, images.is_known.any(), images.hashes.any()) == (0, False, False)
    assert not (tmp_path / "cache").exists()
    full, _ = hashed(source, tmp_path / "cache")
    planned, _ = hashed(source, tmp_path / "cache", may_hash=False)
    assert planned.is_known.all()
    assert planned.digest == full.digest


def test_trusted_images_are_not_read_and_not_kept_in_the_index(filed: Data, tmp_path: Path) -> None:
    if not filed.open().is_encoded:
        pytest.skip("only images kept as encoded files are trusted")

    def trusted(ids: object, sizes: NDArray[np.int64]) -> NDArray[np.uint64]:
        hashes = np.arange(1, len(sizes) + 1, dtype=np.uint64)
        hashes[2:] = 0
        return hashes

    events: list[Event] = []
    images = identify(filed.open(), tmp_path / "cache", trusted=trusted, on_event=events.append)
    assert [event.num_images for event in events if isinstance(event, ImagesTrusted)] == [2]
    assert [event.num_images for event in events if isinstance(event, HashingFinished)] == [NUM - 2]
    assert images.hashes[:2].tolist() == [1, 2]
    assert images.is_known.all()
    honest, num_read = hashed(filed.open(), tmp_path / "cache")
    assert num_read >= 2
    assert sorted(honest.hashes.tolist()) == sorted(filed.expected().values())


def test_an_archive_that_changes_while_it_is_read_is_recorded_as_of_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "data/train"
    place.mkdir(parents=True)
    with tarfile.open(place / "0.tar", "w") as tar:
        _add(tar, "a.jpg", encoded(1))
        _add(tar, "a.cls", b"0")
    source = open_source(f"wds:{tmp_path / 'data'}", "train")
    read_each, began, written = source.read_each, [], []

    def read_slowly(rows: NDArray[np.int64]) -> Iterator[object]:
        began.append(time.time_ns())
        time.sleep(0.01)
        return read_each(rows)

    source.read_each = read_slowly  # type: ignore[method-assign, assignment]
    monkeypatch.setattr(image_set, "write_index", lambda paths, index, scope: written.append(index))
    identify(source, tmp_path / "cache")
    assert written[0].records["recorded_ns"][0] <= began[0]


# ---- bad input


def test_an_unreadable_image_has_the_hash_0_and_an_undecodable_one_that_of_its_bytes(
    tmp_path: Path, settled: None
) -> None:
    data = Data("folder", tmp_path / "data")
    (data.folder / "train/0/0.bmp").unlink()
    (data.folder / "train/0/0.bmp").symlink_to(tmp_path / "nothing")
    (data.folder / "train/0/2.bmp").write_bytes(b"no image")
    source = data.open()
    images, _ = hashed(source, tmp_path / "cache")
    assert images.hashes[:2].tolist() == [0, row_hash(b"no image")]
    assert images.is_known.all()
    for row in range(2):
        with raises("data.bad_image", BadImage) as refused:
            source.load(row)
        error = refused.error
        assert isinstance(error, BadImage)
        assert error.content_hash == images.hashes[row]
        assert pickle.loads(pickle.dumps(error)).content_hash == error.content_hash
    assert hashed(data.open(), tmp_path / "cache")[1] == 1  # it may have become readable


@pytest.mark.parametrize("kind", IN_FILES)
def test_a_file_that_changes_while_it_is_hashed_is_hashed_again(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settled: None
) -> None:
    data = Data(kind, tmp_path / "data")
    source = data.open()
    changes = iter([41, 42])
    real = source.hashes_of

    def change_then_hash(stored: bytes | NDArray[np.uint8]) -> tuple[int, int]:
        if (seed := next(changes, None)) is not None:
            data.seeds[0] = seed
            _replace(data)
        return real(stored)

    if source.has_whole_files:
        _change_between_reads(monkeypatch, data, changes)
    else:
        monkeypatch.setattr(source, "hashes_of", change_then_hash)
    images = identify(source, tmp_path / "cache")
    if kind != "npyfile":  # which keeps its pixels in memory
        assert sorted(images.hashes.tolist()) == sorted(data.expected().values())
    assert hashed(data.open(), tmp_path / "cache")[1] == 0


def _replace(data: Data) -> None:
    """Put a new file in the place of each, as programs do that write safely."""
    other = Data(data.kind, data.folder.with_name("new"))
    other.seeds = data.seeds
    other.write()
    for path in other.files():
        path.replace(data.folder / path.relative_to(other.folder))


def _change_between_reads(monkeypatch: pytest.MonkeyPatch, data: Data, changes: Iterator[int]) -> None:
    """Write to a file between the two looks at its status."""
    real = os.read

    def read_then_change(fd: int, size: int) -> bytes:
        content = real(fd, size)
        if (seed := next(changes, None)) is not None:
            data.seeds[0] = seed
            data.write()
        return content

    monkeypatch.setattr(index_module.os, "read", read_then_change)


@pytest.mark.parametrize("kind", ["folder", "wds"])
def test_a_file_that_never_stops_changing_is_named(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Data(kind, tmp_path / "data")
    source = data.open()
    target = str(source.files()[0][0])
    counter = iter(range(100))
    if kind == "folder":
        real = os.read

        def read(fd: int, size: int) -> bytes:
            os.utime(target, (next(counter), 0))
            return real(fd, size)

        monkeypatch.setattr(index_module.os, "read", read)
    else:
        hashes_of = source.hashes_of
        monkeypatch.setattr(
            source, "hashes_of", lambda stored: os.utime(target, (next(counter), 0)) or hashes_of(stored)
        )
    with raises("data.changing_file", WorkError, file=target, tries=3):
        identify(source, tmp_path / "cache")


def test_what_was_hashed_before_an_interruption_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settled: None
) -> None:
    data = Data("folder", tmp_path / "data")
    monkeypatch.setattr(image_set, "ROWS_AT_A_TIME", 1)
    reads = iter(range(4))
    real = image_set.read_whole
    monkeypatch.setattr(image_set, "read_whole", lambda path: (next(reads), real(path))[1])
    with pytest.raises(StopIteration):
        identify(data.open(), tmp_path / "cache")
    monkeypatch.setattr(image_set, "read_whole", real)
    assert hashed(data.open(), tmp_path / "cache")[1] == NUM - 4


# ---- the index


def index_file(cache: Path) -> Path:
    (found,) = (cache / INDEX_FOLDER).iterdir()
    return found


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "it is damaged"),
        (lambda data: data[: len(data) // 2], "it is damaged"),
        (lambda data: data.replace(b"index 1 ", b"index 2 ", 1), "another version of layerbank wrote it (format 2)"),
        (lambda data: b"\x89PNG" + data, "it is no content index"),
        (lambda data: b"", "it is no content index"),
    ],
    ids=["flipped", "cut", "newer", "foreign", "empty"],
)
def test_an_index_that_cannot_be_used_is_named_and_made_again(
    damage: Callable[[bytes], bytes], reason: str, tmp_path: Path, settled: None
) -> None:
    data, cache = Data("hdf5", tmp_path / "data"), tmp_path / "cache"
    first, _ = hashed(data.open(), cache)
    path = index_file(cache)
    path.write_bytes(damage(path.read_bytes()))
    events: list[Event] = []
    again = identify(data.open(), cache, on_event=events.append)
    assert [(event.path, event.reason) for event in events if isinstance(event, IndexIgnored)] == [(path, reason)]
    assert again.digest == first.digest
    assert hashed(data.open(), cache)[1] == 0


def test_an_index_of_other_data_is_ignored(tmp_path: Path, settled: None) -> None:
    caches = [tmp_path / name for name in ("one", "two")]
    for cache in caches:
        hashed(Data("folder", cache / "data").open(), cache)
    shutil.copy(index_file(caches[0]), index_file(caches[1]))
    events: list[Event] = []
    identify(open_source(f"folder:{caches[1]}/data", "train"), caches[1], on_event=events.append)
    assert [event.reason for event in events if isinstance(event, IndexIgnored)] == ["it belongs to other data"]


def test_a_missing_index_is_made_again(tmp_path: Path, settled: None) -> None:
    data, cache = Data("folder", tmp_path / "data"), tmp_path / "cache"
    hashed(data.open(), cache)
    shutil.rmtree(cache)
    assert hashed(data.open(), cache)[1] == NUM
    assert hashed(data.open(), cache)[1] == 0
    assert list_stores(cache) == []  # the folder of the index is no store


def test_the_index_of_a_cache_that_cannot_be_written_lies_in_the_users_folder(tmp_path: Path, settled: None) -> None:
    data, cache = Data("folder", tmp_path / "data"), tmp_path / "cache"
    cache.write_text("a file: no folder can be made in it")
    assert [hashed(data.open(), cache)[1] for _ in range(2)] == [NUM, 0]
    assert len(list((tmp_path / "user/layerbank/index").iterdir())) == 1


def test_without_any_place_for_an_index_images_are_hashed_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settled: None
) -> None:
    data, cache = Data("folder", tmp_path / "data"), tmp_path / "cache"
    cache.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    assert [hashed(data.open(), cache)[1] for _ in range(2)] == [NUM, NUM]
    events: list[Event] = []
    identify(data.open(), cache, on_event=events.append)
    assert len([event for event in events if isinstance(event, IndexNotKept)]) == 1


@pytest.mark.parametrize("ahead_s", [-3600, 0, 1])
def test_a_file_recorded_within_two_seconds_of_its_change_or_before_it_is_hashed_again(
    ahead_s: int, filed: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the clock of `settled`
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    now = max(path.stat().st_ctime_ns for path in filed.files())
    monkeypatch.setattr(image_set.time, "time_ns", lambda: now + ahead_s * 10**9)
    assert [hashed(filed.open(), tmp_path / "cache")[1] for _ in range(2)] == [NUM, NUM]
    monkeypatch.setattr(image_set.time, "time_ns", lambda: now + 3 * 10**9)
    assert [hashed(filed.open(), tmp_path / "cache")[1] for _ in range(2)] == [NUM, 0]


# ---- events and views


PROGRAM = """
import sys
from pathlib import Path
from layerbank.data.image_set import identify
from layerbank.data.sources import open_source
from layerbank.events import IndexIgnored

ignored = []
for _ in range(50):
    identify(open_source(sys.argv[1], "train"), Path(sys.argv[2]), on_event=ignored.append)
sys.exit(any(isinstance(event, IndexIgnored) for event in ignored))
"""


def test_processes_that_write_one_index_at_once_leave_a_sound_one(tmp_path: Path, settled: None) -> None:
    data, cache = Data("folder", tmp_path / "data"), tmp_path / "cache"
    for path in data.files():  # in the future, so that each run hashes them and writes the index
        os.utime(path, (time.time() + 1000, time.time() + 1000))
    processes = [subprocess.Popen([sys.executable, "-c", PROGRAM, data.uri, str(cache)]) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    events: list[Event] = []
    identify(data.open(), cache, on_event=events.append)
    assert [type(event) for event in events] == [HashingStarted, HashingFinished]
    index_file(cache)  # one, and no staging file


def test_progress_counts_images_and_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settled: None) -> None:
    monkeypatch.setattr(image_set, "PROGRESS_EVERY_S", 0.0)
    data = Data("folder", tmp_path / "data")
    source = data.open()
    events: list[Event] = []
    identify(source, tmp_path / "cache", on_event=events.append)
    started, *progress, finished = events
    size_bytes = int(source.sizes.sum())
    assert started == HashingStarted(dataset="data", split="train", num_images=NUM, num_rows=NUM, size_bytes=size_bytes)
    assert all(isinstance(event, HashingProgress) for event in progress)
    assert [event.num_done for event in progress if isinstance(event, HashingProgress)] == list(range(1, NUM + 1))
    assert isinstance(finished, HashingFinished)
    assert (finished.num_images, finished.size_bytes) == (NUM, size_bytes)


def viewed(data: Data, cache_root: Path) -> SelectedSource:
    """Three rows an image, in the order of the images."""
    source = data.open()
    rows = SplitRows(source=source, images=identify(source, cache_root), rule=ViewRule(num_views=2))
    return SelectedSource(rows, np.arange(len(rows)), [id for id in source.ids for _ in range(3)])


def test_views_of_an_image_share_its_hash_and_do_not_depend_on_its_name(tmp_path: Path, settled: None) -> None:
    data = Data("folder", tmp_path / "data")
    rows = viewed(data, tmp_path / "cache")
    hashes = identify(data.open(), tmp_path / "cache").hashes
    assert [rows.load(row)[1] for row in range(3 * NUM)] == hashes.repeat(3).tolist()
    before = [rows.load(row)[0].info for row in range(3)]
    assert len({str(info) for info in before}) == 3
    (data.folder / "train/0/0.bmp").rename(data.folder / "train/0/00.bmp")
    renamed = viewed(data, tmp_path / "cache")
    assert [renamed.load(row)[0].info for row in range(3)] == before
