"""The content index: hashes of the images in files, kept while the files stay as they were.

A file whose size, mtime, ctime and inode are those recorded when it was last hashed is not read again, as in git. A file that was
recorded within two seconds of its mtime or ctime may have changed since without a trace in them: it counts as unknown. The time of
recording is this machine's, the others may be a file server's. If this machine is behind, files are hashed again without need; if
it is ahead by more than two seconds, a change within the same tick of the server's clock as the one before goes unnoticed.

An index is one file in `<cache>/.index/`, see `checked_arrays`; one that cannot be used is made again. It knows files and numbers,
not images: a file is named by a 64-bit key that its caller makes of the path and of what is read from it, and may hold one row (a
file an image) or many (an archive).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .checked_arrays import read_arrays, write_arrays

INDEX_FOLDER = ".index"
INDEX_SUFFIX = ".index"
FORMAT, FORMAT_VERSION = "layerbank content index", 1
SETTLED_NS = 2 * 10**9
"""Age of a file's last change from which its record is trusted."""

STATUS = np.dtype([("size", "<i8"), ("mtime_ns", "<i8"), ("ctime_ns", "<i8"), ("inode", "<u8")])
RECORD = np.dtype([("key", "<u8"), ("status", STATUS), ("recorded_ns", "<i8"), ("num_rows", "<i8")])
Status = tuple[int, int, int, int]
MISSING: Status = (-1, 0, 0, 0)

Array = NDArray[np.void]
Hashes = NDArray[np.uint64]


def read_status(paths: Sequence[str | Path]) -> Array:
    """[F] STATUS of files; size -1 for one that cannot be found."""
    return np.fromiter(map(_status, paths), dtype=STATUS, count=len(paths))


def read_whole(path: str | Path) -> tuple[bytes, Status, bool]:
    """Read a regular file.

    Returns:
        Its bytes, its status afterwards, and whether that is also its status before.

    Raises:
        OSError: it cannot be read, or is something else, such as a pipe, which is not waited for.
    """
    # faster than `open`, and the status costs no look-up of the path
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    try:
        before = os.fstat(fd)
        if not stat.S_ISREG(before.st_mode):
            raise OSError("no regular file")
        content = os.read(fd, before.st_size)
        while len(content) < before.st_size and (more := os.read(fd, before.st_size - len(content))):
            content += more
        after = _fields(os.fstat(fd))
    finally:
        os.close(fd)
    return content, after, len(content) == after[0] and after == _fields(before)


def _status(path: str | Path) -> Status:
    try:
        return _fields(os.stat(path))
    except (OSError, ValueError):
        return MISSING


def _fields(found: os.stat_result) -> Status:
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


@dataclass(frozen=True, eq=False)
class ContentIndex:
    """Records of F files and the hashes of the R rows in them.

    Attributes:
        records: [F] RECORD.
        hashes: [R] hashes, file by file in the order of `records`.
        rule1_hashes: [R] hashes by rule 1; None if they are the same.
    """

    records: Array
    hashes: Hashes
    rule1_hashes: Hashes | None = None

    @classmethod
    def of_files(
        cls,
        keys: NDArray[np.uint64],
        status: Array,
        recorded_ns: NDArray[np.int64],
        num_rows: NDArray[np.int64],
        hashes: Hashes,
        rule1_hashes: Hashes,
    ) -> ContentIndex:
        """Make an index of F files, with R hashes file by file.

        Args:
            keys: [F] names of the files.
            status: [F] of each file, the same before and after its rows were hashed.
            recorded_ns: [F] time before the first of its rows was read.
            num_rows: [F] rows of each file.
            hashes, rule1_hashes: [R] of the rows.
        """
        records = np.empty(len(keys), dtype=RECORD)
        records["key"], records["status"], records["num_rows"] = keys, status, num_rows
        records["recorded_ns"] = recorded_ns
        return cls(records, hashes, None if np.array_equal(hashes, rule1_hashes) else rule1_hashes)

    def find(
        self, keys: NDArray[np.uint64], num_rows: NDArray[np.int64], status_of: Callable[[NDArray[np.int64]], Array]
    ) -> NDArray[np.int64]:
        """Find files that are as they were when they were recorded.

        Args:
            keys: [F] names of the files.
            num_rows: [F] rows of each file.
            status_of: numbers of files, in 0..F-1 -> their STATUS now; asked only for files with a record to be compared.

        Returns:
            [F] place of each file among the records; -1 for a file that is unknown, has changed or was recorded too early.
        """
        return find_records(self.records, keys, status_of, num_rows)

    def hashes_of(self, places: NDArray[np.int64]) -> tuple[Hashes, Hashes]:
        """Hashes by rule 2 and by rule 1 of the rows of some records, file by file."""
        rows = rows_of(places, self.records["num_rows"])
        rule1 = self.hashes if self.rule1_hashes is None else self.rule1_hashes
        return self.hashes[rows], rule1[rows]


def find_records(
    records: Array,
    keys: NDArray[np.uint64],
    status_of: Callable[[NDArray[np.int64]], Array],
    num_rows: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """Find files that are as they were when they were recorded, as `ContentIndex.find`; None is any number of rows."""
    found = np.full(len(keys), -1)
    if not len(records):
        return found
    places = _places(np.ascontiguousarray(records["key"]), keys)
    records = records[places]
    last_change = np.maximum(records["status"]["mtime_ns"], records["status"]["ctime_ns"])
    may_be_same = (records["key"] == keys) & (last_change <= records["recorded_ns"] - SETTLED_NS)
    if num_rows is not None:
        may_be_same &= records["num_rows"] == num_rows
    candidates = np.flatnonzero(may_be_same)
    same = same_status(records["status"][candidates], status_of(candidates))
    found[candidates[same]] = places[candidates[same]]
    return found


def _places(recorded: NDArray[np.uint64], keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """[F] place of each key among the recorded ones; of a key that is not there, any place."""
    if np.array_equal(recorded, keys):
        return np.arange(len(keys))
    by_key, order = (
        np.argsort(recorded),
        np.argsort(keys),
    )  # both sorted, or each search would miss the processor's cache
    places = np.empty(len(keys), dtype=np.int64)
    places[order] = by_key[np.searchsorted(recorded[by_key], keys[order]).clip(max=len(recorded) - 1)]
    return places


EMPTY = ContentIndex(np.empty(0, dtype=RECORD), np.empty(0, dtype=np.uint64))


def same_status(one: Array, other: Array) -> NDArray[np.bool_]:
    """[F] whether files are there and have the same size, times and inode."""
    same: NDArray[np.bool_] = (one["size"] >= 0) & (one == other)
    return same


def rows_of(files: NDArray[np.int64], num_rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Numbers of the rows of some files, where the rows of file after file are numbered on.

    >>> rows_of(np.array([2, 0]), np.array([2, 1, 3]))
    array([3, 4, 5, 0, 1])
    """
    starts, counts = (np.cumsum(num_rows) - num_rows)[files], num_rows[files]
    shifts = starts - (np.cumsum(counts) - counts)
    return np.repeat(shifts, counts) + np.arange(counts.sum())


# ---- files


def index_folders(cache_root: Path) -> list[Path]:
    """Where indexes may lie, best first: in the cache, or, where that is read-only, in the user's cache folder."""
    return [cache_root / INDEX_FOLDER, *user_folders()]


def user_folders() -> list[Path]:
    """The folder of indexes in the user's cache folder; none where the user has no such folder."""
    user = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return [Path(user, "layerbank", "index")] if os.path.isabs(user) else []


def read_index(path: Path, scope: str) -> ContentIndex:
    """Read an index; an empty one if there is none.

    Args:
        path: its file.
        scope: what it has to be an index of.

    Raises:
        UnusableIndex: it cannot be read, is damaged, or is of other data or another version.
    """
    hash_dtype = np.dtype("<u8")
    dtypes = {"files": RECORD, "rows": hash_dtype, "rule1_rows": hash_dtype}
    arrays = read_arrays(path, FORMAT, FORMAT_VERSION, scope, dtypes)
    if arrays is None:
        return EMPTY
    records, hashes, rule1 = arrays.values()
    return ContentIndex(records, hashes, rule1 if len(rule1) else None)


def write_index(paths: Sequence[Path], index: ContentIndex, scope: str) -> str:
    """Write an index to the first of some places that can be written; of two processes, the last one's stays.

    Returns:
        An empty text, or why no place can be written.
    """
    rule1 = np.empty(0, dtype=np.uint64) if index.rule1_hashes is None else index.rule1_hashes
    arrays = {"files": index.records, "rows": index.hashes, "rule1_rows": rule1}
    return write_arrays(paths, FORMAT, FORMAT_VERSION, scope, arrays)
