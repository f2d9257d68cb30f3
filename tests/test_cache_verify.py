"""Verify finds every damage and names its rows; repair costs those rows and no others."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import run
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from messages import raises
from token_stores import (
    append,
    files_of,
    folders_of,
    make_arrays,
    make_spec,
    open_writer,
    tree,
    without_fsync,  # noqa: F401
    write_store,
)

from layerbank.cache import (
    DamagedStoreError,
    NotAStoreError,
    StoreLockedError,
    StoreMissingError,
    Target,
    TokenStore,
    list_stores,
    repair_store,
    verify_store,
    write_target,
)
from layerbank.cache.journal import JOURNAL_FOLDER, STAGING_PREFIX, WORKER_FILE
from layerbank.cache.maintenance.verify import find_unfinished_work, harmless_files
from layerbank.cache.targets import POINTERS
from layerbank.cache.writing.locking import LockOwner, lock_file, worker_file, write_owner

JOURNAL = f"{JOURNAL_FOLDER}/{WORKER_FILE}"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "a.zarr"
    write_store(path)
    return path


@pytest.fixture
def store(sound: Path, tmp_path: Path) -> Path:
    shutil.copytree(sound, tmp_path / "a.zarr")
    return tmp_path / "a.zarr"


def flip(file: Path, offset: int, bit: int = 0) -> None:
    raw = bytearray(file.read_bytes())
    raw[offset % len(raw)] ^= 1 << bit
    file.write_bytes(raw)


def test_a_sound_store_has_no_damage(sound: Path) -> None:
    assert verify_store(sound) == []


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_in_any_file_is_found_and_named(store: Path, data: st.DataObject) -> None:
    file = data.draw(st.sampled_from(list(files_of(store))), "file")
    before = file.read_bytes()
    flip(file, data.draw(st.integers(0, len(before) - 1), "offset"), data.draw(st.integers(0, 7), "bit"))
    try:
        name = file.relative_to(store).as_posix()
        assert name in [damage.file for damage in verify_store(store)]
    finally:
        file.write_bytes(before)


def test_a_flipped_bit_anywhere_in_header_journal_or_metadata_is_found(store: Path) -> None:
    random.seed(1)
    for name in ("zarr.json", JOURNAL, "tokens/final/cls/zarr.json", "content_hashes/zarr.json"):
        before = (store / name).read_bytes()
        for offset in range(0, len(before), 23 if name == "zarr.json" else 13):
            flip(store / name, offset, random.randrange(8))
            assert name in [damage.file for damage in verify_store(store)], offset
            (store / name).write_bytes(before)


def test_every_kind_of_damage_is_named_with_level_kind_and_rows(store: Path) -> None:
    flip(store / "tokens/norm2/block.0/grid2/c.1.0.0", 999)
    (store / "tokens/final/cls/c.2.0").unlink()
    (store / "tokens/final/grid2/c.4.0.0").write_bytes(b"short")
    shutil.copy(store / "tokens/final/cls/c.0.0", store / "tokens/norm2/block.0/cls/c.0.0")
    (store / "tokens/final/cls/c.9.0").write_bytes(b"")
    (store / "tokens/notes.txt").write_text("mine")
    damages = verify_store(store)
    assert [str(damage) for damage in damages] == [
        "tokens/norm2/block.0/cls/c.0.0 (rows 0 to 240): altered",
        "tokens/norm2/block.0/grid2/c.1.0.0 (rows 240 to 480): altered",
        "tokens/final/cls/c.2.0 (rows 480 to 720): missing",
        "tokens/final/grid2/c.4.0.0 (rows 960 to 1200): 5 bytes instead of 15364",
        "tokens/final/cls/c.9.0: does not belong to the store",
        "tokens/notes.txt: does not belong to the store",
    ]
    assert [(d.level, d.kind, d.rows) for d in damages[:4]] == [
        ("block.0", "cls", range(240)),
        ("block.0", "grid2", range(240, 480)),
        ("final", "cls", range(480, 720)),
        ("final", "grid2", range(960, 1200)),
    ]
    assert (damages[-1].level, damages[-1].kind, damages[-1].rows) == (None, None, None)


def test_only_the_arrays_asked_for_are_read_but_all_else_is_checked(store: Path) -> None:
    flip(store / "tokens/norm2/block.0/cls/c.1.0", 999)
    flip(store / "tokens/final/cls/c.2.0", 999)
    flip(store / "tokens/norm2/block.0/cls/zarr.json", 9)
    found = verify_store(store, only=[("final", "cls")])
    assert [damage.file for damage in found] == ["tokens/norm2/block.0/cls/zarr.json", "tokens/final/cls/c.2.0"]


def test_a_line_missing_from_the_journal_is_named_with_its_rows(store: Path) -> None:
    lines = (store / JOURNAL).read_bytes().splitlines(keepends=True)
    (store / JOURNAL).write_bytes(b"".join(lines[:3] + lines[4:]))
    assert {(d.problem, d.rows) for d in verify_store(store)} == {("not in the journal", range(720, 960))}


def test_a_damaged_header_is_named_and_nothing_else_is_claimed(store: Path) -> None:
    flip(store / "zarr.json", 400)
    assert [str(d) for d in verify_store(store)] == ["zarr.json: altered; without it nothing else can be checked"]
    (store / "zarr.json").unlink()
    assert [str(d) for d in verify_store(store)] == ["zarr.json: missing; without it nothing else can be checked"]
    with raises("cache.header_lost", DamagedStoreError):
        repair_store(store)


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with raises("cache.store_missing", StoreMissingError):
        verify_store(tmp_path / "a.zarr")
    with raises("cache.no_header", NotAStoreError):
        verify_store(tmp_path)


def lines_of(store: Path) -> list[bytes]:
    return (store / JOURNAL).read_bytes().splitlines(keepends=True)


IRREGULAR: dict[str, Callable[[Path], object]] = {
    "swapped": lambda store: (store / JOURNAL).write_bytes(b"".join(reversed(lines_of(store)))),
    "repeated": lambda store: (store / JOURNAL).write_bytes(b"".join([*lines_of(store), lines_of(store)[0]])),
    "an empty file": lambda store: (store / JOURNAL_FOLDER / "worker-3.jsonl").touch(),
    "another file": lambda store: (store / JOURNAL_FOLDER / "worker-3.jsonl").write_bytes(lines_of(store)[0]),
    "split in two": lambda store: [
        (store / JOURNAL_FOLDER / "worker-1.jsonl").write_bytes(b"".join(lines_of(store)[2:])),
        (store / JOURNAL).write_bytes(b"".join(lines_of(store)[:2])),
    ],
}


@pytest.mark.parametrize("kind", IRREGULAR)
def test_an_irregular_journal_of_a_complete_store_is_reported_and_costs_no_row(
    kind: str, store: Path, sound: Path
) -> None:
    IRREGULAR[kind](store)
    damages = verify_store(store)
    assert {damage.file.rpartition("/")[0] for damage in damages} == {JOURNAL_FOLDER}
    assert TokenStore.open(store).notes == TokenStore.open(sound).notes
    repaired = repair_store(store)
    assert (repaired.num_rows, repaired.restored_later) == (0, tuple(damages))
    assert tree(store) == tree(sound)


def test_an_empty_journal_of_a_complete_store_costs_its_rows(store: Path, sound: Path) -> None:
    (store / JOURNAL).write_bytes(b"")
    assert {damage.problem for damage in verify_store(store)} == {"not in the journal"}
    assert repair_store(store).num_rows == make_spec().num_rows
    write_store(store)
    assert tree(store) == tree(sound)


def test_what_killed_processes_left_is_reported_and_removed_unless_a_process_writes(store: Path, sound: Path) -> None:
    name = store.name
    beside = [f"{name}.new", f"{name}.old", f"{name}.worker-3.lock", f"{name}.lock"]
    inside = [f"{JOURNAL_FOLDER}/{STAGING_PREFIX}zarr.json", f"{POINTERS}/.staging-7"]
    for folder in (store.with_name(beside[0]), store.with_name(beside[1]), store / inside[1]):
        folder.mkdir(parents=True)
    (store / inside[0]).touch()
    write_owner(worker_file(store, 3), replace(LockOwner.this_process(), pid=2**22 + 1))
    write_owner(lock_file(store), replace(LockOwner.this_process(), pid=2**22 + 1))
    expected = [*(f"../{one}" for one in beside), *inside]
    assert [damage.file for damage in find_unfinished_work(store)] == expected
    assert run("cache", "verify", store).exit_code == 1
    lock = FileLock(lock_file(store))
    with lock:
        assert find_unfinished_work(store) == []
    assert verify_store(store) == []
    assert [damage.file for damage in repair_store(store).left_behind] == expected
    assert find_unfinished_work(store) == []
    assert run("cache", "verify", store).exit_code == 0
    (store / POINTERS).rmdir()
    assert tree(store) == tree(sound)


def test_an_unfinished_store_that_no_process_writes_is_not_sound(tmp_path: Path) -> None:
    store = tmp_path / "a.zarr"
    write_store(store, num_batches=9)
    (found,) = find_unfinished_work(store)
    assert found.problem == "the store is not finished: 2 of 5 row blocks"
    assert run("cache", "verify", store).exit_code == 1
    write_store(store)
    assert run("cache", "verify", store).exit_code == 0


def test_a_store_that_is_still_written_has_no_damage(tmp_path: Path) -> None:
    for num_batches in (0, 3, 9):
        with open_writer(tmp_path / "a.zarr", make_spec(), make_arrays()) as writer:
            for batch in writer.pending()[:num_batches]:
                append(writer, batch)
            assert verify_store(tmp_path / "a.zarr") == []
            assert find_unfinished_work(tmp_path / "a.zarr") == []
    raw = (tmp_path / "a.zarr" / JOURNAL).read_bytes()
    (tmp_path / "a.zarr" / JOURNAL).write_bytes(raw + raw[:30])  # as a killed writer leaves it
    assert verify_store(tmp_path / "a.zarr") == []


def test_repair_computes_the_damaged_rows_again_and_no_others(store: Path, sound: Path) -> None:
    flip(store / "tokens/norm2/block.0/grid2/c.1.0.0", 999)
    (store / "tokens/final/cls/c.1.0").unlink()
    (store / "tokens/final/cls/c.4.0").write_bytes(b"short")
    repair = repair_store(store)
    assert len(repair.dropped) == 3
    assert (repair.restored_later, repair.foreign, repair.num_rows) == ((), (), 480)
    again = {(batch.block, tuple(array.name for array in batch.arrays)) for batch in write_store(store)}
    assert again == {(1, ("tokens/norm2/block.0/grid2", "tokens/final/cls")), (4, ("tokens/final/cls",))}
    assert tree(store) == tree(sound)
    assert verify_store(store) == []


def test_between_repair_and_extraction_the_sound_arrays_are_readable(store: Path) -> None:
    flip(store / "tokens/final/cls/c.1.0", 5)
    repair_store(store)
    cache = TokenStore.open(store)
    assert set(cache.arrays) == {("block.0", "cls"), ("block.0", "grid2"), ("final", "grid2")}
    assert verify_store(store) == []


def test_damaged_content_hashes_make_a_store_unreadable_and_cost_no_row(store: Path, sound: Path) -> None:
    flip(store / "content_hashes/c.0", 5)
    assert repair_store(store).num_rows == 0
    with raises("cache.store_damaged", DamagedStoreError, damages="content_hashes/c.0 (rows 0 to 1200): altered"):
        TokenStore.open(store)
    assert write_store(store) == []
    assert tree(store) == tree(sound)


def test_a_damaged_journal_line_costs_its_block(store: Path, sound: Path) -> None:
    raw = (store / JOURNAL).read_bytes()
    flip(store / JOURNAL, raw.index(b"\n") + 40)
    assert repair_store(store).num_rows == 240
    assert {batch.block for batch in write_store(store)} == {1}
    assert tree(store) == tree(sound)


@pytest.mark.parametrize("file", ["content_hashes/c.0", "sample_ids/bytes/zarr.json"])
def test_what_is_written_once_costs_no_row(store: Path, sound: Path, file: str) -> None:
    flip(store / file, 3)
    repair = repair_store(store)
    assert [damage.file for damage in repair.restored_later] == [file]
    assert repair.num_rows == 0
    assert write_store(store) == []
    assert tree(store) == tree(sound)


def test_foreign_files_are_deleted_only_on_request(store: Path, sound: Path) -> None:
    (store / "tokens/notes.txt").write_text("mine")
    assert [damage.file for damage in repair_store(store).foreign] == ["tokens/notes.txt"]
    assert (store / "tokens/notes.txt").exists()
    repair_store(store, remove_foreign=True)
    assert tree(store) == tree(sound)


@pytest.mark.parametrize("kind", ["folder", "pipe", "link to nothing"])
@pytest.mark.parametrize("worker", [0, 7])
def test_a_journal_that_is_no_file_is_reported_and_not_waited_for(store: Path, kind: str, worker: int) -> None:
    file = store / JOURNAL_FOLDER / f"worker-{worker}.jsonl"
    file.unlink(missing_ok=True)
    {"folder": file.mkdir, "pipe": lambda: os.mkfifo(file), "link to nothing": lambda: file.symlink_to("nothing")}[
        kind
    ]()
    assert f"{JOURNAL_FOLDER}/{file.name}" in {damage.file for damage in verify_store(store)}
    assert store in {info.path for info in list_stores(store.parents[1])}


def test_what_file_managers_leave_is_no_damage(store: Path) -> None:
    places = [
        ".DS_Store",
        "tokens/final/cls/Thumbs.db",
        "sample_ids/._zarr.json",
        "content_hashes/.journal/desktop.ini",
    ]
    for place in places:
        (store / place).touch()
    assert verify_store(store) == []
    assert repair_store(store).foreign == ()
    assert harmless_files(store) == sorted(store / place for place in places)
    shown = run("cache", "verify", store)
    assert shown.exit_code == 0
    assert "harmless, written by a file manager: tokens/final/cls/Thumbs.db" in shown.stdout


@pytest.mark.parametrize("place", ["extra", "tokens/extra", "targets", "content_hashes/.targets", "sample_ids/x/y"])
def test_foreign_folders_links_and_files_are_found_everywhere(store: Path, sound: Path, place: str) -> None:
    if "targets" in place:
        target = Target(values=np.zeros(make_spec().num_rows, np.int64), type="ordinal")
        for one in (store, sound):
            write_target(one, "label", target, num_rows=make_spec().num_rows)
    empty, file, link = (store / place / name for name in ("empty", "notes.txt", "link"))
    empty.mkdir(parents=True)
    file.write_text("mine")
    link.symlink_to(store.parent)
    expected = sorted(one.relative_to(store).as_posix() for one in (empty, file, link))
    assert [damage.file for damage in verify_store(store)] == expected
    assert [damage.file for damage in repair_store(store, remove_foreign=True).foreign] == expected
    assert verify_store(store) == []
    assert tree(store) == tree(sound)


@pytest.mark.parametrize("file", ["", "zarr.json"])
@pytest.mark.parametrize("place", ["tokens/final/grid8", "tokens/block", "tokens/block/block.3"])
def test_an_array_that_was_about_to_be_added_is_named_and_removed(
    store: Path, sound: Path, place: str, file: str
) -> None:
    (store / place).mkdir(parents=True)
    if file:
        (store / place / file).write_text("{}")
    expected = [f"{place}/{file}".rstrip("/")]
    assert verify_store(store) == []
    assert [damage.file for damage in find_unfinished_work(store)] == expected
    assert [damage.file for damage in repair_store(store).left_behind] == expected
    assert find_unfinished_work(store) == []
    assert folders_of(store) == folders_of(sound)


@pytest.mark.parametrize("content", [[], ["notes.txt"]], ids=["empty", "with a file"])
@pytest.mark.parametrize("file", ["tokens/final/cls/c.1.0", "tokens/final/cls/zarr.json", "sample_ids/bytes/c.0"])
def test_a_folder_in_the_place_of_a_file_is_repaired(store: Path, sound: Path, file: str, content: list[str]) -> None:
    (store / file).unlink()
    (store / file).mkdir()
    for name in content:
        (store / file / name).write_text("mine")
    assert file in {damage.file for damage in verify_store(store)}
    repaired = repair_store(store)
    assert [damage.file for damage in repaired.foreign] == [f"{file}/{name}" for name in content]
    if content:
        assert (store / file / "notes.txt").read_text() == "mine"
        repair_store(store, remove_foreign=True)
    write_store(store)
    assert verify_store(store) == []
    assert tree(store) == tree(sound)


def test_repairing_a_sound_store_changes_nothing(store: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in files_of(store)}
    assert repair_store(store).num_rows == 0
    assert {file: file.stat().st_mtime_ns for file in files_of(store)} == before


def test_a_store_that_is_being_written_is_not_repaired(store: Path) -> None:
    with open_writer(store, make_spec(), make_arrays()), raises("cache.store_locked", StoreLockedError):
        repair_store(store)


def test_a_damaged_header_is_beyond_repair_and_says_so(store: Path) -> None:
    flip(store / "zarr.json", 400)
    with raises("cache.header_damaged", DamagedStoreError, file=store / "zarr.json"):
        repair_store(store)
