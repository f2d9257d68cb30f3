"""A store goes through one HDF5 file and comes back with the same bytes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py  # type: ignore[import-untyped]
import numpy as np
import pytest
from commands import run
from messages import raises, refuses
from token_stores import (
    make_arrays,
    make_parity,
    make_rows,
    make_spec,
    tokens_of,
    tree,
    without_fsync,  # noqa: F401
    write_store,
)

from layerbank.cache import (
    DamagedStoreError,
    IncompleteStoreError,
    NotAStoreError,
    SpecError,
    Target,
    TokenStore,
    export_hdf5,
    find_garbage,
    import_hdf5,
    list_stores,
    read_hdf5_spec,
    write_target,
)


@pytest.mark.parametrize("storage_dtype", ["float16", "float32", "bfloat16", "bfloat16,cls=float32"])
def test_the_round_trip_is_exact(tmp_path: Path, storage_dtype: str) -> None:
    parity = {"tokens/final/cls": make_parity()}
    write_store(tmp_path / "a.zarr", make_spec(storage_dtype=storage_dtype), parity=parity)
    export_hdf5(tmp_path / "a.zarr", tmp_path / "a.h5")
    import_hdf5(tmp_path / "a.h5", tmp_path / "b.zarr")
    assert tree(tmp_path / "b.zarr") == tree(tmp_path / "a.zarr")


def test_any_hdf5_reader_finds_the_arrays_by_name(tmp_path: Path) -> None:
    write_store(tmp_path / "a.zarr")
    export_hdf5(tmp_path / "a.zarr", tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5") as file:
        for array in make_arrays():
            np.testing.assert_array_equal(file[array.name][...], tokens_of(array, make_rows().hashes))
            assert file[array.name].attrs["logical_dtype"] == "float16"
        np.testing.assert_array_equal(file["content_hashes"][...], make_rows().hashes)


def test_only_complete_arrays_are_exported(tmp_path: Path) -> None:
    arrays = make_arrays()
    write_store(tmp_path / "a.zarr", arrays=arrays[:3])
    before = tree(tmp_path / "a.zarr")
    write_store(tmp_path / "a.zarr", arrays=arrays, num_batches=9)
    export_hdf5(tmp_path / "a.zarr", tmp_path / "a.h5")
    import_hdf5(tmp_path / "a.h5", tmp_path / "b.zarr")
    assert tree(tmp_path / "b.zarr") == before


def test_an_incomplete_store_is_not_exported(tmp_path: Path) -> None:
    write_store(tmp_path / "a.zarr", num_batches=3)
    with raises("cache.store_incomplete", IncompleteStoreError, num_blocks=5, num_done=0):
        export_hdf5(tmp_path / "a.zarr", tmp_path / "a.h5")
    assert not list(tmp_path.glob("a.h5*"))


def test_a_file_that_was_altered_is_refused_and_leaves_no_store(tmp_path: Path) -> None:
    write_store(tmp_path / "a.zarr")
    export_hdf5(tmp_path / "a.zarr", tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["tokens/final/cls"][700, 3] += 1
    with raises("cache.hdf5_damaged", DamagedStoreError, file=tmp_path / "a.h5"):
        import_hdf5(tmp_path / "a.h5", tmp_path / "b.zarr")
    assert not (tmp_path / "b.zarr").exists()
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["journal"][90] += 1
    with raises("cache.hdf5_damaged", DamagedStoreError):
        import_hdf5(tmp_path / "a.h5", tmp_path / "b.zarr")


def without(name: str) -> Callable[[Any], None]:
    return lambda file: file.__delitem__(name)


def replaced(name: str, change: Callable[[Any], Any]) -> Callable[[Any], None]:
    def replace(file: Any) -> None:
        values, attributes = file[name][...], dict(file[name].attrs)
        del file[name]
        file[name] = change(values)
        file[name].attrs.update(attributes)

    return replace


def group_in_place_of(name: str) -> Callable[[Any], None]:
    def replace(file: Any) -> None:
        del file[name]
        file.create_group(name)

    return replace


def about(text: Any) -> Callable[[Any], None]:
    return lambda file: file["targets/label"].attrs.__setitem__("about", text)


@pytest.mark.parametrize(
    "damage",
    [
        *map(without, ("journal", "content_hashes", "tokens/final/cls", "sample_ids")),
        *map(group_in_place_of, ("journal", "content_hashes", "tokens/final/cls", "targets/label")),
        replaced("tokens/final/cls", lambda values: values[:5]),
        replaced("tokens/final/cls", lambda values: values.astype("f8")),
        replaced("content_hashes", lambda values: values.astype("f4")),
        replaced("content_hashes", lambda values: values + np.uint64(1)),
        replaced("sample_ids/offsets", lambda values: values * -1),
        replaced("journal", lambda values: values[:0]),
        replaced("journal", lambda values: values[:-1]),
        replaced("targets/label", lambda values: values[:5]),
        replaced("targets/label", lambda values: values.astype("S4")),
        *map(about, ('{"type": "multiclass"', '{"type": "multiclass", "x": 1}', '{"type": "classes"}', "[]", 7)),
    ],
)
def test_a_damaged_file_is_refused_and_leaves_nothing(tmp_path: Path, damage: Callable[[Any], None]) -> None:
    write_store(tmp_path / "a.zarr")
    write_target(tmp_path / "a.zarr", "label", Target(values=np.zeros(1200), type="regression"), num_rows=1200)
    export_hdf5(tmp_path / "a.zarr", tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        damage(file)
    result = run("cache", "import", tmp_path / "a.h5", "--cache", tmp_path / "cache")
    refuses(result, "cache.hdf5_damaged", exit_code=1, file=tmp_path / "a.h5")
    folders = [path for path in (tmp_path / "cache").rglob("*") if path.is_dir()]
    assert folders == [make_spec().path(tmp_path / "cache").parent]
    assert {path.suffix for path in (tmp_path / "cache").rglob("*") if path.is_file()} == {".lock"}


KILLED_IMPORT = """
import os, signal, sys
from layerbank.cache import CacheWriter, import_hdf5

append, calls = CacheWriter.append, []

def deadly(*arguments, **keywords):
    calls.append(1)
    if len(calls) == 9:
        os.kill(os.getpid(), signal.SIGKILL)
    append(*arguments, **keywords)

CacheWriter.append = deadly
import_hdf5(*sys.argv[1:])
"""


def test_an_interrupted_import_leaves_no_store_and_can_be_repeated(tmp_path: Path) -> None:
    write_store(tmp_path / "a.zarr")
    export_hdf5(tmp_path / "a.zarr", tmp_path / "a.h5")
    command = [sys.executable, "-c", KILLED_IMPORT, str(tmp_path / "a.h5"), str(tmp_path / "b.zarr")]
    killed = subprocess.run(command, check=False)
    assert killed.returncode < 0
    assert not (tmp_path / "b.zarr").exists()
    assert [found.path.name for found in find_garbage(tmp_path)] == ["b.zarr.lock", "b.zarr.new"]
    assert [store.path.name for store in list_stores(tmp_path)] == ["a.zarr"]
    import_hdf5(tmp_path / "a.h5", tmp_path / "b.zarr")
    assert tree(tmp_path / "b.zarr") == tree(tmp_path / "a.zarr")
    assert sorted(path.name for path in tmp_path.glob("b*")) == ["b.zarr", "b.zarr.lock"]


def test_the_spec_is_read_without_the_tokens(tmp_path: Path) -> None:
    write_store(tmp_path / "a.zarr")
    export_hdf5(tmp_path / "a.zarr", tmp_path / "a.h5")
    assert read_hdf5_spec(tmp_path / "a.h5") == make_spec()
    (tmp_path / "b.h5").write_text("text")
    with raises("cache.hdf5_unreadable", NotAStoreError):
        read_hdf5_spec(tmp_path / "b.h5")


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    write_store(tmp_path / "a.zarr")
    export_hdf5(tmp_path / "a.zarr", tmp_path / "a.h5")
    with raises("cache.path_taken", SpecError, path=tmp_path / "a.h5"):
        export_hdf5(tmp_path / "a.zarr", tmp_path / "a.h5")
    with raises("cache.path_taken", SpecError, path=tmp_path / "a.zarr"):
        import_hdf5(tmp_path / "a.h5", tmp_path / "a.zarr")


def test_a_file_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    with raises("cache.hdf5_missing", NotAStoreError, file=tmp_path / "a.h5"):
        import_hdf5(tmp_path / "a.h5", tmp_path / "b.zarr")
    (tmp_path / "a.h5").write_text("text")
    with raises("cache.hdf5_unreadable", NotAStoreError, file=tmp_path / "a.h5"):
        import_hdf5(tmp_path / "a.h5", tmp_path / "b.zarr")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["x"] = 1
    with raises("cache.other_hdf5", NotAStoreError, file=tmp_path / "b.h5"):
        import_hdf5(tmp_path / "b.h5", tmp_path / "b.zarr")


def test_an_export_that_fails_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_store(tmp_path / "a.zarr")

    def fail(*_: object) -> np.ndarray:
        raise KeyboardInterrupt

    monkeypatch.setattr("layerbank.cache.mapping.rows.ContiguousRows.read", fail)
    with pytest.raises(KeyboardInterrupt):
        export_hdf5(tmp_path / "a.zarr", tmp_path / "a.h5")
    assert not list(tmp_path.glob("a.h5*"))


def test_an_imported_store_reads_like_the_original(tmp_path: Path) -> None:
    write_store(tmp_path / "a.zarr")
    export_hdf5(tmp_path / "a.zarr", tmp_path / "a.h5")
    import_hdf5(tmp_path / "a.h5", tmp_path / "b.zarr")
    cache = TokenStore.open(tmp_path / "b.zarr", make_spec())
    assert cache.skipped == TokenStore.open(tmp_path / "a.zarr").skipped
    assert cache.sample_ids[17] == "image 17"
