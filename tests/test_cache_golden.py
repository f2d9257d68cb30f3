"""Golden stores of format 2 are read as they were written; newer ones are named and left untouched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from golden_stores import ARRAYS, stores_under, tree, unpack, write_rows
from messages import raises
from token_stores import hashes_of, make_array, make_model, tokens_of, without_fsync  # noqa: F401

from layerbank.cache import (
    NewerStoreError,
    RowSet,
    StoreFiles,
    TokenStore,
    TokenView,
    WantedRows,
    find_format1,
    list_stores,
    list_targets,
    read_target,
    repair_store,
    upgrade_store,
    verify_store,
)
from layerbank.cache.header import read_header

MODULE_TAP = "module:blocks.{i}.norm2"


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    return unpack(tmp_path, "format2-stores.zip")


def store_of(golden: Path, name: str) -> Path:
    (store,) = (path for path in stores_under(golden / "stores") if path.name.startswith(f"{name}-"))
    return store


def test_every_store_is_sound_and_has_the_tokens_that_were_written(golden: Path) -> None:
    before = tree(golden)
    stores = stores_under(golden / "stores")
    assert len(stores) == 7
    for path in stores:
        assert verify_store(path) == []
        header = read_header(path)
        assert header.spec.path(golden / "stores") == path
        if not header.complete_arrays:
            continue
        for tap in TokenStore.open(path).taps or [None]:
            store = TokenStore.open(path, tap=tap)
            for array in store.arrays.values():
                tokens = store.tokens(array.level, array.kind).read(0, store.num_rows)
                assert (tokens == tokens_of(array, store.rows.hashes, store.rows.views)).all()
    assert tree(golden) == before


def test_rows_of_an_unfinished_store_are_found(golden: Path) -> None:
    wanted = WantedRows(rows=RowSet(hashes=hashes_of(np.arange(2000, 2480))))
    view = TokenView.open(golden / "stores", make_model(), wanted, [("block.0", "cls")])
    assert view.stores == (store_of(golden, "unfinished"),)
    assert (view.tokens("block.0", "cls").take(view.positions) == tokens_of(ARRAYS[0], wanted.rows.hashes)).all()


def test_targets_and_taps_are_read(golden: Path) -> None:
    store = store_of(golden, "shapes")
    assert list_targets(store) == ["age", "label"]
    assert read_target(store, "label", num_rows=1200).values.tolist() == (np.arange(1200) % 3).tolist()
    assert list(read_target(store, "label", num_rows=1200).class_names) == ["a", "b", "c"]
    ages = read_target(store, "age", num_rows=1200)
    assert ages.values[:, 0].tolist() == (np.arange(1200) / 7).tolist()
    assert np.isnan(ages.values[:, 1]).all()
    assert TokenStore.open(store_of(golden, "taps")).taps == ["block", MODULE_TAP, "norm2"]
    assert StoreFiles.read(store).journal.notes(()).skipped == dict.fromkeys(range(99, 1200, 100), "cut off")


def test_an_unknown_optional_attribute_is_kept_when_arrays_are_added(golden: Path) -> None:
    store = store_of(golden, "optional")
    rows, more = StoreFiles.read(store).rows, [*ARRAYS, make_array("block.0", tap="block")]
    assert write_rows(golden / "stores", rows, arrays=more, name="optional") == store
    header = read_header(store)
    assert header.unknown == {"camera": {"maker": "of a newer layerbank"}}
    assert len(header.complete_arrays) == 4
    assert verify_store(store) == []


@pytest.mark.parametrize(("name", "key"), [("required", "cache.newer_attributes"), ("version3", "cache.newer_format")])
def test_a_store_of_a_newer_version_is_named_and_left_untouched(golden: Path, name: str, key: str) -> None:
    (store,) = (path for path in (golden / "newer").glob("*/*.zarr") if path.name.startswith(name))
    before = tree(golden)
    num_rows = 50 if name == "required" else 60
    rows = RowSet(hashes=hashes_of(np.arange(num_rows)))
    for use in (TokenStore.open, verify_store, repair_store, upgrade_store):
        with raises(key, NewerStoreError, store=store):
            use(store)
    with raises(key, NewerStoreError, store=store):
        write_rows(golden / "newer", rows, name=name)
    with raises("cache.rows_missing"):
        TokenView.open(golden / "newer", make_model(), WantedRows(rows=rows), [("final", "cls")])
    problems = {info.path: info.problem for info in list_stores(golden / "newer")}
    assert isinstance(problems[store], NewerStoreError)
    assert find_format1(golden) == []
    assert tree(golden) == before
