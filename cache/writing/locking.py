"""One writer per store: a lock file beside the store, with the owner's name in it.

`filelock` uses flock where it exists, so a killed owner frees the lock. Children that were forked while it was held
(decode workers) may live a few seconds longer and hold it meanwhile: if the named owner is dead, `acquire` waits for
them. Several workers of one store each hold a lock of their own (workers.py), and this one only for moments.
"""

from __future__ import annotations

import glob
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from ..atomic_files import storage_errors
from ..errors import StoreLockedError

ORPHANS_TIMEOUT_S = 15.0  # torch's decode workers check every 5 s whether their parent lives
IS_HELD_TIMEOUT_S = 0.5  # `is_held` of another process holds a lock for a moment


@dataclass(frozen=True)
class LockOwner:
    """The process that holds, or held, a lock.

    Args:
        pid: process id on `host`.
        host: name of the machine.
        since: seconds since the epoch.
        command: its command line.
        worker: ``index/count`` if it is one of several workers, else empty.
        blocks: the row blocks that such a worker has claimed.
    """

    pid: int
    host: str
    since: float
    command: str
    worker: str = ""
    blocks: tuple[int, ...] = ()

    @classmethod
    def this_process(cls, worker: str = "") -> LockOwner:
        return cls(os.getpid(), socket.gethostname(), time.time(), " ".join(sys.argv)[:500], worker)

    @property
    def is_gone(self) -> bool:
        """Whether it ran on this machine and has ended."""
        if os.name == "nt" or self.host != socket.gethostname():  # there, signal 0 is Ctrl-C
            return False
        try:
            os.kill(self.pid, 0)
        except OSError as error:
            return isinstance(error, ProcessLookupError)
        return False

    def __str__(self) -> str:
        minutes = (time.time() - self.since) / 60
        role = f" as worker {self.worker}" if self.worker else ""
        return f"process {self.pid} on {self.host}, which began {minutes:.0f} min ago{role}: {self.command}"


class StoreLock:
    """The right to be the only writer of a store, from `acquire` to `release`; the lock file is ``<store>.lock`` beside it."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.file = lock_file(store)
        # the writer may be closed by another thread than the one that opened it
        self._lock = FileLock(self.file, thread_local=False)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """No other process changes the store within: always true for its only writer."""
        yield

    def acquire(self) -> None:
        """Take the lock now.

        Raises:
            StoreLockedError: another process has it, or is one of several workers of the store.
            NotWritableError: the folder cannot be written.
        """
        with storage_errors(self.store):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            take_lock(self._lock, self.store)
            try:
                if living := living_workers(self.store):
                    raise locked_error(self.store, living[min(living)])
                for file in worker_files(self.store).values():  # of dead workers; none starts while this lock is held
                    file.unlink()
            except BaseException:
                self._lock.release()
                raise
            leave_name(self.file, LockOwner.this_process())

    def release(self) -> None:
        """Release the lock. The file stays: removing it would let two processes lock two files of the same name."""
        if self._lock.is_locked:
            remove_name(self.file)
            self._lock.release()


def lock_file(store: Path) -> Path:
    return store.with_name(f"{store.name}.lock")


def worker_file(store: Path, index: int) -> Path:
    return store.with_name(f"{store.name}.worker-{index}.lock")


def worker_files(store: Path) -> dict[int, Path]:
    """The lock files of the workers of a store, by their index."""
    files = store.parent.glob(f"{glob.escape(store.name)}.worker-[0-9]*.lock")
    digits = {file.name.removeprefix(f"{store.name}.worker-").removesuffix(".lock"): file for file in files}
    return {int(number): file for number, file in digits.items() if number.isdecimal()}


def take_lock(lock: FileLock, store: Path) -> None:
    """Acquire a lock whose owner writes its name into the file.

    Raises:
        StoreLockedError: another process has it.
    """
    owner = read_owner(Path(lock.lock_file))
    try:
        lock.acquire(timeout=ORPHANS_TIMEOUT_S if owner and owner.is_gone else IS_HELD_TIMEOUT_S)
    except Timeout:
        raise locked_error(store, owner) from None


def locked_error(store: Path, owner: LockOwner | None) -> StoreLockedError:
    if owner is None:
        return StoreLockedError("cache.store_locked_by_unknown", store=store)
    return StoreLockedError("cache.store_locked", store=store, owner=owner)


def write_owner(file: Path, owner: LockOwner) -> None:
    file.write_text(json.dumps(asdict(owner), allow_nan=False))


def leave_name(file: Path, owner: LockOwner) -> None:
    """Write the owner of a lock into its file, for messages; on a full disk, where stores can be deleted all the same, nothing."""
    with suppress(OSError):
        write_owner(file, owner)


def remove_name(file: Path) -> None:
    """Empty a lock file before it is released."""
    with suppress(OSError):
        os.truncate(file, 0)


def read_owner(file: Path) -> LockOwner | None:
    """The owner named in a lock file; None if there is none, or it has released the lock."""
    try:
        values = json.loads(file.read_text())
        owner = LockOwner(**values | {"blocks": tuple(values.get("blocks", ()))})
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None
    texts, numbers = (owner.host, owner.command, owner.worker), (owner.pid, *owner.blocks)
    are_right = all(type(one) is int and 0 <= one < 2**31 for one in numbers) and all(
        isinstance(one, str) for one in texts
    )
    return owner if are_right and isinstance(owner.since, int | float) and 0 <= owner.since < 2**40 else None


def is_lock_file(file: Path) -> bool:
    """Whether a file has the content of a lock: nothing, or its owner, perhaps cut off by a kill."""
    if not file.is_file() or file.is_symlink():
        return False
    with file.open("rb") as opened:
        return opened.read(1) in (b"", b"{")


def living_workers(store: Path) -> dict[int, LockOwner | None]:
    """The workers that hold their lock now: index -> owner, None for one that left no name."""
    return {number: read_owner(file) for number, file in worker_files(store).items() if is_held(file)}


def owners_of(store: Path) -> list[LockOwner]:
    """The processes that write this store now, as far as they left a name: its only writer, or several workers."""
    single = read_owner(lock_file(store)) if is_held(lock_file(store)) else None
    return [owner for owner in (single, *living_workers(store).values()) if owner is not None]


def is_locked(store: Path) -> bool:
    """Whether a process writes this store now."""
    return is_held(lock_file(store)) or bool(living_workers(store))


def is_held(file: Path) -> bool:
    """Whether a process holds this lock file.

    The check leaves the file's times, which record when a writer last opened the store, as they were: older filelocks empty a
    file that they acquire.
    """
    if not file.exists():
        return False
    lock = FileLock(file, thread_local=False)
    try:
        times = file.stat()
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:
        return False
    with suppress(OSError):  # a file of another user
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    lock.release()
    return False
