"""A view over several stores equals one store with the same rows."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from messages import raises
from numpy.typing import NDArray
from token_stores import (
    VIEW_RULE,
    append,
    hashes_of,
    make_arrays,
    make_model,
    make_rows,
    make_spec,
    numbers_of,
    open_writer,
    tokens_of,
    wanted,
    without_fsync,  # noqa: F401
    write_images,
    write_store,
)

from layerbank.cache import (
    ArraySpec,
    DamagedStoreError,
    MissingArrayError,
    MissingRowsError,
    ModelStores,
    RowSet,
    TokenStore,
    TokenView,
    WantedRows,
    array_key,
    verify_store,
)

CLS, GRID, FINAL = ("block.0", "cls"), ("block.0", "grid2"), ("final", "cls")
ARRAYS = {(array.level, array.kind): array for array in make_arrays()}
KEYS = [array_key("norm2", *array) for array in (CLS, GRID, FINAL)]


def open_view(root: Path, rows: WantedRows, arrays: Any = (CLS, GRID, FINAL), **changes: Any) -> TokenView:
    tap = changes.pop("tap", "norm2")
    return TokenView.open(root, make_model(**changes), rows, list(arrays), tap=tap)


def usable(view: TokenView) -> NDArray[np.bool_]:
    return view.positions >= 0


def assert_equals_one_store(view: TokenView, rows: RowSet, storage_dtype: str = "float16") -> None:
    """Every token is that of its image and view; every hundredth image is unreadable."""
    images = numbers_of(rows)
    np.testing.assert_array_equal(usable(view), images % 100 != 99)
    assert view.skipped == {row: f"image {images[row]} is cut off" for row in np.flatnonzero(images % 100 == 99)}
    assert view.num_rows == len(rows)
    here = np.flatnonzero(usable(view))
    for array in view.arrays:
        got, read = view[array].take(view.positions[here]), rows.select(here)
        np.testing.assert_array_equal(got, tokens_of(ARRAYS[array], read.hashes, read.views, storage_dtype))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images 0 to 1999 in four stores of different sizes and orders; some are in two."""
    root = tmp_path_factory.mktemp("stores")
    write_images(root, np.arange(700), name="photos-train")
    write_images(root, np.arange(1300, 600, -1), name="photos-test")
    write_images(root, np.arange(1250, 1990), name="more")
    write_images(root, np.arange(1990, 2000), name="few")
    write_images(root, np.arange(3000), name="others", weights="ffffffffffffffff")  # of another model
    return root


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 1999), min_size=1, max_size=300))
def test_a_view_over_several_stores_equals_one_store_with_its_rows(root: Path, images: list[int]) -> None:
    rows = wanted(images)
    assert_equals_one_store(open_view(root, rows), rows.rows)


def test_all_rows_of_all_stores_in_any_order_are_one_view(root: Path) -> None:
    rows = wanted(np.random.default_rng(0).permutation(2000))
    view = open_view(root, rows)
    assert_equals_one_store(view, rows.rows)
    assert view.stores == tuple(sorted(make_model().folder(root).glob("*.zarr")))
    assert list(view.arrays) == [CLS, GRID, FINAL]
    assert view.arrays[GRID] == ARRAYS[GRID]


@pytest.mark.parametrize("storage_dtype", ["bfloat16", "float16,cls=float32"])
def test_dtypes_are_those_of_the_model(tmp_path: Path, storage_dtype: str) -> None:
    write_images(tmp_path, np.arange(300), storage_dtype=storage_dtype)
    write_images(tmp_path, np.arange(300, 700), storage_dtype=storage_dtype)
    rows = wanted([5, 650, 5, 299, 300])
    view = open_view(tmp_path, rows, storage_dtype=storage_dtype)
    assert_equals_one_store(view, rows.rows, storage_dtype)
    assert view[CLS].logical_dtype == ("bfloat16" if storage_dtype == "bfloat16" else "float32")


def test_a_view_is_read_the_same_without_one_address_range(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerbank.cache.mapping.rows.can_be_contiguous", lambda files: False)
    rows = wanted(np.arange(0, 2000, 3))
    view = open_view(root, rows)
    assert view[CLS].contiguous is None
    assert_equals_one_store(view, rows.rows)


def test_unfinished_stores_lend_the_row_blocks_that_they_have(tmp_path: Path) -> None:
    rows, arrays = make_rows(), make_arrays()
    spec = make_spec()
    with open_writer(spec.path(tmp_path), spec, arrays) as writer:  # row blocks 1 and 3 of five
        for batch in [batch for batch in writer.pending() if batch.block in (1, 3)]:
            append(writer, batch)
    some = WantedRows(rows=rows.select(np.r_[720:960, 470:240:-1]))
    assert_equals_one_store(open_view(tmp_path, some), some.rows)
    found = ModelStores(tmp_path, spec.model).find(wanted(1200), KEYS)
    np.testing.assert_array_equal(np.flatnonzero(found.store >= 0), np.r_[240:480, 720:960])
    with raises("cache.rows_missing", MissingRowsError, num_missing=720, num_rows="1200", name="the images"):
        open_view(tmp_path, wanted(1200))
    write_images(tmp_path, np.r_[0:240, 480:720, 960:1200], name="rest")
    assert_equals_one_store(open_view(tmp_path, wanted(1200)), rows)


def test_a_row_counts_where_all_arrays_are_committed(tmp_path: Path) -> None:
    store = write_images(tmp_path, np.arange(1200), [ARRAYS[CLS]])
    write_store(store, make_spec(), make_arrays(), num_batches=5)  # the other arrays: one row block of five
    assert_equals_one_store(open_view(tmp_path, wanted(1200), [CLS]), make_rows())
    assert_equals_one_store(open_view(tmp_path, wanted(240)), make_rows(240))
    with raises("cache.rows_missing", num_missing=960, arrays="block.0/cls, final/cls", model="timm/vit_tiny"):
        open_view(tmp_path, wanted(1200), [CLS, FINAL])


def test_equal_images_share_a_position(tmp_path: Path) -> None:
    write_images(tmp_path, [4, 5, 4, 6])
    view = open_view(tmp_path, wanted([4, 6, 4, 5, 4]))
    assert view.positions.tolist() == [0, 3, 0, 1, 0]


def test_views_of_an_image_are_rows_of_their_own_in_any_stores(tmp_path: Path) -> None:
    write_images(tmp_path, np.repeat(np.arange(300), 2), views=np.tile([0, 1], 300))
    write_images(tmp_path, np.arange(200), views=np.full(200, 2))
    images, numbers = np.arange(600) % 200, np.arange(600) // 200
    rows = make_rows(images, numbers)
    view = open_view(tmp_path, WantedRows(rows=rows))
    assert_equals_one_store(view, rows)
    assert_equals_one_store(open_view(tmp_path, wanted(300)), make_rows(300))  # centre views need no rule
    other = RowSet(hashes=rows.hashes, views=rows.views, view_rule=f"{VIEW_RULE} of another seed")
    with raises("cache.rows_missing", num_missing=400):
        open_view(tmp_path, WantedRows(rows=other))


def altered(store: Path, amount: int) -> None:
    """Make a sound store of the same rows whose tokens differ, as another machine could write it."""
    spec, changed = make_spec(), store.with_name("changed.zarr")
    with open_writer(changed, spec, make_arrays()) as writer:
        for batch in writer.pending():
            hashes = hashes_of(range(batch.start, batch.stop))
            tokens = {array.name: tokens_of(array, hashes) + np.float16(amount) for array in batch.arrays}
            append_tokens(writer, batch, tokens)
        writer.complete()
    shutil.rmtree(store, ignore_errors=True)
    changed.rename(store)


def append_tokens(writer: Any, batch: Any, tokens: Any) -> None:
    writer.append(batch, tokens, content_hashes=make_rows().hashes[batch.start : batch.stop])


def test_of_two_stores_that_differ_the_smallest_path_is_read_and_both_are_sound(tmp_path: Path) -> None:
    folder = make_model().folder(tmp_path)
    altered(folder / "a.zarr", 1)
    altered(folder / "b.zarr", 2)
    assert verify_store(folder / "a.zarr") == verify_store(folder / "b.zarr") == []
    view = open_view(tmp_path, wanted(1200))
    assert view.stores == (folder / "a.zarr",)
    np.testing.assert_array_equal(view[CLS].take(view.positions), tokens_of(ARRAYS[CLS], hashes_of(range(1200))) + 1)
    (folder / "b.zarr").rename(folder / "0.zarr")
    view = open_view(tmp_path, wanted(1200))
    np.testing.assert_array_equal(view[CLS].take(view.positions), tokens_of(ARRAYS[CLS], hashes_of(range(1200))) + 2)


def test_a_usable_row_comes_before_a_skipped_one_of_a_smaller_path(tmp_path: Path) -> None:
    folder = make_model().folder(tmp_path)
    altered(folder / "b.zarr", 0)  # nothing is skipped there
    write_store(folder / "a.zarr")  # image 99 is, here
    view = open_view(tmp_path, wanted(1200))
    assert view.stores == (folder / "a.zarr", folder / "b.zarr")
    assert view.skipped == {}
    np.testing.assert_array_equal(view[CLS].take(view.positions), tokens_of(ARRAYS[CLS], hashes_of(range(1200))))


def test_names_of_folders_and_files_do_not_matter_to_find_a_row(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "copy")
    model = make_model(name="another name")
    make_model().folder(tmp_path / "copy").rename(tmp_path / f"copy/x-{model.digest[:8]}")
    for number, store in enumerate(sorted((tmp_path / "copy").glob("x-*/*.zarr"))):
        store.rename(store.with_name(f"{9 - number}.zarr"))
    rows = wanted(np.arange(2000))
    view = TokenView.open(tmp_path / "copy", model, rows, [CLS, GRID, FINAL])
    assert_equals_one_store(view, rows.rows)


def test_images_that_cannot_be_read_have_no_tokens_and_hash_0_never_matches(tmp_path: Path) -> None:
    write_images(tmp_path, np.arange(50))
    hashes = make_rows(50).hashes.copy()
    hashes[[3, 7]] = 0
    view = open_view(tmp_path, WantedRows(rows=RowSet(hashes=hashes)))
    assert view.skipped == {3: "the image could not be read", 7: "the image could not be read"}
    assert np.flatnonzero(view.positions < 0).tolist() == [3, 7]


def test_a_view_without_one_readable_image_has_no_arrays(tmp_path: Path) -> None:
    view = open_view(tmp_path / "nowhere", WantedRows(rows=RowSet(hashes=np.zeros(2, dtype=np.uint64))))
    assert (view.arrays, view.stores, view.positions.tolist(), list(view.skipped)) == ({}, (), [-1, -1], [0, 1])
    with raises("cache.array_missing", MissingArrayError, levels="none", kinds="none"):
        view.tokens(*CLS)


def test_a_missing_array_and_missing_rows_say_what_there_is(root: Path, tmp_path: Path) -> None:
    with raises("cache.array_missing", MissingArrayError, level="block.5", levels="block.0", kinds="cls"):
        open_view(root, wanted(5), [CLS]).tokens("block.5", "ap")
    with raises("cache.rows_missing", MissingRowsError, num_missing=5, num_rows=5, root=tmp_path, name="the images"):
        open_view(tmp_path, wanted(5))


def test_several_taps_lie_in_one_store_and_are_views_of_their_own(tmp_path: Path) -> None:
    taps = ["norm2", "block", "module:blocks.{i}.norm2"]
    store = write_images(tmp_path, np.arange(600), make_arrays(tap="norm2"))
    for tap in taps[1:]:
        write_store(store, make_spec(600), make_arrays(tap=tap))
    assert verify_store(store) == []
    assert TokenStore.open(store).taps == sorted(taps)
    for tap in taps:
        array = ArraySpec(level="block.0", kind="cls", row_shape=(8,), tap=tap)
        view = open_view(tmp_path, wanted([30, 20]), [CLS, FINAL], tap=tap)
        assert view.arrays[CLS] == array
        np.testing.assert_array_equal(view[CLS].take(view.positions), tokens_of(array, hashes_of([30, 20])))
        opened = TokenStore.open(store, tap=tap)
        assert set(opened.arrays) == {CLS, GRID, FINAL, ("final", "grid2")}
        np.testing.assert_array_equal(opened[CLS].read(0, 600), tokens_of(array, hashes_of(range(600))))
    with raises("cache.rows_missing"):
        open_view(tmp_path, wanted(2), [CLS], tap="module:other")
    once = tmp_path / "once.zarr"
    write_store(once, make_spec(600), [array for tap in taps[::-1] for array in make_arrays(["block.0"], tap=tap)])
    assert set(TokenStore.open(once).arrays) == {CLS, GRID}


@pytest.mark.parametrize("damage", ["gone", "cut off", "another"])
def test_a_damaged_store_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    write_images(tmp_path, np.arange(400), name="a")
    store = write_images(tmp_path, np.arange(400, 1600), name="b")
    chunk = store / "tokens/norm2/block.0/cls/c.1.0"
    if damage == "gone":
        chunk.unlink()
    elif damage == "cut off":
        chunk.write_bytes(chunk.read_bytes()[:-1])
    else:
        shutil.copy(chunk.with_name("c.2.0"), chunk)
    with raises("cache.store_damaged", DamagedStoreError, store=store):
        open_view(tmp_path, wanted(1600), [CLS]).tokens(*CLS)
    assert_equals_one_store(open_view(tmp_path, wanted(400), [CLS]), make_rows(400))  # which needs the other store only


def test_stores_that_cannot_be_read_hold_no_row(tmp_path: Path) -> None:
    damaged = write_images(tmp_path, np.arange(400), name="a")
    raw = bytearray((damaged / "content_hashes/c.0").read_bytes())
    raw[100] ^= 4
    (damaged / "content_hashes/c.0").write_bytes(raw)
    broken = write_images(tmp_path, np.arange(400, 500), name="b")
    (broken / "zarr.json").write_text("{}")
    (make_model().folder(tmp_path) / "c.zarr").write_text("a file")
    assert ModelStores(tmp_path, make_model()).stores == []
    write_images(tmp_path, np.arange(500), name="d")
    assert_equals_one_store(open_view(tmp_path, wanted(500)), make_rows(500))


def test_stores_may_be_left_out_and_hash_rules_do_not_mix(tmp_path: Path) -> None:
    store = write_images(tmp_path, np.arange(40), name="a")
    other = write_images(tmp_path, np.arange(20, 60), name="b")
    found = ModelStores(tmp_path, make_model())
    assert [files.path for files in found.stores] == [store, other]
    assert found.find(wanted([10, 30, 50, 70]), KEYS).store.tolist() == [0, 0, 1, -1]
    assert found.find(wanted([10, 30, 50, 70]), KEYS, leave_out=[store]).store.tolist() == [-1, 1, 1, -1]
    assert len(found.find(wanted([]), KEYS).store) == 0
    rows = replace(make_rows(np.arange(60, 80)), hash_rule=1)
    spec = make_spec(rows=rows, name="c")
    write_store(spec.path(tmp_path), spec, rows=rows)
    found = ModelStores(tmp_path, make_model())
    assert found.find(wanted([70]), KEYS).store.tolist() == [2]  # images in files: both rules give one hash
    arrays = WantedRows(rows=make_rows([70]), rule1_hashes=make_rows([71]).hashes)
    assert found.find(arrays, KEYS).row.tolist() == [11]  # images in arrays: the hash of the store's rule
    assert arrays.select(np.array([0])).keys(1) == make_rows([71]).hashes
