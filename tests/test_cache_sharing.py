"""A cache that several people use: what may be deleted, and who may read and write its files."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import run
from messages import refuses
from small_stores import write_small_store
from token_stores import without_fsync  # noqa: F401

from layerbank.cache import find_garbage, remove_garbage
from layerbank.cache.writing.locking import StoreLock


@pytest.fixture
def stores(tmp_path: Path) -> list[Path]:
    """Two stores of one model."""
    return [write_small_store(tmp_path, num_rows=60, split=split).stores[0] for split in ("train", "test")]


def test_rm_lists_stores_with_sizes_and_deletes_them_on_request(stores: list[Path]) -> None:
    size_bytes = sum(file.stat().st_size for store in stores for file in store.rglob("*") if file.is_file())
    listed = run("cache", "rm", *stores)
    assert listed.exit_code == 0
    assert all(f"{store}: complete" in listed.stdout for store in stores)
    assert f"{size_bytes / 1000:.1f} kB can be freed with --delete" in listed.stdout
    assert all(store.exists() for store in stores)
    deleted = run("cache", "rm", stores[0], "--delete")
    assert deleted.exit_code == 0
    assert not list(stores[0].parent.glob(f"{stores[0].name}*"))  # with its lock
    assert stores[1].exists()


def test_rm_deletes_nothing_if_one_of_them_is_written_missing_or_no_store(stores: list[Path], tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").touch()
    refuses(run("cache", "rm", stores[0], tmp_path / "gone.zarr", "--delete"), "cache.store_missing")
    refuses(run("cache", "rm", stores[0], tmp_path / "photos", "--delete"), "cache.no_header")
    lock = StoreLock(stores[1])
    lock.acquire()
    result = run("cache", "rm", *stores, "--delete")
    lock.release()
    assert result.exit_code == 1
    assert str(stores[1]) in result.stderr
    assert all(store.exists() for store in stores)
    assert (tmp_path / "photos" / "a.png").exists()


def test_rm_deletes_a_damaged_store(stores: list[Path]) -> None:
    header = stores[0] / "zarr.json"
    header.write_bytes(header.read_bytes()[:-9])
    assert run("cache", "rm", stores[0], "--delete").exit_code == 0
    assert not stores[0].exists()


def test_gc_lists_complete_stores_that_were_not_read_for_long_and_deletes_them_on_request(stores: list[Path]) -> None:
    root, month_ago = stores[0].parent.parent, time.time() - 30 * 86400
    for file in (path for path in stores[0].rglob("*") if path.is_file()):
        os.utime(file, (month_ago, month_ago))
    arguments = ("cache", "gc", "--cache", root)
    assert "nothing to delete" in run(*arguments).stdout
    assert "nothing to delete" in run(*arguments, "--unused", "90d").stdout
    for _ in range(2):  # looking at stores does not use them
        listed = run(*arguments, "--unused", "7d").stdout
        assert f"{stores[0]}: its tokens have not been read or written for 30 days" in listed
        assert str(stores[1]) not in listed
        assert run("cache", "ls", "--cache", root).exit_code == 0
    lock = StoreLock(stores[0])
    lock.acquire()
    assert run(*arguments, "--unused", "7d", "--delete").stdout == "0 B freed\n"  # a process writes it
    lock.release()
    run(*arguments, "--unused", "7d", "--delete")
    assert not list(stores[0].parent.glob(f"{stores[0].name}*"))
    assert stores[1].exists()


def test_gc_keeps_a_store_that_was_read_since_it_was_listed(stores: list[Path]) -> None:
    root, month_ago = stores[0].parent.parent, time.time() - 30 * 86400
    files = [path for path in stores[0].rglob("*") if path.is_file()]
    for file in files:
        os.utime(file, (month_ago, month_ago))
    found = find_garbage(root, unused_for_s=7 * 86400)
    assert [one.path for one in found] == [stores[0]]
    for file in files:
        os.utime(file)
    assert remove_garbage(found) == 0
    assert stores[0].exists()
    refuses(run("cache", "gc", "--cache", root, "--unused", "1d"), "cache.unused_too_short")


def test_without_access_times_nothing_counts_as_unused(stores: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_flag=os.ST_NOATIME))
    root = stores[0].parent.parent
    refuses(run("cache", "gc", "--cache", root, "--unused", "7d"), "cache.no_access_times", path=root)
    assert run("cache", "gc", "--cache", root).exit_code == 0


@pytest.mark.parametrize("mask", [0o002, 0o027, 0o077])
def test_every_file_and_folder_of_a_store_has_the_permissions_of_the_umask(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        (store,) = write_small_store(tmp_path / "caches", num_rows=60).stores
        assert run("cache", "export", store, tmp_path / "store.h5").exit_code == 0
    finally:
        os.umask(before)
    made = [tmp_path / "store.h5", *(tmp_path / "caches").rglob("*")]
    assert any(path.name.endswith(".lock") for path in made)
    for path in made:
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~mask, path


def test_rm_names_files_that_do_not_belong_to_a_store_and_deletes_them_on_request_alone(stores: list[Path]) -> None:
    (stores[1] / "notes.txt").write_text("mine")
    (stores[0] / ".DS_Store").touch()
    assert "does not belong to it: notes.txt" in run("cache", "rm", *stores).stdout
    refuses(run("cache", "rm", *stores, "--delete"), "cache.foreign_in_store", store=stores[1], files="notes.txt")
    assert all(store.exists() for store in stores)
    answer = json.loads(run("cache", "rm", *stores, "--delete", "--remove-foreign", "--json").stdout)
    assert [(one["path"], one["foreign_files"]) for one in answer["stores"]] == [
        (str(stores[0]), []),
        (str(stores[1]), ["notes.txt"]),
    ]
    assert answer["freed_bytes"] == sum(one["size_bytes"] for one in answer["stores"])
    assert not any(store.exists() for store in stores)


def test_gc_keeps_a_store_with_files_that_do_not_belong_to_it(stores: list[Path]) -> None:
    root, month_ago = stores[0].parent.parent, time.time() - 30 * 86400
    (stores[0] / "notes.txt").write_text("mine")
    for file in (path for store in stores for path in store.rglob("*") if path.is_file()):
        os.utime(file, (month_ago, month_ago))
    assert [one.path for one in find_garbage(root, unused_for_s=7 * 86400)] == [stores[1]]
