"""Several processes at one store: from one command, from torchrun, from shards; the bytes are those of one process."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from commands import MODEL, run, start, wait_until_at_work
from groups import has_ended, living_in_group
from messages import raises, refuses
from photos import write_photos
from token_stores import tree

from layerbank.cache import SpecError, Worker
from layerbank.cache.writing.locking import is_locked
from layerbank.errors import Message, WorkError
from layerbank.events import (
    Event,
    ExtractionFinished,
    ExtractionProgress,
    ExtractionStarted,
    ImageSkipped,
    OnEvent,
    RowsFound,
    TokensOutOfRange,
    WorkerLost,
)
from layerbank.executors.local import LocalExecutor, interrupts_wait
from layerbank.executors.workers import Relay, run_workers

ROOT = Path(__file__).parent.parent
STORE = Path("a.zarr")
FOUND = RowsFound(
    backbone="m", dataset="d", split="train", num_rows=2, num_views=0, num_found=2, num_missing=0, num_unreadable=0, stores=()
)  # fmt: skip


def store_in(root: Path) -> Path:
    (store,) = root.rglob("*.zarr")
    return store


def test_one_of_two_processes_is_killed_and_the_other_leaves_the_bytes_of_one_alone(
    extract_arguments: tuple[str, ...], extracted_store: Path, tmp_path: Path
) -> None:
    command = start(*extract_arguments, "--processes", "2", "--cache", tmp_path)
    store = tmp_path / extracted_store.relative_to(extracted_store.parents[1])
    owner = wait_until_at_work(command, store)
    os.kill(owner.pid, signal.SIGKILL)
    _, said = command.communicate(timeout=120)
    assert command.returncode == 0, said
    assert f"warning: worker {owner.worker} was lost (killed by SIGKILL); 1 left to take over its rows" in said
    assert "600 of 600 images" in said
    assert tree(store) == tree(extracted_store)


def test_ctrl_c_ends_all_processes_and_the_next_run_goes_on_to_the_same_bytes(
    extract_arguments: tuple[str, ...], extracted_store: Path, tmp_path: Path
) -> None:
    store = tmp_path / extracted_store.relative_to(extracted_store.parents[1])
    command = start(*extract_arguments, "--processes", "2", "--cache", tmp_path, in_a_group_of_its_own=True)
    wait_until_at_work(command, store)
    began = time.monotonic()
    os.killpg(command.pid, signal.SIGINT)
    said = command.communicate(timeout=60)[1]
    assert time.monotonic() - began < 30
    assert command.returncode == 130, said
    assert " ".join(said.split("layerbank: ")[1].split()).startswith("interrupted do Run the same command again")
    assert "Traceback" not in said
    assert has_ended(command.pid)
    assert not is_locked(store)
    again = run(*extract_arguments, "--cache", tmp_path)
    assert again.exit_code == 0, again.stderr
    assert tree(store) == tree(extracted_store)


def test_ctrl_c_while_processes_start_ends_them_too(extract_arguments: tuple[str, ...], tmp_path: Path) -> None:
    command = start(*extract_arguments, "--processes", "2", "--cache", tmp_path, in_a_group_of_its_own=True)
    while len(living_in_group(command.pid)) < 4:  # the command, the tracker of its resources, two workers
        assert command.poll() is None
        time.sleep(0.01)
    os.killpg(command.pid, signal.SIGINT)
    said = command.communicate(timeout=60)[1]
    assert command.returncode == 130, said
    assert "interrupted" in said
    assert "Traceback" not in said
    assert has_ended(command.pid)


def test_an_interrupt_that_another_thread_hears_waits_too() -> None:
    done, reached = threading.Event(), []
    other = threading.Thread(target=done.wait)
    other.start()
    try:
        with pytest.raises(KeyboardInterrupt), interrupts_wait():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)  # the other thread hears it; the interpreter would raise it here
            reached.append(True)
    finally:
        done.set()
        other.join()
    assert reached
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


@pytest.mark.slow
def test_two_ranks_of_torchrun_leave_the_bytes_of_one_process(
    extract_arguments: tuple[str, ...], extracted_store: Path, tmp_path: Path
) -> None:
    ranks = [
        start(*extract_arguments, "--cache", tmp_path, RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2")
        for rank in ("0", "1")
    ]
    for rank in ranks:
        _, said = rank.communicate(timeout=120)
        assert rank.returncode == 0, said
    assert tree(store_in(tmp_path)) == tree(extracted_store)


def test_a_shard_alone_says_what_is_missing_and_the_next_completes_the_store(
    extract_arguments: tuple[str, ...], extracted_store: Path, tmp_path: Path
) -> None:
    first = run(*extract_arguments, "--cache", tmp_path, "--shard", "0/2")
    assert first.exit_code == 0
    store = store_in(tmp_path)
    said = " ".join(first.stderr.split())
    assert (
        f"worker 0/2 has finished its share; {store} is not complete: 296 rows of other workers still missing" in said
    )
    info = run("cache", "info", store).stdout
    assert "state: writing" in info
    assert "missing_rows: 304 to 599" in info
    second = run(*extract_arguments, "--cache", tmp_path, "--shard", "1/2")
    assert second.exit_code == 0
    assert tree(store) == tree(extracted_store)


@pytest.mark.slow
def test_processes_may_begin_anew_but_shards_may_not(
    extract_arguments: tuple[str, ...], extracted_store: Path, tmp_path: Path
) -> None:
    assert run(*extract_arguments, "--cache", tmp_path).exit_code == 0
    refused = run(*extract_arguments, "--cache", tmp_path, "--shard", "0/2", "--overwrite")
    refuses(refused, "extraction.worker_overwrites", worker="0/2")
    again = run(*extract_arguments, "--cache", tmp_path, "--processes", "2", "--overwrite")
    assert again.exit_code == 0, again.stderr
    assert "600 of 600 images" in again.stderr
    assert tree(store_in(tmp_path)) == tree(extracted_store)
    assert not is_locked(store_in(tmp_path))
    reused = run(*extract_arguments, "--cache", tmp_path, "--processes", "2")
    assert reused.stderr.count("600 in the cache, 0 to compute") == 1


def test_the_error_of_one_process_is_the_error_of_the_command(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", {"train": 200})
    next(file for file in sorted(photos.rglob("*")) if file.is_file()).write_bytes(b"no image")
    arguments = ("extract", *MODEL, "--data", f"folder:{photos}", "--split", "train", "--levels", "last")
    failed = run(*arguments, "--cache", tmp_path / "caches", "--processes", "2")
    assert failed.exit_code == 1
    assert "--on-bad-image skip" in failed.stderr
    assert not is_locked(store_in(tmp_path / "caches"))


def die(worker: Worker, on_event: OnEvent) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def reuse_or_die(worker: Worker, on_event: OnEvent) -> None:
    on_event(FOUND)
    if worker.index == 1:
        die(worker, on_event)


def refuse(worker: Worker, on_event: OnEvent) -> None:
    if worker.index == 0:
        time.sleep(60)  # ended long before by the error of the other
    raise SpecError(Message(where="{store}", expected="this", got="that", todo="Do it."), store=STORE)


def test_all_processes_killed_is_failed_work_that_may_be_taken_up_again() -> None:
    with raises("executors.workers_lost", WorkError, count=2, reason="killed by SIGKILL"):
        run_workers(die, LocalExecutor(2), print)


def test_a_killed_process_is_a_warning_while_another_lives() -> None:
    events: list[Event] = []
    run_workers(reuse_or_die, LocalExecutor(2), events.append)
    assert FOUND in events
    (lost,) = [event for event in events if isinstance(event, WorkerLost)]
    assert (lost.worker, lost.reason) == ("1/2", "killed by SIGKILL")
    assert len(events) == 2


def test_an_error_keeps_its_class_and_parts_and_ends_the_others() -> None:
    started = time.monotonic()
    with pytest.raises(SpecError, match=r"a.zarr: expected this, got that. Do it."):
        run_workers(refuse, LocalExecutor(2), print)
    assert time.monotonic() - started < 50


def test_events_of_two_workers_tell_one_story() -> None:
    started = ExtractionStarted(
        store=STORE, backbone="m", dataset="d", split="train", num_rows=100, num_missing=80, num_pending=40, num_arrays=1,
        device="cpu", precision="float32", batch_size=10, compiled=False,
    )  # fmt: skip
    finished = ExtractionFinished(
        store=STORE,
        num_rows=100,
        num_computed=20,
        size_bytes=5,
        elapsed_s=2.0,
        decode_s=1.0,
        compute_s=1.0,
        write_s=0.0,
    )

    def progress(num_done: int) -> ExtractionProgress:
        return ExtractionProgress(
            num_done=num_done, num_pending=40, elapsed_s=2.0, decode_s=1.0, compute_s=1.0, write_s=0.0
        )

    def out_of_range(count: int) -> TokensOutOfRange:
        return TokensOutOfRange(array="x", num_saturated=count, num_nonfinite=0, storage_dtype="float16")

    events: list[Event] = []
    relay = Relay(events.append)
    skipped = ImageSkipped(sample_id="a", file="b", reason="c")
    for worker, event in [
        (0, started), (1, started), (0, progress(10)), (1, progress(20)), (1, finished), (1, started), (1, progress(5)),
        (0, out_of_range(2)), (1, out_of_range(3)), (1, skipped),
    ]:  # fmt: skip
        relay.add(worker, event)
    for worker, event in [
        (1, finished), (1, started), (1, out_of_range(1)),  # a second share of the same store
        (0, finished), (0, replace(started, store=STORE.with_name("other.zarr"))), (0, out_of_range(7)),
    ]:  # fmt: skip
        relay.add(worker, event)
    relay.finish()
    assert [e.num_pending for e in events if isinstance(e, ExtractionStarted)] == [80, 80]
    shown = [e for e in events if isinstance(e, ExtractionProgress)]
    assert [(e.num_done, e.num_pending) for e in shown] == [(10, 80), (30, 80), (35, 80)]
    assert all(e.decode_s == pytest.approx(e.elapsed_s / 2) for e in shown)
    assert [e.num_saturated for e in events if isinstance(e, TokensOutOfRange)] == [2, 5, 6, 7]
    assert skipped in events
    (end,) = [e for e in events if isinstance(e, ExtractionFinished)]
    assert (end.num_computed, end.size_bytes) == (60, 15)
