"""Delete a whole store that no process writes."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..atomic_files import storage_errors
from .locking import StoreLock
from .resume import remove_store, temporary_folders


def delete_store(path: str | Path) -> None:
    """Delete a store under its lock, and the lock with it. A damaged store may be deleted.

    Args:
        path: the store; nothing happens if there is none.

    Raises:
        StoreLockedError: a process writes it.
        NotAStoreError: what lies there was not written by layerbank, or is a link to a store.
        NewerStoreError: a newer layerbank wrote it.
        NotWritableError: the disk refuses.
    """
    store = Path(path)
    if not store.exists():
        return
    lock = StoreLock(store)
    lock.acquire()
    try:
        with storage_errors(store):
            for left_behind in temporary_folders(store):
                shutil.rmtree(left_behind, ignore_errors=True)
            remove_store(store)
            lock.file.unlink(missing_ok=True)
    finally:
        lock.release()
