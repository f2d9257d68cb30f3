"""List the stores under a cache folder and their content, without reading tokens; find and delete what nobody needs.

Garbage is found first and deleted only on request. Nothing that a living process holds is listed, and a complete store only if
nobody has read it for a time that the caller gives. An unfinished store is not garbage either: its committed row blocks have
cost a model's time, and between two shards of an array of jobs no process holds it. It becomes garbage by age, and only if the
caller gives one.
"""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..atomic_files import remove_path, storage_errors
from ..damage import require_sound
from ..errors import CacheError, NewerStoreError, NotAStoreError, SpecError
from ..header import FORMAT_VERSION, HEADER_FILE, Header, read_header
from ..journal import JOURNAL_FOLDER, Journal, read_journal, staging_files
from ..model_stores import STORE_SUFFIX
from ..reader import StoreFiles
from ..rows import MISSING
from ..spec import ArraySpec, StoreSpec
from ..targets import target_staging
from ..writing.locking import LockOwner, StoreLock, is_lock_file, is_locked, lock_file, owners_of, worker_files
from ..writing.resume import remove_store, temporary_folders
from .superseded import find_superseded
from .verify import foreign_files, verify_store

LEAST_UNUSED_S = 7 * 86400.0  # file systems record the time of reading once a day, and not each read of a mapped file


@dataclass(frozen=True, kw_only=True)
class StoreInfo:
    """One store.

    Args:
        path: the store.
        size_bytes: the size of all its files.
        owners: the processes that write it now: none, its only writer, or several workers.
        problem: why it cannot be read, None if it can.
        header: identity, geometry, state; None if it cannot be read.
        journal: committed row blocks.
    """

    path: Path
    size_bytes: int
    owners: tuple[LockOwner, ...]
    problem: CacheError | None
    header: Header | None
    journal: Journal

    @property
    def spec(self) -> StoreSpec | None:
        return self.header.spec if self.header else None

    @property
    def state(self) -> str:
        """``complete``, ``writing`` (in progress or interrupted) or ``unreadable``."""
        return self.header.state if self.header else "unreadable"

    @property
    def attributes(self) -> dict[str, Any]:
        return dict(self.header.attributes) if self.header else {}

    @property
    def arrays(self) -> list[ArraySpec]:
        """Every array of the store, complete or not, by level and kind."""
        return [entry.spec for entry in self.header.arrays.values()] if self.header else []

    @property
    def complete_arrays(self) -> list[ArraySpec]:
        return self.header.complete_arrays if self.header else []

    @property
    def num_blocks(self) -> int:
        return self.header.block_grid.num_blocks if self.header else 0

    @property
    def num_blocks_done(self) -> int:
        """Row blocks in which every array is committed."""
        return len(self._blocks_done)

    @property
    def missing_rows(self) -> list[range]:
        """The rows of the row blocks in which an array is not committed; adjacent ones are joined."""
        if self.header is None:
            return []
        grid = self.header.block_grid  # from the journal, not block by block: a hostile header counts 10**15 of them
        borders = [-1, *self._blocks_done, self.num_blocks]
        gaps = [(before + 1, after) for before, after in itertools.pairwise(borders) if after > before + 1]
        return [range(grid.block(first).start, grid.block(stop - 1).stop) for first, stop in gaps]

    @property
    def foreign_files(self) -> list[str]:
        """Paths of the files in it that do not belong to a store; of a store of another format or without header none is known."""
        if self.header is None or self.header.format != FORMAT_VERSION:
            return []
        return [one.file for one in foreign_files(self.path, self.header)]

    @property
    def _blocks_done(self) -> list[int]:
        names = set(self.header.arrays) if self.header else set()
        entries = self.journal.entries.items()
        return sorted(block for block, entry in entries if block < self.num_blocks and names <= entry.checksums.keys())


def list_stores(root: str | Path) -> list[StoreInfo]:
    """Every store under a folder, of any format, sorted by path; unreadable ones with their problem. An absent folder has none."""
    return [read_store_info(path) for path in sorted(find_stores(Path(root)))]


def read_store_info(path: str | Path) -> StoreInfo:
    """Read header and journal of one store."""
    store = Path(path)
    header, journal, problem = None, Journal(), None
    try:
        header = read_header(store)
        journal = read_journal(store)
    except CacheError as error:
        problem = error
    except OSError as error:
        problem = NotAStoreError("cache.store_unreadable", store=store, reason=error.strerror or error)
    return StoreInfo(
        path=store,
        size_bytes=size_of(store),
        owners=tuple(owners_of(store)),
        problem=problem,
        header=header,
        journal=journal,
    )


def find_stores(root: Path) -> Iterator[Path]:
    """Folders that are named like stores, but not those inside a store or in a hidden folder, such as the content index."""
    for folder, names, _ in os.walk(root):
        names[:] = sorted(name for name in names if not name.startswith("."))
        for name in [name for name in names if name.endswith(STORE_SUFFIX)]:
            names.remove(name)
            yield Path(folder) / name


def size_of(path: Path) -> int:
    return path.stat().st_size if path.is_file() else measure_files(path)[0]


def measure_files(folder: Path, *, leave_out: Callable[[str], bool] = lambda path: False) -> tuple[int, int]:
    """Size and number of the files in a folder; those that a writer renames meanwhile may be missing.

    Args:
        folder: the folder.
        leave_out: whether a file is not counted; called with its path in the folder.
    """
    size_bytes = num_files = 0
    for place, _, names in os.walk(folder):
        for path in (os.path.join(place, name) for name in names):
            if leave_out(os.path.relpath(path, folder)):
                continue
            with suppress(FileNotFoundError):
                size_bytes += os.lstat(path).st_size
                num_files += 1
    return size_bytes, num_files


@dataclass(frozen=True, kw_only=True)
class Garbage:
    """Something that may be deleted.

    Args:
        path: file or folder.
        store: the store whose lock protects it.
        size_bytes: what deleting it frees.
        reason: why it is not needed.
        last_use: for a store that nobody uses, when its tokens were last read or written, in seconds since the epoch.
        superseded_by: the store that has all that is in this one.
    """

    path: Path
    store: Path
    size_bytes: int
    reason: str
    last_use: float | None = None
    superseded_by: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Unfinished:
    """An unfinished store that no process writes now.

    Args:
        path: the store.
        size_bytes: the size of all its files.
        num_blocks: its row blocks.
        num_blocks_done: those in which every array is committed.
        age_s: seconds since a process last wrote to it or opened it for writing.
        has_hashes: whether every row has a content hash; without them the store cannot be completed (format 1, and upgrades of it).
    """

    path: Path
    size_bytes: int
    num_blocks: int
    num_blocks_done: int
    age_s: float
    has_hashes: bool


def find_garbage(
    root: str | Path,
    *,
    unfinished_for_s: float = math.inf,
    unused_for_s: float = math.inf,
    superseded: bool = False,
) -> list[Garbage]:
    """Everything under a folder that may be deleted, sorted by path; no store with files that do not belong to it.

    Args:
        root: the folder.
        unfinished_for_s: unfinished stores that no process has written to for so long are garbage too; none by default.
        unused_for_s: so are complete stores whose tokens no process has read or written for so long; none by default. Checks of
            checksums count as reading; systems may record the time of reading only once a day.
        superseded: so are complete stores that have nothing beyond what another complete store of their model has.

    Raises:
        SpecError: `unused_for_s` below a week, or on a file system that records no times of reading.
    """
    root = Path(root)
    if unused_for_s < LEAST_UNUSED_S:
        raise SpecError("cache.unused_too_short", days=unused_for_s / 86400)
    if unused_for_s < math.inf and root.exists() and os.statvfs(root).f_flag & getattr(os, "ST_NOATIME", 0):
        raise SpecError("cache.no_access_times", path=root)
    guards = {file.with_name(file.name.removesuffix(".lock")) for file in root.rglob(f"*{STORE_SUFFIX}.lock")}
    stores = [store for store in sorted({*find_stores(root), *guards}) if not is_locked(store)]
    found = [garbage for store in stores for garbage in _find_garbage_of(store, unfinished_for_s, unused_for_s)]
    if superseded:
        listed = {garbage.path for garbage in found}
        kept = [store for store in stores if store not in listed and not store.is_symlink()]
        for store, by in find_superseded(kept).items():
            if read_store_info(store).foreign_files:
                continue
            found.append(replace(_garbage(store, store, f"{by} has all that is in it"), superseded_by=by))
    return sorted(found, key=lambda garbage: garbage.path)


def find_unfinished(root: str | Path) -> list[Unfinished]:
    """The unfinished stores under a folder that no process writes now, sorted by path."""
    free = (store for store in find_stores(Path(root)) if not is_locked(store))
    return [unfinished for store in free if (unfinished := _find_unfinished(read_store_info(store)))]


def remove_garbage(items: Iterable[Garbage]) -> int:
    """Delete what `find_garbage` found, but no store that was used since or that the other one supersedes no longer.

    The other store is read first, and compared with its checksums.

    Returns:
        Bytes freed.

    Raises:
        StoreLockedError: a process has started to write one of the stores meanwhile.
        DamagedStoreError: a store that supersedes another one is not sound.
        NotWritableError: the disk refuses.
    """
    freed_bytes = 0
    items = list(items)
    for store in dict.fromkeys(item.superseded_by for item in items):
        if store is not None:
            require_sound(store, verify_store(store))
    for item in items:
        lock = StoreLock(item.store)
        lock.acquire()
        try:
            with storage_errors(item.path):
                if item.last_use is not None and _last_use(item.store, read_header(item.store)) > item.last_use:
                    continue
                if item.superseded_by is not None and item.path not in find_superseded([item.path, item.superseded_by]):
                    continue
                if item.path == item.store:
                    remove_store(item.store)
                else:
                    remove_path(item.path)
                if not item.store.exists():
                    lock.file.unlink(missing_ok=True)
            freed_bytes += item.size_bytes
        finally:
            lock.release()
    return freed_bytes


def _find_garbage_of(store: Path, unfinished_for_s: float, unused_for_s: float) -> Iterator[Garbage]:
    if store.is_symlink():
        return  # its target is another's, or is listed where it lies
    info = read_store_info(store) if store.exists() else None
    if info is not None and isinstance(info.problem, NewerStoreError):
        return  # whoever wrote it knows what belongs to it
    for folder in temporary_folders(store):
        if folder.exists():
            yield _garbage(folder, store, "left behind when a store was made or deleted")
    if info is None:
        if is_lock_file(lock_file(store)):
            yield _garbage(lock_file(store), store, "the lock of a store that is gone")
        return
    unfinished = _find_unfinished(info)
    if unfinished and unfinished.age_s >= unfinished_for_s and not info.foreign_files:
        done = f"{unfinished.num_blocks_done} of {unfinished.num_blocks} row blocks"
        yield _garbage(
            store, store, f"never finished ({done}) and no longer written; the same extraction would continue it"
        )
        return
    if unused_for_s < math.inf and info.header is not None and info.problem is None:
        last_use = _last_use(store, info.header)
        unused_s = time.time() - last_use
        if unused_s >= unused_for_s and not info.foreign_files:
            reason = f"its tokens have not been read or written for {unused_s / 86400:.0f} days"
            yield replace(_garbage(store, store, reason), last_use=last_use)
            return
    for file in worker_files(store).values():
        yield _garbage(file, store, "the lock of a worker that was killed")
    for file in staging_files(store):
        yield _garbage(file, store, "a chunk that a killed writer left behind")
    for folder in target_staging(store):
        yield _garbage(folder, store, "a target that a killed writer left behind")


def _last_use(store: Path, header: Header) -> float:
    """Seconds since the epoch, when tokens of a store were last read or written; everything else is read by a listing too."""
    folders = (store / name for name in header.arrays)
    files = (file for folder in folders for file in folder.rglob("*") if file.is_file() and file.name != HEADER_FILE)
    return max((max(status.st_atime, status.st_mtime) for status in map(Path.stat, files)), default=time.time())


def _garbage(path: Path, store: Path, reason: str) -> Garbage:
    return Garbage(path=path, store=store, size_bytes=size_of(path), reason=reason)


def _find_unfinished(info: StoreInfo) -> Unfinished | None:
    """The store, if no array is complete: a store whose new arrays are in progress has complete ones to lose."""
    if info.header is None or info.complete_arrays:
        return None
    files = [lock_file(info.path), info.path / HEADER_FILE, *(info.path / JOURNAL_FOLDER).glob("*")]
    written = max(file.stat().st_mtime for file in files if file.exists())
    return Unfinished(
        path=info.path,
        size_bytes=info.size_bytes,
        num_blocks=info.num_blocks,
        num_blocks_done=info.num_blocks_done,
        age_s=max(0.0, time.time() - written),
        has_hashes=_has_hashes(info.path, info.header, info.journal),
    )


def _has_hashes(store: Path, header: Header, journal: Journal) -> bool:
    try:
        return header.format == FORMAT_VERSION and bool(
            (StoreFiles(store, header, journal).rows.hashes != MISSING).all()
        )
    except CacheError:
        return True  # the same extraction restores them
