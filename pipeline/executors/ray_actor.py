"""The worker process on a node of a Ray cluster: it checks that it sees the driver's folders, then runs a task."""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from layerbank.cache import StoreLockedError, check_test_lock

from ..errors import RequestError
from ..events import OnEvent
from .executor import Returned, Task, run_task

LOCK_LEASE_S = 120.0  # a file server may hold the locks of a machine that has died this long
LOCK_RETRY_S = 5.0


class Actor:
    """One process of the cluster; it runs one task after the other."""

    def __init__(self, num_cpus: int) -> None:
        """Limit torch to the cores of the actor; torch reads the variable when the first task imports it."""
        if num_cpus:
            limit = os.environ.get("OMP_NUM_THREADS", "")
            os.environ["OMP_NUM_THREADS"] = str(min(num_cpus, int(limit)) if limit.isdigit() else num_cpus)

    def run(self, task: Task, attempt: int, test_locks: Sequence[Path], folder: str) -> Iterator[object]:
        """Yield the events of a task as they come, then `Returned` or the error.

        Args:
            task: the task.
            attempt: 0, or the number of actors that died with this task.
            test_locks: files of `offer_test_lock` in the folders that all nodes must share.
            folder: the driver's working folder.
        """
        messages: queue.SimpleQueue[object] = queue.SimpleQueue()
        checked = partial(run_in_shared_folders, task, attempt, test_locks, folder)
        threading.Thread(target=run_task, args=(checked, 0, messages.put), daemon=True).start()
        while True:
            message = messages.get()
            yield message
            if isinstance(message, (Returned, BaseException)):
                return


def run_in_shared_folders(
    task: Task, attempt: int, test_locks: Sequence[Path], folder: str, worker: int, on_event: OnEvent
) -> Any:
    """Check the folders, change to the working folder, and run the task.

    Where an actor has died before, its locks may outlive it for `LOCK_LEASE_S`; they are waited for.

    Raises:
        RequestError: this node has another file system.
        StoreLockedError: a store is still locked then, or the task is begun for the first time.
    """
    enter_shared_folders(test_locks, folder)
    deadline = time.monotonic() + LOCK_LEASE_S
    while True:
        try:
            return task(worker, on_event)
        except StoreLockedError:
            if attempt == 0 or time.monotonic() > deadline:
                raise
            time.sleep(LOCK_RETRY_S)


def enter_shared_folders(test_locks: Sequence[Path], folder: str) -> None:
    """Check that this node sees the driver's folders, and change to its working folder.

    Raises:
        RequestError: this node has another file system.
    """
    node = socket.gethostname()
    for file in test_locks:
        problem = check_test_lock(file)
        if problem is not None:
            raise RequestError("executors.folder_not_shared", folder=file.parent, node=node, problem=problem)
    try:
        os.chdir(folder)
    except OSError as error:
        raise RequestError(
            "executors.working_folder_missing", folder=folder, node=node, reason=error.strerror
        ) from None
