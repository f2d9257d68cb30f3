"""One process trains a row: a lock file for each row in training, `RUNS/<data set>/<store>/.training/<key>.lock`.

Of several processes that lack the same row one trains it; the others train what else they lack, then wait and take its row over.
A process waits for one row only while it holds the lock of no other, so no two wait for each other. The system frees the locks of
a process that is killed, and one of those that wait trains the row.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from layerbank.cache.atomic_files import storage_errors
from layerbank.cache.writing.locking import LockOwner, read_owner, write_owner

LOCKS_FOLDER = ".training"
_POLL_S = 0.2


class RowLocks:
    """The rows of one folder that this process may train, until the end of the `with`.

    Args:
        folder: folder of results.jsonl.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / LOCKS_FOLDER
        self._held: list[FileLock] = []

    def __enter__(self) -> RowLocks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for lock in self._held:
            with suppress(OSError):  # Windows deletes no open file
                Path(lock.lock_file).unlink()
            lock.release()
        self._held.clear()
        with suppress(OSError):  # it has the locks of others
            self._folder.rmdir()

    def take(self, key: str, *, wait: bool = False) -> bool:
        """Take the lock of a row.

        Args:
            key: key of the row.
            wait: wait until the process that has it ends or has trained the row.

        Returns:
            False if another process, or another thread of this one, has it.

        Raises:
            NotWritableError: the folder cannot be written.
        """
        path = self._path(key)
        lock = FileLock(path, thread_local=False)
        with storage_errors(path):
            while True:
                self._folder.mkdir(parents=True, exist_ok=True)
                try:
                    lock.acquire(timeout=-1 if wait else 0, poll_interval=_POLL_S)
                except Timeout:
                    return False
                except FileNotFoundError:  # whoever held the last lock has removed the folder
                    continue
                break
            self._held.append(lock)
            write_owner(path, LockOwner.this_process())
        return True

    def owner(self, key: str) -> LockOwner | None:
        """The process that has the lock of a row; None if there is none, or it left no name."""
        return read_owner(self._path(key))

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.lock"
