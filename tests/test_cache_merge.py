"""Stores of one model joined into one: every image once, in the order of the hashes, with what all of them have."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import run
from golden_stores import ARRAYS, read_tokens, tree, unpack, write_rows
from kills import run_program
from messages import raises, refuses
from token_stores import folders_of, hashes_of, make_array, make_model, tokens_of, without_fsync  # noqa: F401

from layerbank.cache import (
    RowSet,
    SpecMismatchError,
    StoreFiles,
    Target,
    TokenStore,
    TokenView,
    WantedRows,
    find_format1,
    list_targets,
    merge_stores,
    read_target,
    upgrade_store,
    verify_store,
    write_target,
)
from layerbank.cache.header import read_header
from layerbank.cache.writing.locking import StoreLock

KEYS = [("norm2", "block.0", "cls"), ("", "final", "cls"), ("", "final", "grid2")]


def images(numbers: Sequence[int]) -> RowSet:
    return RowSet(hashes=hashes_of(numbers))


@pytest.fixture
def stores(tmp_path: Path) -> list[Path]:
    """Images 0 to 699, 600 to 1299 and 1300 to 1319, each sorted by number; row 5 of the first and 0 of the second unreadable."""
    root = tmp_path / "cache"
    return [
        write_rows(root, images(range(700)), name="first", skipped={5: "cut off", 650: "cut off"}),
        write_rows(root, images(range(600, 1300)), name="second", skipped={0: "gone"}),
        write_rows(root, images(range(1300, 1320)), name="third"),
    ]


def test_a_merged_store_has_every_image_once_with_its_tokens(stores: list[Path]) -> None:
    before = [tree(store) for store in stores]
    done = merge_stores(stores)
    store = TokenStore.open(done.store)
    assert (done.num_rows, done.num_repeated) == (1320, 100)
    assert verify_store(done.store) == []
    assert store.rows.hashes.tolist() == sorted(hashes_of(range(1320)).tolist())
    for key, array in zip(KEYS, ARRAYS, strict=True):
        assert (read_tokens(done.store, key) == tokens_of(array, store.rows.hashes)).all()
    assert read_header(done.store).spec.path(stores[0].parents[1]) == done.store
    assert [tree(store) for store in stores] == before
    assert [*done.kept] == stores


def test_names_sizes_reasons_and_counts_are_kept(stores: list[Path]) -> None:
    store = TokenStore.open(merge_stores(stores, name="all of it").store)
    number_of = {int(one): number for number, one in enumerate(hashes_of(range(1320)).tolist())}
    numbers = [number_of[int(one)] for one in store.rows.hashes]
    expected = [
        f"first {n}" if n < 700 and n != 650 else f"second {n - 600}" if n < 1300 else f"third {n - 1300}"
        for n in numbers
    ]
    assert list(store.sample_ids) == expected
    assert StoreFiles.read(store.path).sizes is None  # equal names in other data are other images
    # image 650 is usable in the second store, and image 600 in the first
    assert {numbers[row]: reason for row, reason in store.skipped.items()} == {5: "cut off"}
    assert set(store.notes.saturated.values()) == {3}
    assert store.spec.name == "all of it"
    assert store.batch_size == 60
    assert store.attributes == {"merged_from": [f"{path.parent.name}/{path.name}" for path in stores]}


def test_sizes_are_kept_where_all_stores_are_of_the_same_data(stores: list[Path]) -> None:
    files = StoreFiles.read(merge_stores(stores[:1], name="copy").store)
    assert files.sizes is not None
    assert files.sizes.tolist() == (files.rows.hashes.astype(np.int64) & 0xFFFF).tolist()


def test_a_stretch_of_a_merged_store_is_a_fair_sample_whatever_the_order_was(stores: list[Path]) -> None:
    """The merged stores are sorted by class, as image folders are."""
    store = TokenStore.open(merge_stores(stores).store)
    classes = dict(zip(hashes_of(range(1320)).tolist(), (np.arange(1320) // 132).tolist(), strict=True))
    stretch = [classes[int(one)] for one in store.rows.hashes[: store.block_rows]]
    assert (np.bincount(stretch, minlength=10) > store.block_rows / 20).all()


def test_a_view_reads_a_merged_store_in_place_of_the_stores(stores: list[Path]) -> None:
    done = merge_stores(stores, delete=True)
    assert dict(done.kept) == {}
    assert [path for path in stores if path.exists()] == []
    chosen = np.random.default_rng(0).integers(6, 1320, 500)
    view = TokenView.open(
        stores[0].parents[1], make_model(), WantedRows(rows=images(chosen.tolist())), [("final", "cls")]
    )
    assert view.stores == (done.store,)
    tokens = view.tokens("final", "cls").take(view.positions)
    assert (tokens == tokens_of(ARRAYS[1], hashes_of(chosen))).all()
    assert [path.name for path in stores[0].parent.iterdir() if path.suffix == ".lock"] == [f"{done.store.name}.lock"]


def test_arrays_that_not_all_stores_have_are_left_out_and_protect_their_store(tmp_path: Path) -> None:
    first = write_rows(tmp_path, images(range(50)))
    second = write_rows(tmp_path, images(range(50, 90)), arrays=[*ARRAYS[:2], make_array("block.0", tap="block")])
    third = write_rows(tmp_path, images(range(90, 120)), arrays=ARRAYS[:2])
    done = merge_stores([first, second, third], delete=True)
    assert [array.name for array in TokenStore.open(done.store).arrays.values()] == [array.name for array in ARRAYS[:2]]
    assert set(done.arrays_left_out) == {"tokens/final/grid2", "tokens/block/block.0/cls"}
    assert [*done.kept] == [first, second]
    assert "tokens/final/grid2" in done.kept[first]
    assert (first.exists(), second.exists(), third.exists()) == (True, True, False)


def test_an_unfinished_store_gives_the_row_blocks_that_it_has(tmp_path: Path) -> None:
    first = write_rows(tmp_path, images(range(1200)), num_batches=9)  # two of five row blocks of four batches
    second = write_rows(tmp_path, images(range(5000, 5010)))
    done = merge_stores([first, second])
    assert done.num_rows == 490
    assert TokenStore.open(done.store).rows.hashes.tolist() == sorted(
        hashes_of([*range(480), *range(5000, 5010)]).tolist()
    )


def test_an_array_in_progress_does_not_cost_the_rows_of_the_others(tmp_path: Path) -> None:
    rows = images(range(1200))
    first = write_rows(tmp_path, rows, arrays=ARRAYS[:2])
    write_rows(tmp_path, rows, num_batches=4)  # grid2 in the first row block
    done = merge_stores([first, write_rows(tmp_path, images(range(1200, 1300)))])
    assert (done.num_rows, done.arrays_left_out) == (1300, ("tokens/final/grid2",))


def test_views_of_an_image_are_rows_of_their_own(tmp_path: Path) -> None:
    numbers = np.repeat(np.arange(20), 3)
    views = np.tile(np.arange(3), 20).astype(np.uint16)
    first = write_rows(tmp_path, RowSet(hashes=hashes_of(numbers), views=views, view_rule="crops"))
    second = write_rows(tmp_path, images(range(10, 30)))
    done = merge_stores([first, second])
    rows = TokenStore.open(done.store).rows
    assert (done.num_rows, done.num_repeated) == (70, 10)
    assert rows.views is not None
    assert (read_tokens(done.store, KEYS[1]) == tokens_of(ARRAYS[1], rows.hashes, rows.views)).all()
    other = write_rows(tmp_path, RowSet(hashes=hashes_of(numbers), views=views, view_rule="flips"))
    with raises("cache.other_model_to_merge", SpecMismatchError, store=other, first=first):
        merge_stores([first, second, other])


def test_targets_are_joined_where_type_and_class_names_agree(stores: list[Path]) -> None:
    for number, store in enumerate(stores):
        rows = StoreFiles.read(store).rows
        num_rows = len(rows)
        values = (rows.hashes % np.uint64(3)).astype(np.int64)
        write_target(store, "place", Target(values=values, type="multiclass", class_names="abc"), num_rows=num_rows)
        names = "abc" if number else "abd"
        write_target(store, "other", Target(values=values, type="multiclass", class_names=names), num_rows=num_rows)
    write_target(stores[2], "age", Target(values=np.ones((20, 2)), type="regression"), num_rows=20)
    done = merge_stores(stores, delete=True)
    assert list_targets(done.store) == ["place"]
    assert set(done.targets_left_out) == {"age", "other"}
    place = read_target(done.store, "place", num_rows=1320)
    hashes = TokenStore.open(done.store).rows.hashes
    assert place.values.tolist() == (hashes % np.uint64(3)).tolist()
    assert [*done.kept] == stores


def test_upgraded_stores_and_stores_of_format_1_are_merged_by_their_own_hash_rule(tmp_path: Path) -> None:
    root = unpack(tmp_path) / "synthetic"
    complete, unfinished = (root / f"shapes/train/timm-vit_tiny-{digits}.zarr" for digits in ("9215b1f9", "f1c12bde"))
    model = read_header(complete).spec.model
    with raises("cache.other_model_to_merge", SpecMismatchError):
        merge_stores([complete, unfinished])
    merged = merge_stores([complete])
    upgraded = merge_stores([upgrade_store(complete).store])
    for done in (merged, upgraded):
        assert done.store.parents[1] == root
        assert done.num_rows == 1199  # one image has no hash in this store
        assert read_header(done.store).spec.hash_rule == 1
        assert list_targets(done.store) == ["label"]
    assert merged.store == upgraded.store
    view = TokenView.open(root, model, WantedRows(rows=TokenStore.open(merged.store).rows), [("final", "cls")])
    assert merged.store in view.stores
    rule2 = write_rows(root, images(range(10)))
    with raises("cache.other_model_to_merge", differences="hash_rule = 2 instead of 1"):
        merge_stores([merged.store, rule2])
    assert len(find_format1(root)) == 3


def test_a_store_that_is_in_order_already_is_its_own_merger_and_is_never_deleted(stores: list[Path]) -> None:
    done = merge_stores(stores)
    before = tree(done.store)
    again = merge_stores([done.store, done.store], delete=True)
    assert again.store == done.store
    assert dict(again.kept) == {}
    assert tree(done.store) == before


# Interruptions and bad input

KILLER = """
import json, shutil
from pathlib import Path
from kills import is_killed
from layerbank.cache import merge_stores

cache, root, delete = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "delete"
step, names = int(sys.argv[4]), sys.argv[5:]

def is_merge_killed(folder, **when):
    stores = [(folder if delete else cache) / name for name in names]
    return is_killed(lambda: merge_stores(stores, folder, delete=delete), **when)

kills, killed = 0, True
while killed:
    folder = root / str(kills)
    if delete:
        shutil.copytree(cache, folder)
    killed = is_merge_killed(folder, at_call=kills * step)
    for _ in range(2):
        assert not is_merge_killed(folder)
    kills += killed
print(json.dumps(kills))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
@pytest.mark.parametrize("delete", [False, True], ids=["keep", "delete"])
def test_a_merge_killed_before_any_call_that_changes_the_disk_ends_the_same_when_it_is_repeated(
    stores: list[Path], tmp_path: Path, delete: bool
) -> None:
    cache = stores[0].parents[1]
    for store in stores:
        num_rows = len(StoreFiles.read(store).rows)
        write_target(store, "age", Target(values=np.ones(num_rows), type="regression"), num_rows=num_rows)
    names = [str(store.relative_to(cache)) for store in stores]
    uninterrupted = tmp_path / "uninterrupted"
    if delete:
        shutil.copytree(cache, uninterrupted)
    merge_stores([(uninterrupted if delete else cache) / name for name in names], uninterrupted, delete=delete)
    (tmp_path / "killed").mkdir()
    how = ("delete", 29) if delete else ("keep", 17)
    assert run_program(KILLER, cache, tmp_path / "killed", *how, *names) >= 8
    for root in (tmp_path / "killed").iterdir():
        assert tree(root) == tree(uninterrupted), root
        assert folders_of(root) == folders_of(uninterrupted), root
        assert len([*root.rglob("*.zarr")]) == 1


def test_a_deletion_goes_on_from_a_store_of_the_same_model_only(stores: list[Path], tmp_path: Path) -> None:
    """Folders of stores are named after their rows, so those of two models have the same names."""
    cache, other = stores[0].parents[1], make_model(weights="ffff0000")
    others = [
        write_rows(cache, StoreFiles.read(store).rows, model=other, name=name)
        for store, name in zip(stores, ["first", "second", "third"], strict=True)
    ]
    assert [store.name for store in others] == [store.name for store in stores]
    merge_stores(stores)
    shutil.rmtree(others[0])
    with raises("cache.store_missing", store=others[0]):
        merge_stores(others, delete=True)
    assert [store.exists() for store in others] == [False, True, True]


def test_a_deletion_goes_on_where_the_first_store_was_of_format_1(tmp_path: Path) -> None:
    old = unpack(tmp_path) / "synthetic/shapes/train/timm-vit_tiny-9215b1f9.zarr"
    first = merge_stores([old]).store
    new = write_rows(
        first.parents[1],
        RowSet(hashes=hashes_of(range(5000, 5100)), hash_rule=1),
        model=read_header(old).spec.model,
        arrays=[replace(one, name="") for one in TokenStore.open(first).arrays.values()],
    )
    label = replace(read_target(first, "label", num_rows=1199), values=np.zeros(100, np.int64))
    write_target(new, "label", label, num_rows=100)
    merge_stores([old, new])
    shutil.rmtree(old)
    done = merge_stores([old, new], delete=True)
    assert (done.num_rows, dict(done.kept), new.exists()) == (1299, {}, False)
    assert merge_stores([old, new], delete=True) == done


def test_usable_tokens_are_not_given_up_for_those_of_a_store_that_skipped_the_row(stores: list[Path]) -> None:
    """The new store's rows may be those of a store that is there already, in the same order."""
    done = merge_stores(stores)
    rows = TokenStore.open(done.store).rows
    row = int(np.flatnonzero(rows.hashes == hashes_of([5]))[0])
    assert [*TokenStore.open(done.store).skipped] == [row]
    recovered = write_rows(done.store.parents[1], images([5]), name="recovered")
    again = merge_stores([done.store, recovered], name="first", delete=True)
    assert again.store.name.startswith("first-2-")
    assert dict(again.kept) == {}
    assert (done.store.exists(), recovered.exists()) == (False, False)
    assert TokenStore.open(again.store).skipped == {}
    assert (read_tokens(again.store, KEYS[1])[row] == tokens_of(ARRAYS[1], rows.hashes)[row]).all()


def test_nothing_is_deleted_for_a_merged_store_that_is_damaged(stores: list[Path]) -> None:
    done = merge_stores(stores)
    file = done.store / "tokens/final/cls/c.1.0"
    raw = bytearray(file.read_bytes())
    raw[100] ^= 1
    file.write_bytes(raw)
    with raises("cache.store_damaged", store=done.store):
        merge_stores(stores, delete=True)
    shutil.rmtree(stores[0])  # as a deletion that was interrupted leaves it
    with raises("cache.store_damaged", store=done.store):
        merge_stores(stores, delete=True)
    assert [store.exists() for store in stores] == [False, True, True]


def test_equal_images_of_one_store_with_unequal_labels_have_no_label_in_the_new_store(tmp_path: Path) -> None:
    store = write_rows(tmp_path, images([*range(50), 7, 8]))
    values = np.arange(52) % 50
    for name, label in (("alike", 7), ("unlike", 9)):
        values[50] = label
        write_target(store, name, Target(values=values, type="multiclass"), num_rows=52)
    values[51] = 8
    write_target(store, "alike", Target(values=np.array([*range(50), 7, 8]), type="multiclass"), num_rows=52)
    done = merge_stores([store], delete=True)
    assert (done.num_rows, done.num_repeated) == (50, 2)
    assert (list_targets(done.store), done.targets_left_out) == (["alike"], ("unlike",))
    assert dict(done.kept) == {store: "the new store has no unlike"}


def test_what_a_store_has_of_its_own_is_not_left_out_where_others_are_merged_into_it(tmp_path: Path) -> None:
    rows = images(range(60)).select(np.argsort(hashes_of(range(60))))
    target = Target(values=np.ones(60), type="regression")
    first = write_rows(tmp_path, rows)
    second = write_rows(tmp_path, images(range(40)), arrays=ARRAYS[:2])
    write_target(first, "age", target, num_rows=60)
    write_target(first, "weight", target, num_rows=60)
    write_target(second, "weight", Target(values=np.zeros(40), type="regression"), num_rows=40)
    done = merge_stores([first, second], delete=True)
    assert done.store == first
    assert (done.arrays_left_out, done.targets_left_out) == ((), ("weight",))
    assert dict(done.kept) == {second: "the new store has no weight"}


def test_a_link_to_the_new_store_is_not_another_store(stores: list[Path], tmp_path: Path) -> None:
    done = merge_stores(stores)
    (tmp_path / "link").symlink_to(done.store.parents[1])
    linked = tmp_path / "link" / done.store.relative_to(done.store.parents[1])
    assert dict(merge_stores([linked, done.store], done.store.parents[1], delete=True).kept) == {}
    assert verify_store(done.store) == []


def test_stores_of_different_models_are_refused_by_the_fields_that_differ(tmp_path: Path) -> None:
    first = write_rows(tmp_path, images(range(10)))
    second = write_rows(tmp_path, images(range(10)), model=make_model(weights="ffff0000"))
    expected = "weights = 'ffff0000' instead of '0123456789abcdef'"
    with raises("cache.other_model_to_merge", SpecMismatchError, store=second, first=first, differences=expected):
        merge_stores([first, second])
    refuses(run("cache", "merge", first, second), "cache.other_model_to_merge")


def test_stores_without_a_common_array_or_without_rows_are_refused(tmp_path: Path) -> None:
    first = write_rows(tmp_path, images(range(10)), arrays=ARRAYS[:1])
    second = write_rows(tmp_path, images(range(20)), arrays=ARRAYS[1:])
    with raises("cache.nothing_to_merge", store=first, arrays="none", num_stores=2):
        merge_stores([first, second])
    empty = write_rows(tmp_path, images(range(30)), num_batches=0)
    with raises("cache.nothing_to_merge", num_rows=0):
        merge_stores([empty])
    refuses(run("cache", "merge", first, tmp_path / "nothing.zarr"), "cache.store_missing")


def test_damage_is_never_copied_under_a_new_checksum(stores: list[Path], tmp_path: Path) -> None:
    file = stores[1] / "tokens/final/cls/c.1.0"
    raw = bytearray(file.read_bytes())
    raw[100] ^= 1
    file.write_bytes(raw)
    with raises("cache.store_damaged", store=stores[1]):
        merge_stores(stores, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    refuses(run("cache", "merge", *stores, "--cache", tmp_path / "new"), "cache.store_damaged", exit_code=1)


def test_a_store_that_is_being_written_is_not_deleted(stores: list[Path]) -> None:
    lock = StoreLock(stores[1])
    lock.acquire()
    try:
        with raises("cache.store_locked", store=stores[1]):
            merge_stores(stores, delete=True)
    finally:
        lock.release()
    assert [store.exists() for store in stores] == [False, True, True]
    assert merge_stores(stores[1:], stores[0].parents[1] / "other").num_rows == 720


def test_the_command_merges_and_says_what_it_keeps(stores: list[Path]) -> None:
    root = stores[0].parents[1]
    result = run("cache", "merge", *stores, "--name", "all")
    assert result.exit_code == 0, result.output
    assert "1,320 rows (100 more are equal to one of them)" in result.output
    assert all(f"kept: {store}" in result.output for store in stores)
    result = run("cache", "merge", *stores, "--name", "all", "--delete")
    assert result.exit_code == 0, result.output
    assert "kept" not in result.output
    (store,) = root.glob("*/*.zarr")
    assert store.name.startswith("all-")


def test_stores_may_be_given_by_other_paths_to_the_same_place(
    stores: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(stores[0].parent)
    done = merge_stores([stores[0], Path(stores[0].name)])
    assert (done.num_rows, done.num_repeated) == (700, 0)
    shutil.rmtree(done.store)
