"""Several writers of one store: their shares of the row blocks, their lock files, and their claims.

The decision taken here: row block b is the share of worker b mod count. Shares are disjoint by arithmetic, and whatever
an interrupted run has left, each share has about the same part of it. Each worker holds a lock file of its own while it
lives, with its name and the row blocks it has claimed. To read or change what all share (these files, the journal, the
header), a worker holds the store's lock for that moment. So a killed worker's row blocks are free at once, no list of
members has to be kept up to date, and no row block is computed twice. The lock files are only made, probed and removed
under the store's lock, so removing one never lets two processes lock two files of the same name.

As good as flock is on the file system: between machines on NFS since version 4; where there is no flock, not at all.
`offer_test_lock` and `check_test_lock` check that processes on several machines share a folder and its locks.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock

from ..atomic_files import storage_errors
from ..errors import SpecError, StoreLockedError
from .locking import (
    LockOwner,
    is_held,
    leave_name,
    living_workers,
    lock_file,
    locked_error,
    read_owner,
    remove_name,
    take_lock,
    worker_file,
    worker_files,
    write_owner,
)

JOIN_TIMEOUT_S = 900.0  # the first worker reads what an interrupted run left before it lets the others in
TEST_LOCK_PREFIX = ".shared-"
TEST_LOCK_MAX_AGE_S = 3600.0  # a younger file that no process holds may be one that is just being locked
TEST_LOCK_TIMEOUT_S = 10.0  # NFS shows a new file to other machines after a few seconds


@dataclass(frozen=True)
class Worker:
    """One of `count` writers of a store.

    Args:
        index: 0 <= index < count.
        count: the number of writers.
        helps: whether it goes on with unclaimed row blocks of the others until none is missing.

    Raises:
        SpecError: the index is out of range.
    """

    index: int
    count: int
    helps: bool = True

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.index < self.count:
            raise SpecError("cache.invalid_worker", index=self.index, count=self.count)

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def owns(self, block: int) -> bool:
        return block % self.count == self.index

    def choose(self, free: Collection[int]) -> list[int]:
        """The row blocks to claim next among the missing ones that no other worker has claimed.

        A worker that does not help takes its whole share. One that helps takes half of an even split of the free ones, its own
        share first, so that pieces get smaller and all workers end at about the same time.

        >>> Worker(0, 2).choose(range(16)), Worker(0, 2).choose([3, 5]), Worker(0, 2, helps=False).choose(range(6))
        ([0, 2, 4, 6], [3], [0, 2, 4])
        """
        own = [block for block in sorted(free) if self.owns(block)]
        if not self.helps:
            return own
        candidates = own or sorted(free)
        return candidates[: max(1, len(free) // (2 * self.count))]


class WorkerLock:
    """The right to write a store as one of several workers, from `acquire` to `release`."""

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
        """No other process changes the store or claims row blocks within.

        Raises:
            StoreLockedError: the store has a single writer.
        """
        with self._threads:
            if self._shared.is_locked:  # an inner one
                yield
                return
            self._take_shared()
            try:
                leave_name(lock_file(self.store), self._name)
                yield
            finally:
                remove_name(lock_file(self.store))
                self._shared.release()

    def others(self) -> dict[int, LockOwner | None]:
        """The other workers that write the store now, by index."""
        living = living_workers(self.store)
        if self._lock.is_locked:
            living.pop(self.worker.index, None)
        return living

    def acquire(self) -> None:
        """Become one of the workers; lock files of dead ones are removed.

        Raises:
            StoreLockedError: the store has a single writer, a worker with this index, or workers of another count.
            NotWritableError: the folder cannot be written.
        """
        with storage_errors(self.store):
            lock_file(self.store).parent.mkdir(parents=True, exist_ok=True)
            with self.exclusive():
                for owner in self.others().values():
                    if owner is None or owner.worker.split("/")[1:] != [str(self.worker.count)]:
                        raise locked_error(self.store, owner)
                take_lock(self._lock, self.store)
                write_owner(self._file, self._name)
                self._remove_dead()

    def release(self) -> None:
        """Leave; row blocks that were claimed and not committed are free again."""
        if self._lock.is_locked:
            with self.exclusive():
                self._lock.release()
                self._remove_dead()

    def claimed_by_others(self) -> set[int]:
        """Row blocks that living workers have claimed, committed or not."""
        return {block for owner in self.others().values() if owner is not None for block in owner.blocks}

    def claim(self, blocks: Collection[int]) -> None:
        """Claim these row blocks instead of those claimed before."""
        self._name = replace(self._name, blocks=tuple(blocks))
        write_owner(self._file, self._name)

    def _remove_dead(self) -> None:
        for file in worker_files(self.store).values():
            if not is_held(file):
                file.unlink()

    def _take_shared(self) -> None:
        """Wait for other workers, but not for a single writer."""
        started = time.monotonic()
        while True:
            try:
                take_lock(self._shared, self.store)
                return
            except StoreLockedError:
                owner = read_owner(lock_file(self.store))
                if (owner is not None and not owner.worker) or time.monotonic() - started > JOIN_TIMEOUT_S:
                    raise


@contextmanager
def offer_test_lock(root: str | Path) -> Iterator[Path]:
    """Hold a locked file in a folder for `check_test_lock` on other machines, and remove it at the end.

    Files that killed processes left are removed first.

    Raises:
        NotWritableError: the folder cannot be written.
    """
    root = Path(root).absolute()
    with storage_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        for left in root.glob(f"{TEST_LOCK_PREFIX}*.lock"):
            if time.time() - left.stat().st_mtime > TEST_LOCK_MAX_AGE_S and not is_held(left):
                left.unlink(missing_ok=True)
        file = root / f"{TEST_LOCK_PREFIX}{uuid.uuid4().hex}.lock"
        lock = FileLock(file, thread_local=False)
        lock.acquire()
    try:
        yield file
    finally:
        file.unlink(missing_ok=True)
        lock.release()


def check_test_lock(file: Path, timeout_s: float = TEST_LOCK_TIMEOUT_S) -> str | None:
    """Check that this process shares the folder of a test lock, and the locks in it.

    Args:
        file: the path from `offer_test_lock` in another process.
        timeout_s: how long to wait for the file to appear, in seconds.

    Returns:
        The problem, or None.
    """
    deadline = time.monotonic() + timeout_s
    while not file.exists():
        if time.monotonic() > deadline:
            return "another folder of that name, or none"
        time.sleep(0.2)
    return None if is_held(file) else "the same folder, without the locks that others hold in it"
