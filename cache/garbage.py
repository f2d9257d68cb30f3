"""What may be deleted under a cache folder: found first, deleted only on request.

Complete stores are never listed, nor is anything that a living process holds. A store that was never finished is no garbage either:
what is committed in it has cost a model's time, and between two shards of an array of jobs nobody holds it. It becomes garbage by
age, and only if the caller names one.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .atomic_files import storage_errors
from .catalog import STORE_SUFFIX, StoreInfo, find_stores, read_store_info, size_of
from .header import HEADER_FILE
from .journal import JOURNAL_FOLDER, staging_files
from .locking import StoreLock, is_locked, lock_file, worker_files
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


@dataclass(frozen=True, kw_only=True)
class Unfinished:
    """A store that nobody writes now and that lacks blocks.

    Args:
        path: the store.
        size_bytes: of what is there.
        num_blocks, num_blocks_done: of the store, and those in which every array is committed.
        age_s: since somebody last wrote to it, or took it up.
    """

    path: Path
    size_bytes: int
    num_blocks: int
    num_blocks_done: int
    age_s: float


def find_garbage(root: str | Path, *, unfinished_for_s: float = math.inf) -> list[Garbage]:
    """Everything under a folder that may be deleted, sorted by path.

    Args:
        root: the folder.
        unfinished_for_s: stores that were never finished are garbage too if nobody has written to them for so long; none is by
            default.
    """
    root = Path(root)
    guards = {file.with_name(file.name.removesuffix(".lock")) for file in root.rglob(f"*{STORE_SUFFIX}.lock")}
    stores = sorted({*find_stores(root), *guards})
    found = [garbage for store in stores if not is_locked(store) for garbage in _garbage_of(store, unfinished_for_s)]
    return sorted(found, key=lambda garbage: garbage.path)


def find_unfinished(root: str | Path) -> list[Unfinished]:
    """The stores under a folder that were never finished and that nobody writes now, sorted by path."""
    infos = [read_store_info(store) for store in find_stores(Path(root)) if not is_locked(store)]
    return [_unfinished(info) for info in infos if _is_unfinished(info)]


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


def _garbage_of(store: Path, unfinished_for_s: float) -> Iterator[Garbage]:
    for folder in (new_folder(store), old_folder(store)):
        if folder.exists():
            yield _garbage(folder, store, "left behind when a store was made or deleted")
    if not store.exists():
        yield _garbage(lock_file(store), store, "the lock of a store that is gone")
        return
    info = read_store_info(store)
    if _is_unfinished(info) and (found := _unfinished(info)).age_s >= unfinished_for_s:
        done = f"{found.num_blocks_done} of {found.num_blocks} blocks"
        yield _garbage(
            store, store, f"never finished ({done}), and nobody has written to it since; extracting again would go on"
        )
        return
    for file in worker_files(store):
        yield _garbage(file, store, "the lock of a worker that was killed")
    for file in staging_files(store):
        yield _garbage(file, store, "a chunk that a killed writer left behind")


def _garbage(path: Path, store: Path, reason: str) -> Garbage:
    return Garbage(path=path, store=store, size_bytes=size_of(path), reason=reason)


def _is_unfinished(info: StoreInfo) -> bool:
    """Without a single array that is complete; one whose new arrays are under way has complete ones to lose."""
    return info.header is not None and not info.complete_arrays


def _unfinished(info: StoreInfo) -> Unfinished:
    files = [lock_file(info.path), info.path / HEADER_FILE, *(info.path / JOURNAL_FOLDER).glob("*")]
    written = max(file.stat().st_mtime for file in files if file.exists())
    return Unfinished(
        path=info.path,
        size_bytes=info.size_bytes,
        num_blocks=info.num_blocks,
        num_blocks_done=info.num_blocks_done,
        age_s=max(0.0, time.time() - written),
    )
