"""What may be deleted under a cache folder: found first, deleted only on request.

Complete stores are never listed, nor is anything that a living process holds.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .catalog import STORE_SUFFIX, find_stores, read_store_info, size_of
from .durable import storage_errors
from .journal import asides
from .lock import StoreLock, is_locked, lock_file, worker_files
from .resume import new_folder, old_folder


@dataclass(frozen=True, kw_only=True)
class Garbage:
    """Something that may be deleted.

    Args:
        path: file or folder.
        store: the store whose lock guards it.
        size_bytes: what deleting it frees.
        reason: why nobody needs it.
    """

    path: Path
    store: Path
    size_bytes: int
    reason: str


def find_garbage(root: str | Path) -> list[Garbage]:
    """Everything under a folder that may be deleted, sorted by path."""
    root = Path(root)
    guards = {file.with_name(file.name.removesuffix(".lock")) for file in root.rglob(f"*{STORE_SUFFIX}.lock")}
    stores = sorted({*find_stores(root), *guards})
    found = [garbage for store in stores if not is_locked(store) for garbage in _garbage_of(store)]
    return sorted(found, key=lambda garbage: garbage.path)


def remove_garbage(items: Iterable[Garbage]) -> int:
    """Delete what `find_garbage` found.

    Returns:
        Bytes freed.

    Raises:
        StoreLockedError: a process has taken up one of the stores meanwhile.
        NotWritableError: the disk refuses.
    """
    freed_bytes = 0
    for item in items:
        lock = StoreLock(item.store)
        lock.acquire()
        try:
            with storage_errors(item.path):
                if item.path.is_dir():
                    shutil.rmtree(item.path)
                else:
                    item.path.unlink(missing_ok=True)
                if not item.store.exists():
                    lock.file.unlink(missing_ok=True)
            freed_bytes += item.size_bytes
        finally:
            lock.release()
    return freed_bytes


def _garbage_of(store: Path) -> Iterator[Garbage]:
    for folder in (new_folder(store), old_folder(store)):
        if folder.exists():
            yield _garbage(folder, store, "left behind when a store was made or deleted")
    if not store.exists():
        yield _garbage(lock_file(store), store, "the lock of a store that is gone")
        return
    info = read_store_info(store)
    if info.header is not None and not info.complete_arrays:
        done = f"{info.num_blocks_done} of {info.num_blocks} blocks"
        yield _garbage(store, store, f"incomplete ({done}) and nobody writes it; extracting again would go on")
        return
    for file in worker_files(store):
        yield _garbage(file, store, "the lock of a worker that was killed")
    for file in asides(store):
        yield _garbage(file, store, "a chunk that a killed writer left behind")


def _garbage(path: Path, store: Path, reason: str) -> Garbage:
    return Garbage(path=path, store=store, size_bytes=size_of(path), reason=reason)
