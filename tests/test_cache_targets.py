"""Targets lie beside the tokens: they may be replaced, and never change the store."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from messages import raises
from token_stores import (
    make_spec,
    tree,
    without_fsync,  # noqa: F401
    write_store,
)

from layerbank.cache import (
    DamagedStoreError,
    MissingTargetError,
    NotWritableError,
    SpecError,
    Target,
    TokenStore,
    export_hdf5,
    find_garbage,
    import_hdf5,
    list_targets,
    merge_stores,
    read_target,
    remove_garbage,
    repair_store,
    verify_store,
    write_target,
)
from layerbank.cache.targets import POINTERS, TARGETS, is_target_file

ROWS = 300
CLASSES = Target(values=np.arange(ROWS) % 3, type="multiclass", class_names=["a", "b", "ü"], source="folders")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    write_store(tmp_path / "a.zarr", make_spec(ROWS))
    return tmp_path / "a.zarr"


def write(store: Path, target: Target = CLASSES, name: str = "label") -> None:
    write_target(store, name, target, num_rows=ROWS)


@pytest.mark.parametrize(
    "target",
    [
        CLASSES,
        Target(values=np.arange(ROWS, dtype=np.uint8) % 5, type="ordinal", class_names=list("abcde")),
        Target(values=np.eye(ROWS, 4) > 0, type="multilabel", class_names=list("abcd")),
        Target(
            values=np.where(np.arange(ROWS) % 7, np.linspace(-1, 1, ROWS), np.nan), type="regression", source="age.csv"
        ),
        Target(values=np.ones((ROWS, 3), np.float32), type="regression"),
    ],
)
def test_a_target_comes_back_as_it_was_written(store: Path, target: Target) -> None:
    write(store, target)
    read = read_target(store, "label", num_rows=ROWS)
    np.testing.assert_array_equal(read.values, target.values)
    assert read.values.dtype == (np.float64 if target.values.dtype.kind == "f" else np.int64)
    assert (read.type, read.class_names, read.source) == (target.type, list(target.class_names), target.source)
    assert read.digest == target.digest
    assert verify_store(store) == []


def test_targets_change_no_byte_of_the_store(store: Path) -> None:
    before = tree(store)
    write(store)
    write(store, name="other")
    assert list_targets(store) == ["label", "other"]
    added = tree(store)
    assert {name: raw for name, raw in added.items() if not is_target_file(name)} == before
    assert TokenStore.open(store).num_rows == ROWS
    assert write_store(store, make_spec(ROWS)) == []
    assert repair_store(store).foreign == ()
    assert tree(store) == added


def test_a_target_is_replaced_in_one_step_and_the_old_values_stay(store: Path) -> None:
    write(store)
    old = {name for name in tree(store) if name.startswith(TARGETS)}
    other = Target(values=CLASSES.values[::-1], type="multiclass", class_names=CLASSES.class_names)
    write(store, other)
    np.testing.assert_array_equal(read_target(store, "label", num_rows=ROWS).values, other.values)
    assert old < {name for name in tree(store) if name.startswith(TARGETS)}
    assert list_targets(store) == ["label"]
    before = {file: file.stat().st_mtime_ns for file in store.rglob("*")}
    write(store, other)
    assert {file: file.stat().st_mtime_ns for file in store.rglob("*")} == before
    write(store)  # the first one again
    assert read_target(store, "label", num_rows=ROWS).digest == CLASSES.digest


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_of_a_target_is_found_and_writing_it_again_repairs_it(store: Path, data: st.DataObject) -> None:
    write(store)
    files = [store / name for name in tree(store) if is_target_file(name)]
    file = data.draw(st.sampled_from(files), "file")
    raw = bytearray(file.read_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1), "offset")] ^= 1 << data.draw(st.integers(0, 7), "bit")
    file.write_bytes(raw)
    group = f"{TARGETS}/zarr.json"
    is_group = file == store / group
    assert [damage.file for damage in verify_store(store)] == [group if is_group else f"{POINTERS}/label.json"]
    if not is_group:
        with raises("cache.target_damaged", DamagedStoreError, store=store, name="label"):
            read_target(store, "label", num_rows=ROWS)
    assert TokenStore.open(store).num_rows == ROWS  # the tokens are not affected
    write(store)
    assert verify_store(store) == []


def test_class_names_that_are_no_list_are_damage(store: Path) -> None:
    write(store)
    (file,) = (store / TARGETS).glob("label.*/zarr.json")
    metadata = json.loads(file.read_bytes())
    metadata["attributes"]["class_names"] = "x" * 1000
    file.write_text(json.dumps(metadata))
    with raises("cache.target_damaged", reason="class names that are no list"):
        read_target(store, "label", num_rows=ROWS)


def test_values_that_are_gone_are_damage(store: Path) -> None:
    write(store)
    shutil.rmtree(store / TARGETS)
    with raises("cache.target_damaged", DamagedStoreError):
        read_target(store, "label", num_rows=ROWS)
    write(store)
    assert read_target(store, "label", num_rows=ROWS).digest == CLASSES.digest


def test_values_for_another_number_of_rows_are_damage(store: Path, tmp_path: Path) -> None:
    """Their checksums hold: they are those of another store."""
    write_target(store, "label", Target(values=np.arange(ROWS - 1), type="regression"), num_rows=ROWS - 1)
    with raises("cache.target_damaged", DamagedStoreError, store=store, name="label"):
        read_target(store, "label", num_rows=ROWS)
    assert [damage.file for damage in verify_store(store)] == [f"{POINTERS}/label.json"]
    with raises("cache.target_damaged", DamagedStoreError, store=store, name="label"):
        merge_stores([store])
    with raises("cache.target_damaged", DamagedStoreError, store=store, name="label"):
        export_hdf5(store, tmp_path / "a.h5")
    assert repair_store(store).dropped_targets == ("label",)
    assert verify_store(store) == []


def test_a_missing_target_names_those_that_are_there(store: Path) -> None:
    with raises("cache.target_missing", MissingTargetError, name="label", names="none"):
        read_target(store, "label", num_rows=ROWS)
    write(store, name="age")
    for name in ("label", "../../zarr", ""):
        with raises("cache.target_missing", MissingTargetError, name=name, names="age"):
            read_target(store, name, num_rows=ROWS)


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("../label", CLASSES),
        ("", CLASSES),
        ("label", Target(values=np.arange(5), type="multiclass")),
        ("label", Target(values=np.arange(ROWS), type="classes")),
        ("label", Target(values=np.array(["a"] * ROWS), type="multiclass")),
        ("label", Target(values=np.array(3), type="regression")),
        ("label", Target(values=np.zeros((ROWS, 2, 2)), type="regression")),
    ],
)
def test_what_is_no_target_is_refused_and_nothing_is_written(store: Path, name: str, target: Target) -> None:
    before = tree(store)
    with raises("cache.invalid_target", SpecError, store=store, name=repr(name), num_rows=str(ROWS)):
        write(store, target, name)
    assert tree(store) == before


def test_zarr_lists_and_reads_targets_without_a_warning(store: Path) -> None:
    write(store)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        members = dict(zarr.open_group(store, mode="r").members(max_depth=None))
    name = f"{TARGETS}/label.{CLASSES.digest[:8]}"
    assert [path for path in members if path.startswith(f"{TARGETS}/")] == [name]
    np.testing.assert_array_equal(members[name][...], CLASSES.values)  # type: ignore[index]
    assert members[name].attrs["class_names"] == ["a", "b", "ü"]


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_store_that_may_not_be_written_says_so(store: Path) -> None:
    store.chmod(0o555)
    with raises("cache.not_writable", NotWritableError):
        write(store)


def test_a_write_that_the_disk_refuses_leaves_the_old_target(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(store)

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch, raises("cache.not_writable", NotWritableError):
        patch.setattr(os, "replace", refuse)
        write(store, Target(values=CLASSES.values + 1, type="multiclass"))
    assert read_target(store, "label", num_rows=ROWS).digest == CLASSES.digest
    assert verify_store(store) == []


def test_targets_go_through_hdf5(store: Path, tmp_path: Path) -> None:
    write(store)
    write(store, Target(values=np.full(ROWS, np.nan), type="regression", source="x"), "age")
    export_hdf5(store, tmp_path / "a.h5")
    import_hdf5(tmp_path / "a.h5", tmp_path / "b.zarr")
    assert tree(tmp_path / "b.zarr") == tree(store)


def test_what_a_killed_writer_left_of_a_target_is_garbage_and_no_damage(store: Path) -> None:
    write(store)
    left = store / POINTERS / ".staging-4711" / "label.00000000"
    left.mkdir(parents=True)
    (left / "c.0").write_bytes(b"half")
    assert verify_store(store) == []
    (found,) = find_garbage(store.parent)
    assert found.path == left.parent
    remove_garbage([found])
    assert not left.parent.exists()
    assert read_target(store, "label", num_rows=ROWS).digest == CLASSES.digest
