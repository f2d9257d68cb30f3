"""Stores that another store of their model has all of: listed with the reason, and deleted on request alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commands import run
from golden_stores import ARRAYS, write_rows
from messages import raises
from token_stores import hashes_of, make_model, without_fsync  # noqa: F401

from layerbank.cache import DamagedStoreError, RowSet, Target, find_garbage, remove_garbage, write_target


def images(first: int, stop: int) -> RowSet:
    return RowSet(hashes=hashes_of(range(first, stop)))


def superseded(root: Path) -> dict[Path, Path | None]:
    return {one.path: one.superseded_by for one in find_garbage(root, superseded=True)}


def label(store: Path, values: list[int]) -> None:
    target = Target(type="multiclass", values=np.array(values), class_names=("cat", "dog"))
    write_target(store, "label", target, num_rows=len(values))


def test_a_store_is_superseded_by_one_of_its_model_with_all_its_rows(tmp_path: Path) -> None:
    whole, part = write_rows(tmp_path, images(0, 100), name="whole"), write_rows(tmp_path, images(20, 60), name="part")
    write_rows(tmp_path, images(90, 110), name="overlapping")
    write_rows(tmp_path, images(0, 50), name="unfinished", num_batches=0)
    write_rows(tmp_path, images(0, 60), name="other", model=make_model(weights="fedcba9876543210"))
    assert superseded(tmp_path) == {part: whole}
    assert find_garbage(tmp_path) == []


def test_an_array_a_token_or_a_target_that_the_other_lacks_keeps_a_store(tmp_path: Path) -> None:
    whole = write_rows(tmp_path, images(0, 100), name="whole", arrays=ARRAYS[:2], skipped={5: "cut off"})
    write_rows(tmp_path, images(20, 60), name="more-arrays")
    write_rows(tmp_path, images(0, 10), name="more-tokens", arrays=ARRAYS[:2])
    labelled = write_rows(tmp_path, images(20, 30), name="labelled", arrays=ARRAYS[:2])
    label(labelled, [0, 1] * 5)
    assert superseded(tmp_path) == {}
    label(whole, [1, 0] * 50)  # other values
    assert superseded(tmp_path) == {}
    label(whole, [0, 1] * 50)
    assert superseded(tmp_path) == {labelled: whole}


def test_of_stores_with_the_same_content_one_is_kept(tmp_path: Path) -> None:
    stores = sorted(write_rows(tmp_path / folder, images(0, 30)) for folder in "abc")
    assert superseded(tmp_path) == dict.fromkeys(stores[1:], stores[0])
    assert run("cache", "gc", "--cache", tmp_path, "--superseded", "--delete").exit_code == 0
    assert [store for store in stores if store.exists()] == stores[:1]


def test_gc_lists_the_reason_and_the_size_and_deletes_on_request(tmp_path: Path) -> None:
    whole, part = write_rows(tmp_path, images(0, 100), name="whole"), write_rows(tmp_path, images(20, 60), name="part")
    assert "nothing to delete" in run("cache", "gc", "--cache", tmp_path).stdout
    (listed,) = json.loads(run("cache", "gc", "--cache", tmp_path, "--superseded", "--json").stdout)["garbage"]
    assert listed == {
        "path": str(part),
        "size_bytes": sum(file.stat().st_size for file in part.rglob("*") if file.is_file()),
        "reason": f"{whole} has all that is in it",
    }
    assert part.exists()
    assert run("cache", "gc", "--cache", tmp_path, "--superseded", "--delete").exit_code == 0
    assert not part.exists()
    assert whole.exists()


@pytest.mark.parametrize("change", ["damaged", "gone"])
def test_nothing_is_deleted_for_a_store_that_is_damaged_or_gone(tmp_path: Path, change: str) -> None:
    whole, part = write_rows(tmp_path, images(0, 100), name="whole"), write_rows(tmp_path, images(20, 60), name="part")
    found = find_garbage(tmp_path, superseded=True)
    if change == "damaged":
        (whole / "tokens/final/grid2/c.0.0.0").write_bytes(b"short")
        with raises("cache.store_damaged", DamagedStoreError):
            remove_garbage(found)
    else:
        whole.rename(tmp_path / "moved")
        with raises("cache.store_missing"):
            remove_garbage(found)
    assert part.exists()
