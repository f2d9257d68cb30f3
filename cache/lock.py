"""One writer a store: a lock file beside it, and the owner's name in it.

`filelock` uses flock where there is one, so a killed owner frees the lock. Children that were forked while it
was held (decode workers) may live a few seconds longer and hold it meanwhile: if the named owner is dead, we
wait for them.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from .durable import storage_errors
from .errors import StoreLockedError

ORPHANS_TIMEOUT_S = 15.0  # torch's decode workers look every 5 s whether their parent lives
GLANCE_TIMEOUT_S = 0.5  # `is_locked` of another process holds a lock for a moment


@dataclass(frozen=True)
class LockOwner:
    """Who holds, or held, a lock.

    Args:
        pid: process id on `host`.
        host: name of the machine.
        since: seconds since the epoch.
        command: its command line.
    """

    pid: int
    host: str
    since: float
    command: str

    @property
    def is_gone(self) -> bool:
        """True if it ran on this machine and runs no more."""
        if os.name == "nt" or self.host != socket.gethostname():  # there, signal 0 is Ctrl-C
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        return False

    def __str__(self) -> str:
        minutes = (time.time() - self.since) / 60
        return f"process {self.pid} on {self.host}, which began {minutes:.0f} min ago: {self.command}"


class StoreLock:
    """The right to write a store, from `acquire` to `release`.

    Args:
        store: the store; the lock file is ``<store>.lock`` beside it.
    """

    def __init__(self, store: Path) -> None:
        self.store = store
        self.file = lock_file(store)
        # the writer may be closed by another thread than the one that opened it
        self._lock = FileLock(self.file, thread_local=False)

    def acquire(self) -> None:
        """Take the lock now.

        Raises:
            StoreLockedError: another process has it; says which, and since when.
            NotWritableError: the folder cannot be written.
        """
        with storage_errors(self.store):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            owner = read_owner(self.store)
            try:
                self._lock.acquire(timeout=ORPHANS_TIMEOUT_S if owner and owner.is_gone else GLANCE_TIMEOUT_S)
            except Timeout:
                raise StoreLockedError(
                    where=str(self.store),
                    expected="nobody else to be writing this store",
                    got=str(owner) if owner is not None else "a process that left no name",
                    todo="Wait until it is done or end it, then run the same command again; what it committed is kept.",
                ) from None
            ours = LockOwner(os.getpid(), socket.gethostname(), time.time(), " ".join(sys.argv)[:500])
            self.file.write_text(json.dumps(ours.__dict__))

    def release(self) -> None:
        """Give it back. The file stays: removing it would let two processes hold two files of one name."""
        if self._lock.is_locked:
            if self.file.exists():
                os.truncate(self.file, 0)
            self._lock.release()


def lock_file(store: Path) -> Path:
    """The lock file of a store."""
    return store.with_name(f"{store.name}.lock")


def read_owner(store: Path) -> LockOwner | None:
    """Who wrote his name into the lock file last; None if nobody did, or he has given it back."""
    try:
        return LockOwner(**json.loads(lock_file(store).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def is_locked(store: Path) -> bool:
    """Whether some process writes this store now."""
    if not lock_file(store).exists():
        return False
    probe = FileLock(lock_file(store), thread_local=False)
    try:
        probe.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:
        return False
    probe.release()
    return False
