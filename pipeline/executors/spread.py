"""Share out different tasks to several processes of this machine: each gets the next one when it has done one.

The decisions taken here: a task is handed over when a process is free, so nobody needs to know how long tasks take; a process is
the same for all tasks it does, so what it keeps (an open model) is kept. A process that dies takes its task with it, which is told,
and a new one takes its place; an error is an error of all, as in `processes.py`, where several processes do one task.

Knows nothing of what a task is.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from ..events import Event, OnEvent
from .processes import as_ours, end_processes, how_it_ended, interrupts_wait, leave

Task = TypeVar("Task")
Result = TypeVar("Result")


def spread(
    work: Callable[[int, Task, OnEvent], Result], tasks: Sequence[Task], count: int, on_event: OnEvent
) -> Iterator[tuple[Task, Result | str]]:
    """Do every task once, in as many processes as are asked for.

    Args:
        work: called with the number of its process, a task, and where to tell events; it, tasks and results must pickle.
        tasks: handed out in this order.
        count: processes, at least 1.
        emit: told what happens in all of them.

    Yields:
        A task and its result, or in words how its process ended, as they come.

    Raises:
        Exception: the first that a task raised; the other processes are ended.
    """
    context = multiprocessing.get_context("spawn")
    waiting = list(reversed(tasks))
    busy: dict[Any, tuple[int, Any, Task]] = {}

    def start(number: int) -> None:
        if not waiting:
            return
        ours, theirs = context.Pipe()
        process = context.Process(target=_run, args=(work, number, theirs), name=f"process-{number}")
        with interrupts_wait():
            process.start()
            hand_over(ours, number, process)
        theirs.close()

    def hand_over(pipe: Any, number: int, process: Any) -> None:
        busy[pipe] = (number, process, waiting.pop())
        with suppress(BrokenPipeError, ConnectionResetError):  # it has died: read from the pipe below
            pipe.send(busy[pipe][2])

    try:
        for number in range(count):
            start(number)
        while busy:
            ready: list[Any] = wait(list(busy))
            for pipe in ready:
                number, process, task = busy[pipe]
                try:
                    kind, told = pipe.recv()
                except (EOFError, ConnectionResetError):
                    del busy[pipe]
                    process.join()
                    yield task, how_it_ended(process.exitcode)
                    start(number)
                    continue
                if kind == "event":
                    on_event(told)
                elif kind == "error":
                    raise told
                else:
                    yield task, told
                    if waiting:
                        hand_over(pipe, number, process)
                    else:
                        del busy[pipe]
                        pipe.close()  # it leaves
                        process.join()
    finally:
        end_processes([process for _, process, _ in busy.values()])


def _run(work: Callable[[int, Any, OnEvent], Any], number: int, pipe: Connection) -> None:
    """The whole life of a process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the group: the parent ends its processes
    signal.signal(signal.SIGTERM, leave)

    def send(kind: str, told: object) -> None:
        try:
            pipe.send((kind, told))
        except BrokenPipeError:  # nobody waits for the result any more
            sys.exit(1)

    def on_event(event: Event) -> None:
        send("event", event)

    threading.Thread(target=_leave_with_parent, daemon=True).start()
    while True:
        try:
            task = pipe.recv()
        except (EOFError, ConnectionResetError):
            return
        try:
            result = work(number, task, on_event)
        except Exception as error:  # raised again by the parent, which judges it
            send("error", as_ours(error))
            return
        send("result", result)


def _leave_with_parent() -> None:
    """End at once when the parent is killed, so that whoever runs the command again finds nobody at its stores."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
