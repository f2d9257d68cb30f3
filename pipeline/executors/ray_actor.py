"""What an actor does: look whether it sees what the driver sees, work, and tell what happens."""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layerbank.cache import StoreLockedError, see_probe

from ..errors import RequestError
from ..events import OnEvent
from .processes import as_ours

Task = Callable[[OnEvent], Any]
"""A piece of work: called with where to tell events; it and what it returns must pickle."""

LEASE_S = 120.0  # a file server may hold the locks of a machine that has died so long
LOOK_AGAIN_S = 5.0


@dataclass(frozen=True)
class Returned:
    """The last thing that an actor tells of a task."""

    value: Any


class Actor:
    """One process of the cluster, for one piece of work after the other."""

    def __init__(self, num_cpus: int) -> None:
        """Keep to the cores one has; torch, which reads this, comes with the first piece of work."""
        if num_cpus:
            asked = os.environ.get("OMP_NUM_THREADS", "")
            os.environ["OMP_NUM_THREADS"] = str(min(num_cpus, int(asked)) if asked.isdigit() else num_cpus)

    def run(self, task: Task, life: int, probes: Sequence[Path], folder: str) -> Iterator[object]:
        """Yield the events of a task as they come, at last `Returned` or the error."""
        told: queue.SimpleQueue[object] = queue.SimpleQueue()

        def work() -> None:
            try:
                take_place(probes, folder)
                told.put(Returned(do_patiently(task, life, told.put)))
            except Exception as error:  # judged by the driver
                told.put(as_ours(error))

        threading.Thread(target=work, daemon=True).start()
        while True:
            message = told.get()
            yield message
            if isinstance(message, (Returned, BaseException)):
                return


def take_place(probes: Sequence[Path], folder: str) -> None:
    """Be where the command was given, and see what it sees.

    Raises:
        RequestError: this node has another file system.
    """
    node = socket.gethostname()
    for probe in probes:
        problem = see_probe(probe)
        if problem is not None:
            raise RequestError(
                where=f"{probe.parent}, on node {node}",
                expected="one folder for all nodes of the cluster, on a file system that passes on locks",
                got=problem,
                todo="Choose folders that all nodes share with --cache DIR and, for a study, --runs DIR.",
            )
    try:
        os.chdir(folder)
    except OSError as error:
        raise RequestError(
            where=f"the working folder {folder}, on node {node}",
            expected="the folder in which the command was given, on every node",
            got=str(error.strerror),
            todo="Give the command in a folder that all nodes share.",
        ) from None


def do_patiently(task: Task, life: int, on_event: OnEvent) -> Any:
    """The task; where an actor has died before, its locks may outlive it for a while."""
    deadline = time.monotonic() + LEASE_S
    while True:
        try:
            return task(on_event)
        except StoreLockedError:
            if life == 0 or time.monotonic() > deadline:
                raise
            time.sleep(LOOK_AGAIN_S)
