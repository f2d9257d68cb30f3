"""Several workers at one store: who is there, and who has which block.

The decision taken here: each worker holds a lock file of its own for as long as it lives, with its name and the blocks it has
taken. Whoever wants to know or change anything that all share (these files, the journal, the header) holds the store's lock for
that moment. So a killed worker's blocks are free at once, no list of members has to be kept up to date, and nobody computes a
block that somebody else computes. The lock files are only made, probed for good and removed under the store's lock, so removing
one never lets two processes hold two files of one name.

As good as flock is on the file system: on NFS since version 4 between machines; where there is none, not at all.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from filelock import FileLock

from .atomic_files import storage_errors
from .errors import StoreLockedError
from .locking import (
    LockOwner,
    is_held,
    living_workers,
    lock_file,
    locked_error,
    read_owner,
    take_lock,
    worker_file,
    worker_files,
    write_owner,
)
from .worker import Worker

PATIENCE_S = 900.0  # the first worker reads what an interrupted run left before it lets the others in


class WorkerLock:
    """The right to write a store as one of several workers, from `acquire` to `release`.

    Args:
        store: the store.
        worker: which of them.
    """

    def __init__(self, store: Path, worker: Worker) -> None:
        self.store = store
        self.worker = worker
        self._name = LockOwner.this_process(str(worker))
        self._file = worker_file(store, worker.index)
        self._lock = FileLock(self._file, thread_local=False)
        self._shared = FileLock(lock_file(store), thread_local=False)
        self._threads = threading.RLock()  # a FileLock is one for all threads that use it

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Nobody else changes the store, or who has what of it, within.

        Raises:
            StoreLockedError: somebody writes the store alone.
        """
        with self._threads:
            if self._shared.is_locked:  # an inner one
                yield
                return
            self._take_shared()
            try:
                write_owner(lock_file(self.store), self._name)
                yield
            finally:
                os.truncate(lock_file(self.store), 0)
                self._shared.release()

    @property
    def has_company(self) -> bool:
        """Whether other workers are at this store now."""
        return bool(self._others())

    def acquire(self) -> None:
        """Become one of the workers; lock files of dead ones are removed.

        Raises:
            StoreLockedError: somebody writes the store alone, is this worker already, or is one of another number of workers.
            NotWritableError: the folder cannot be written.
        """
        with storage_errors(self.store):
            lock_file(self.store).parent.mkdir(parents=True, exist_ok=True)
            with self.exclusive():
                for owner in self._others().values():
                    if owner is None or owner.worker.split("/")[1:] != [str(self.worker.count)]:
                        raise locked_error(self.store, owner)
                take_lock(self._lock, self.store)
                write_owner(self._file, self._name)
                self._remove_dead()

    def release(self) -> None:
        """Leave; the blocks that were taken and not committed are free again."""
        if self._lock.is_locked:
            with self.exclusive():
                self._lock.release()
                self._remove_dead()

    def taken_by_others(self) -> set[int]:
        """Blocks that living workers have taken, committed or not."""
        return {block for owner in self._others().values() if owner is not None for block in owner.blocks}

    def take(self, blocks: Collection[int]) -> None:
        """Have these blocks, and no longer those taken before."""
        self._name = replace(self._name, blocks=tuple(blocks))
        write_owner(self._file, self._name)

    def _remove_dead(self) -> None:
        for file in worker_files(self.store):
            if not is_held(file):
                file.unlink()

    def _others(self) -> dict[int, LockOwner | None]:
        living = living_workers(self.store)
        if self._lock.is_locked:
            living.pop(self.worker.index, None)
        return living

    def _take_shared(self) -> None:
        """Wait for other workers as long as it takes, for one that has the store alone not at all."""
        started = time.monotonic()
        while True:
            try:
                take_lock(self._shared, self.store)
                return
            except StoreLockedError:
                owner = read_owner(lock_file(self.store))
                if (owner is not None and not owner.worker) or time.monotonic() - started > PATIENCE_S:
                    raise
