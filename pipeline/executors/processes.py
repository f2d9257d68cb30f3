"""Run one piece of work in several processes of this machine, with one display.

The decision taken here: processes are told nothing of each other and get no rows from here. Each is one of n workers of the same
stores, and the stores say who computes what; so a process that is killed is a warning, not an end, as long as one lives. An error
of one is an error of all: it is what the next one would meet too.

Knows nothing of models, images or stores.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import Any

from layerbank.cache import Worker

from ..errors import LayerbankError, RequestError, WorkError
from ..events import Event, OnEvent, WorkerLost
from .relay import Relay

Work = Callable[[Worker, OnEvent], None]
ENDING_S = 15.0  # a process that was asked to end discards its block and leaves; then it is killed


def run_processes(work: Work, count: int, on_event: OnEvent) -> None:
    """Do the work `count` times beside each other.

    Args:
        work: called with its number and where to tell events, in a process of its own; it must pickle.
        count: processes.
        emit: told what happens, of all of them as if they were one.

    Raises:
        LayerbankError: the error of the first that failed; the others are ended.
        WorkError: every process was killed.
    """
    context = multiprocessing.get_context("spawn")
    relay = Relay(on_event)
    running: dict[Any, tuple[int, Any]] = {}
    lost: list[str] = []
    try:
        for index in range(count):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_run, args=(work, Worker(index, count), theirs), name=f"worker-{index}")
            with interrupts_wait():
                process.start()
                running[ours] = (index, process)
            theirs.close()
        while running:
            ready: list[Any] = wait(list(running))
            for pipe in ready:
                index, process = running[pipe]
                try:
                    told = pipe.recv()
                except EOFError:  # it has ended
                    del running[pipe]
                    process.join()
                    if process.exitcode != 0:
                        lost.append(how_it_ended(process.exitcode))
                        on_event(WorkerLost(worker=f"{index}/{count}", reason=lost[-1], num_left=len(running)))
                    continue
                if isinstance(told, BaseException):
                    raise told
                relay.tell(index, told)
    finally:
        end_processes([process for _, process in running.values()])
    if len(lost) == count:
        raise WorkError(
            where=f"--processes {count}",
            expected="at least one process that lives until the last image",
            got=", ".join(dict.fromkeys(lost)),
            todo="What was committed is kept: run the same command again. If memory ran out, use fewer processes.",
        )
    relay.finish()


def _run(work: Work, worker: Worker, pipe: Connection) -> None:
    """The whole life of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the group: the parent ends its workers
    signal.signal(signal.SIGTERM, leave)

    def on_event(event: Event) -> None:
        try:
            pipe.send(event)
        except BrokenPipeError:  # nobody waits for the result any more
            sys.exit(1)

    try:
        share_cores(worker.count)
        work(worker, on_event)
    except Exception as error:  # told by the parent, which judges it
        pipe.send(as_ours(error))
    except SystemExit:  # somebody waits for the end of it, and Python takes seconds to take torch apart
        os._exit(1)


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Start a process within: Ctrl-C comes when it is known here, and it inherits that it gets none, before it can say so itself.

    To block the signal is not enough here, for another thread may hear it in place of this one. On Windows, where it cannot be
    blocked, Ctrl-C may end a process that is just starting with a traceback of its own.
    """
    heard: list[int] = []
    handler, mask = None, None
    if threading.current_thread() is threading.main_thread():  # no other is interrupted
        handler = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    if hasattr(signal, "pthread_sigmask"):
        resource_tracker.ensure_running()  # else it starts with the first process, and lets interrupts through again
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if handler is not None:
            signal.signal(signal.SIGINT, handler)
        if heard:
            signal.raise_signal(signal.SIGINT)


def as_ours(error: Exception) -> Exception:
    """An error that crosses to another process: one of another room as ours, with the same four parts."""
    if isinstance(error, LayerbankError) or not all(
        hasattr(error, part) for part in ("where", "expected", "got", "todo")
    ):
        return error
    told: Any = error
    kind = WorkError if isinstance(error, (OSError, RuntimeError)) else RequestError
    return kind(where=told.where, expected=told.expected, got=told.got, todo=told.todo)


def share_cores(count: int) -> None:
    """Processes that each use every core wait for each other."""
    import torch

    torch.set_num_threads(max(1, min(torch.get_num_threads(), (os.cpu_count() or 1) // count)))


def leave(number: int, frame: FrameType | None) -> None:
    sys.exit(1)


def how_it_ended(exit_code: int) -> str:
    if exit_code < 0:
        return f"killed by {signal.Signals(-exit_code).name}"
    return f"ended with exit code {exit_code}"


def end_processes(processes: list[Any]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(ENDING_S)
        if process.is_alive():
            process.kill()
            process.join()
