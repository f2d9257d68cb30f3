"""Stores of format 1 are listed, verified and read, and never written."""

from __future__ import annotations

import shutil
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import h5py  # type: ignore[import-untyped]
import numpy as np
import pytest
from messages import raises
from token_stores import (
    make_arrays,
    make_model,
    make_rows,
    make_spec,
    tree,
    without_fsync,  # noqa: F401
    write_images,
    write_store,
)

from layerbank.cache import (
    DamagedStoreError,
    ModelStores,
    OldFormatError,
    RowSet,
    TokenStore,
    TokenView,
    WantedRows,
    array_key,
    export_hdf5,
    find_garbage,
    find_unfinished,
    import_hdf5,
    list_stores,
    repair_store,
    verify_store,
)
from layerbank.cache.reader import StoreFiles

GOLDEN = Path(__file__).parent / "golden/format1.zip"
CLS = ("final", "cls")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("format1")
    with zipfile.ZipFile(GOLDEN) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture
def root(unpacked: Path, tmp_path: Path) -> Path:
    """A cache folder with stores of format 1 of the synthetic model."""
    shutil.copytree(unpacked / "synthetic", tmp_path / "caches")
    return tmp_path / "caches"


def old_tokens(name: str, rows: np.ndarray, width: int) -> np.ndarray:
    columns = np.arange(width)
    return ((rows[:, None] * 31 + columns * 7 + zlib.crc32(name.encode())) % 2048 - 1024).astype(np.float16)


def old_hashes(rows: np.ndarray) -> np.ndarray:
    return rows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def test_stores_of_both_formats_lie_in_one_folder_and_a_hidden_one_is_left_out(unpacked: Path, tmp_path: Path) -> None:
    shutil.copytree(unpacked, tmp_path / "a")
    new = write_images(tmp_path / "a", np.arange(20))
    (tmp_path / "a/.index/b/c.zarr").mkdir(parents=True)
    infos = list_stores(tmp_path / "a")
    assert [info.path for info in infos] == sorted(info.path for info in infos)
    assert {(info.state, info.problem) for info in infos} == {("complete", None), ("writing", None)}
    formats = {info.path: info.header.format for info in infos if info.header}
    assert (len(formats), sorted(set(formats.values())), formats[new]) == (10, [1, 2], 2)
    assert find_garbage(tmp_path / "a") == []
    assert {one.has_hashes for one in find_unfinished(tmp_path / "a")} == {False}
    unfinished = {info.path.name: info for info in infos if info.state == "writing"}
    assert unfinished["timm-vit_tiny-9215b1f9.zarr"].missing_rows == [range(240, 1200)]


def test_every_golden_store_is_sound_and_reading_changes_nothing(unpacked: Path) -> None:
    before = tree(unpacked)
    for info in list_stores(unpacked):
        assert verify_store(info.path) == []
        assert len(StoreFiles.read(info.path).rows) == info.spec.num_rows if info.spec else False
        assert not info.complete_arrays or TokenStore.open(info.path).num_rows
    assert tree(unpacked) == before


def test_rows_of_format_1_are_found_beside_those_of_format_2(root: Path) -> None:
    files = next(
        f for f in map(StoreFiles.read, root.glob("*/*/*.zarr")) if f.path.name == "timm-vit_tiny-9215b1f9.zarr"
    )
    model = files.header.spec.model
    assert model == make_model(transform=model.transform)
    (key,) = [key for key in files.arrays if key[1:] == CLS]
    images = np.arange(1, 240)  # image 0 has the hash 0 there
    rows = RowSet(hashes=old_hashes(images))
    found = ModelStores(root, model).find(WantedRows(rows=rows), [key])
    assert (found.store >= 0).all()
    write_images(root, np.arange(5000, 5100), transform=model.transform)
    both = WantedRows(rows=RowSet(hashes=np.concatenate([rows.hashes, make_rows(np.arange(5000, 5050)).hashes])))
    view = TokenView.open(root, model, both, [CLS])
    assert len(view.stores) == 2
    usable = np.flatnonzero(view.positions[:239] >= 0)
    assert [row for row in range(239) if row not in usable] == [row - 1 for row in (99, 199)]
    got = view[CLS].take(view.positions[usable])
    np.testing.assert_array_equal(got, old_tokens("tokens/final/cls", images[usable], got.shape[1]))


def test_views_of_format_1_are_view_numbers(unpacked: Path) -> None:
    (store,) = [
        files
        for files in map(StoreFiles.read, unpacked.glob("caches/photos/train/*.zarr"))
        if files.rows.views is not None
    ]
    views = store.rows.views
    assert views is not None
    assert views.tolist() == [row % 3 for row in range(len(views))]
    assert store.rows.view_rule.startswith("views 2 rule 1: ")
    assert "views" not in store.header.spec.model.transform


def test_a_store_of_format_1_is_not_written(root: Path, tmp_path: Path) -> None:
    for store in sorted(root.glob("*/*/*.zarr")):
        before = tree(store)
        with raises("cache.old_format", OldFormatError, store=store, expected=2, got=1):
            repair_store(store)
        with raises("cache.old_format", OldFormatError, store=store):
            write_store(store)
        if StoreFiles.read(store).header.complete_arrays:
            with raises("cache.old_format", OldFormatError, store=store):
                export_hdf5(store, tmp_path / "a.h5")
        assert tree(store) == before


def test_an_export_of_format_1_is_not_imported(root: Path, tmp_path: Path) -> None:
    store = next(iter(sorted(root.glob("*/*/*.zarr"))))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.attrs["layerbank_header"] = (store / "zarr.json").read_text()
    with raises("cache.old_hdf5", OldFormatError, file=tmp_path / "a.h5", expected=2, got=1):
        import_hdf5(tmp_path / "a.h5", tmp_path / "b.zarr")
    assert not (tmp_path / "b.zarr").exists()


def test_damaged_hashes_of_format_1_are_noticed(root: Path) -> None:
    store = next(path for path in sorted(root.glob("*/*/*.zarr")) if StoreFiles.read(path).header.complete_arrays)
    raw = bytearray((store / "content_hashes/c.0").read_bytes())
    raw[20] ^= 1
    (store / "content_hashes/c.0").write_bytes(raw)
    with raises("cache.store_damaged", DamagedStoreError, store=store):
        _ = StoreFiles.read(store).rows
    assert "content_hashes/c.0" in [damage.file for damage in verify_store(store)]
    model = StoreFiles.read(store).header.spec.model
    assert store not in [files.path for files in ModelStores(root, model).stores]


def test_a_golden_header_with_one_altered_byte_is_damaged(root: Path) -> None:
    store = next(iter(sorted(root.glob("*/*/*.zarr"))))
    header = store / "zarr.json"
    raw = header.read_bytes()
    for altered in (raw.replace(b"\n", b" ", 1), raw.replace(b'"final"', b'"Final"', 1), raw + b"\n"):
        header.write_bytes(altered)
        with raises("cache.header_damaged", DamagedStoreError):
            TokenStore.open(store)


def test_an_array_is_asked_for_by_its_tap_in_both_formats() -> None:
    assert array_key("norm2", "final", "cls") == array_key("block", "final", "cls") == ("", "final", "cls")
    assert array_key("block", "block.0", "cls") == ("block", "block.0", "cls")
    assert replace(make_spec(), name="x").difference(make_spec()) == []
    assert {array.tap for array in make_arrays(tap="block")} == {"block", ""}
