"""Several workers, one store: the same bytes for any number of them, whichever of them dies."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import run
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
    IncompleteStoreError,
    SpecError,
    StoreLockedError,
    TokenStore,
    Worker,
    find_garbage,
    read_store_info,
    remove_garbage,
    repair_store,
    verify_store,
)
from layerbank.cache.journal import JOURNAL_FOLDER
from layerbank.cache.writing.locking import is_locked, worker_file, worker_files
from layerbank.cache.writing.workers import WorkerLock

ROOT = Path(__file__).parent.parent
# one worker in a process of its own: store, index, count, seconds before each batch
WORKER = f"""
import sys; sys.path.insert(0, {str(ROOT / "tests")!r})
import os, time
from pathlib import Path
os.fsync = lambda fd: None
from layerbank.cache import Worker
from token_stores import append, make_arrays, make_spec, open_writer
store, index, count, pause_s = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
with open_writer(store, make_spec(), make_arrays(), worker=Worker(index, count)) as writer:
    print("joined", flush=True)
    while batches := writer.claim():
        for batch in batches:
            time.sleep(pause_s)
            append(writer, batch)
    writer.complete()
"""


def start(store: Path, index: int, count: int, pause_s: float = 0.0) -> subprocess.Popen[bytes]:
    arguments = [str(store), str(index), str(count), str(pause_s)]
    return subprocess.Popen([sys.executable, "-c", WORKER, *arguments], stdout=subprocess.PIPE)


def join(*workers: subprocess.Popen[bytes]) -> None:
    for worker in workers:
        worker.communicate(timeout=60)
        assert worker.returncode == 0


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def write_share(store: Path, worker: Worker, **changes: object) -> tuple[list[int], bool]:
    """All that one worker may write: its blocks, and whether the store was complete then."""
    blocks: list[int] = []
    arrays = changes.pop("arrays", make_arrays())
    with open_writer(store, make_spec(), arrays, worker=worker, **changes) as writer:  # type: ignore[arg-type]
        while batches := writer.claim():
            blocks += dict.fromkeys(batch.block for batch in batches)
            for batch in batches:
                append(writer, batch)
        return blocks, writer.complete()


def without_help(worker: int, count: int) -> Worker:
    """A worker that keeps to its share, as with `--shard`."""
    return Worker(worker, count, helps=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("alone") / "a.zarr"
    write_store(path)
    return path


def assert_same(store: Path, finished: Path) -> None:
    assert tree(store) == tree(finished)
    assert folders_of(store) == folders_of(finished)
    assert {path.name for path in store.parent.iterdir()} <= {store.name, f"{store.name}.lock"}


@pytest.mark.parametrize("count", [1, 2, 4])
def test_any_number_of_processes_leaves_the_bytes_that_one_leaves(tmp_path: Path, finished: Path, count: int) -> None:
    store = tmp_path / "a.zarr"
    join(*[start(store, index, count, 0.01) for index in range(count)])
    assert_same(store, finished)
    assert verify_store(store) == []


def test_the_blocks_of_a_killed_worker_are_taken_over_by_one_that_lives(tmp_path: Path, finished: Path) -> None:
    store = tmp_path / "a.zarr"
    killed = start(store, 1, 2, 0.2)
    wait_until(lambda: any((store / JOURNAL_FOLDER).glob("aside~tokens*")))
    other = start(store, 0, 2)
    wait_until(lambda: worker_file(store, 0).exists())
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    join(other)
    assert_same(store, finished)


def test_what_killed_workers_leave_is_finished_by_another_number_of_them(tmp_path: Path, finished: Path) -> None:
    store = tmp_path / "a.zarr"
    for count in (3, 2):
        workers = [start(store, index, count, 0.03) for index in range(count)]
        done = read_store_info(store).num_blocks_done if store.exists() else 0
        wait_until(lambda done=done: store.exists() and read_store_info(store).num_blocks_done > done)  # type: ignore[misc]
        for worker in workers:
            worker.send_signal(signal.SIGKILL)
            worker.communicate()
        assert not is_locked(store)
    join(*[start(store, index, 3) for index in range(3)])
    assert_same(store, finished)


def test_shards_one_after_the_other_make_one_store_and_each_keeps_to_its_own(tmp_path: Path, finished: Path) -> None:
    store = tmp_path / "a.zarr"
    assert write_share(store, without_help(0, 2)) == ([0, 2, 4], False)
    info = read_store_info(store)
    assert (info.state, info.num_blocks_done, info.num_blocks) == ("writing", 3, 5)
    assert info.missing_rows == [range(240, 480), range(720, 960)]
    with raises("cache.store_incomplete", IncompleteStoreError, num_done=3, num_blocks=5):
        TokenStore.open(store)
    assert write_share(store, without_help(0, 2)) == ([], False)
    assert write_share(store, without_help(1, 2)) == ([1, 3], True)
    assert_same(store, finished)


def test_a_shard_that_another_run_has_finished_is_not_computed_again(tmp_path: Path, finished: Path) -> None:
    store = tmp_path / "a.zarr"
    write_store(store, num_batches=8)  # alone, blocks 0 and 1
    assert write_share(store, without_help(0, 2)) == ([2, 4], False)
    assert [batch.block for batch in write_store(store)] == [3] * 4
    assert_same(store, finished)


def test_each_worker_writes_a_journal_of_its_own_until_one_completes_the_store(tmp_path: Path) -> None:
    store = tmp_path / "a.zarr"
    write_share(store, without_help(0, 3))
    write_share(store, without_help(1, 3))
    journals = (store / JOURNAL_FOLDER).glob("worker-*")
    assert {file.name for file in journals} == {"worker-0.jsonl", "worker-1.jsonl"}
    write_share(store, without_help(2, 3))
    assert {file.name for file in (store / JOURNAL_FOLDER).iterdir()} == {"worker-0.jsonl"}


def test_two_workers_that_finish_at_once_complete_the_store_once(tmp_path: Path, finished: Path) -> None:
    store = tmp_path / "a.zarr"
    writers = [open_writer(store, make_spec(), make_arrays(), worker=without_help(index, 2)) for index in range(2)]
    for writer in writers:
        for batch in writer.claim():
            append(writer, batch)
    barrier, results = threading.Barrier(2), []

    def complete(index: int) -> None:
        barrier.wait()
        results.append(writers[index].complete())

    threads = [threading.Thread(target=complete, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for writer in writers:
        writer.close()
    assert results == [True, True]
    assert_same(store, finished)


def test_a_worker_is_refused_beside_a_single_writer(tmp_path: Path) -> None:
    store = tmp_path / "a.zarr"
    with open_writer(store, make_spec(), make_arrays()), raises("cache.store_locked", StoreLockedError, store=store):
        write_share(store, Worker(0, 2))


def test_a_single_writer_is_refused_beside_workers_and_the_error_names_one(tmp_path: Path) -> None:
    store = tmp_path / "a.zarr"
    with open_writer(store, make_spec(), make_arrays(), worker=Worker(1, 2)) as writer:
        writer.claim()
        with raises("cache.store_locked", StoreLockedError) as refused:
            write_store(store)
        assert re.match(rf"process {os.getpid()} on .* as worker 1/2: ", refused.error.values["owner"])
        with raises("cache.store_locked", StoreLockedError):
            repair_store(store)
        assert find_garbage(tmp_path) == []
        assert [owner.worker for owner in read_store_info(store).owners] == ["1/2"]
        assert read_store_info(store).owners[0].blocks == (1,)
    assert read_store_info(store).owners == ()


@pytest.mark.parametrize("other", [Worker(0, 2), Worker(1, 3)])
def test_the_same_worker_twice_and_workers_of_another_number_are_refused(tmp_path: Path, other: Worker) -> None:
    store = tmp_path / "a.zarr"
    with (
        open_writer(store, make_spec(), make_arrays(), worker=Worker(0, 2)),
        raises("cache.store_locked", StoreLockedError) as refused,
    ):
        write_share(store, other)
    assert " as worker 0/2: " in refused.error.values["owner"]


@pytest.mark.parametrize(("index", "count"), [(2, 2), (-1, 2), (0, 0)])
def test_a_worker_has_a_number_below_their_count(index: int, count: int) -> None:
    with raises("cache.invalid_worker", SpecError, index=index, count=count):
        Worker(index, count)


def test_workers_of_different_arrays_do_not_lose_each_others_lines(tmp_path: Path, finished: Path) -> None:
    store = tmp_path / "a.zarr"
    arrays = make_arrays()
    with open_writer(store, make_spec(), arrays, worker=Worker(1, 2)) as slow:
        (first, *_) = slow.claim()
        append(slow, first)  # block 1 is under way while the other completes its arrays
        blocks, complete = write_share(store, without_help(0, 2), arrays=arrays[:2])
        assert (blocks, complete) == ([0, 2, 4], False)
        for batch in slow.pending():
            append(slow, batch)
        while batches := slow.claim():
            for batch in batches:
                append(slow, batch)
        assert slow.complete()
    assert_same(store, finished)


def test_arrays_are_added_by_workers_to_a_store_that_one_made(tmp_path: Path, finished: Path) -> None:
    store = tmp_path / "a.zarr"
    write_store(store, arrays=make_arrays()[:2])
    join(*[start(store, index, 2) for index in range(2)])
    assert_same(store, finished)


def test_a_torn_line_of_a_worker_that_was_killed_costs_that_block_only(tmp_path: Path, finished: Path) -> None:
    store = tmp_path / "a.zarr"
    write_share(store, without_help(0, 3))
    write_share(store, without_help(1, 3))
    journal = store / JOURNAL_FOLDER / "worker-1.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])
    with open_writer(
        store, make_spec(), make_arrays(), worker=without_help(0, 3)
    ):  # one that lives: no worker looks for damage
        assert write_share(store, without_help(1, 3)) == ([4], False)
        assert write_share(store, without_help(2, 3)) == ([2], True)
    assert_same(store, finished)


def test_the_lock_of_a_killed_worker_is_garbage_and_goes_with_the_next_writer(tmp_path: Path) -> None:
    store = tmp_path / "a.zarr"
    write_store(store)
    worker_file(store, 3).write_text("{}")
    (garbage,) = find_garbage(tmp_path)
    assert (garbage.path, garbage.reason) == (worker_file(store, 3), "the lock of a worker that was killed")
    remove_garbage([garbage])
    assert worker_files(store) == {}
    worker_file(store, 3).write_text("{}")
    with open_writer(store, make_spec(), make_arrays()):
        assert worker_files(store) == {}


def test_a_file_named_like_the_lock_of_a_worker_is_none(tmp_path: Path) -> None:
    store = tmp_path / "a.zarr"
    write_store(store)
    for number in ("x", "1x", "", "-1"):
        store.with_name(f"a.zarr.worker-{number}.lock").write_text("{}")
    assert worker_files(store) == {}
    assert not is_locked(store)
    with open_writer(store, make_spec(), make_arrays()):
        pass
    assert run("cache", "ls", "--cache", tmp_path).exit_code == 0


def test_leaving_frees_the_claimed_row_blocks(tmp_path: Path) -> None:
    store = tmp_path / "a.zarr"
    first, second = WorkerLock(store, Worker(0, 2)), WorkerLock(store, Worker(1, 2))
    first.acquire()
    second.acquire()
    first.claim([0, 2])
    assert (first.claimed_by_others(), second.claimed_by_others()) == (set(), {0, 2})
    first.release()
    assert second.claimed_by_others() == set()
    assert second.others() == {}
    second.release()
    assert list(files_of(tmp_path)) == [tmp_path / "a.zarr.lock"]
