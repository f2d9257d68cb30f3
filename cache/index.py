"""The content index: hashes of the images in files, kept while the files stay as they were.

A file whose size, mtime, ctime and inode are those recorded when it was last hashed is not read again, as in git. A file that was
recorded within two seconds of its mtime or ctime may have changed since without a trace in them: it counts as unknown. The time of
recording is this machine's, the others may be a file server's. If this machine is behind, files are hashed again without need; if
it is ahead by more than two seconds, a change within the same tick of the server's clock as the one before goes unnoticed.

An index is one file in `<cache>/.index/`, replaced whole and carrying a checksum. It is only ever a shortcut: one that is damaged,
missing or of another version is made again. It knows files and numbers, not images: a file is named by a 64-bit key that its caller
makes of the path and of what is read from it, and may hold one row (a file an image) or many (an archive).
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_128_hexdigest

from .atomic_files import replace_file

INDEX_FOLDER = ".index"
INDEX_SUFFIX = ".index"
STAGING_SUFFIX = ".part"
FORMAT, FORMAT_VERSION = "layerbank content index", 1
SETTLED_NS = 2 * 10**9
"""Age of a file's last change from which its record is trusted."""
STALE_STAGING_S = 3600.0

STATUS = np.dtype([("size", "<i8"), ("mtime_ns", "<i8"), ("ctime_ns", "<i8"), ("inode", "<u8")])
RECORD = np.dtype([("key", "<u8"), ("status", STATUS), ("recorded_ns", "<i8"), ("num_rows", "<i8")])
Status = tuple[int, int, int, int]
MISSING: Status = (-1, 0, 0, 0)

Array = NDArray[np.void]
Hashes = NDArray[np.uint64]


class UnusableIndex(Exception):
    """An index that cannot be used; its argument says why."""


def read_status(paths: Sequence[str | Path]) -> Array:
    """[F] STATUS of files; size -1 for one that cannot be found."""
    return np.fromiter(map(_status, paths), dtype=STATUS, count=len(paths))


def read_whole(path: str | Path) -> tuple[bytes, Status, bool]:
    """Read a file.

    Returns:
        Its bytes, its status afterwards, and whether that is also its status before.

    Raises:
        OSError: it cannot be read.
    """
    fd = os.open(
        path, os.O_RDONLY | getattr(os, "O_BINARY", 0)
    )  # faster than `open`, and the status costs no look-up of the path
    try:
        before = os.fstat(fd)
        content = os.read(fd, before.st_size)
        while len(content) < before.st_size and (more := os.read(fd, before.st_size - len(content))):
            content += more
        after = os.fstat(fd)
    finally:
        os.close(fd)
    is_settled = (
        len(content) == after.st_size
        and after.st_mtime_ns == before.st_mtime_ns
        and after.st_ctime_ns == before.st_ctime_ns
    )
    return content, _fields(after), is_settled


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
        found = np.full(len(keys), -1)
        if not len(self.records):
            return found
        places = _places(np.ascontiguousarray(self.records["key"]), keys)
        records = self.records[places]
        last_change = np.maximum(records["status"]["mtime_ns"], records["status"]["ctime_ns"])
        candidates = np.flatnonzero(
            (records["key"] == keys)
            & (records["num_rows"] == num_rows)
            & (last_change <= records["recorded_ns"] - SETTLED_NS)
        )
        same = same_status(records["status"][candidates], status_of(candidates))
        found[candidates[same]] = places[candidates[same]]
        return found

    def hashes_of(self, places: NDArray[np.int64]) -> tuple[Hashes, Hashes]:
        """Hashes by rule 2 and by rule 1 of the rows of some records, file by file."""
        rows = rows_of(places, self.records["num_rows"])
        rule1 = self.hashes if self.rule1_hashes is None else self.rule1_hashes
        return self.hashes[rows], rule1[rows]


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
    user = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return [cache_root / INDEX_FOLDER, *([Path(user, "layerbank", "index")] if os.path.isabs(user) else [])]


def read_index(path: Path, scope: str) -> ContentIndex:
    """Read an index; an empty one if there is none.

    Args:
        path: its file.
        scope: what it has to be an index of.

    Raises:
        UnusableIndex: it cannot be read, is damaged, or is of other data or another version.
    """
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return EMPTY
    except OSError as error:
        raise UnusableIndex(error.strerror or str(error)) from error
    first, _, _ = data[:200].partition(b"\n")
    words = first.decode(errors="replace").removeprefix(FORMAT).split()
    if not first.startswith(FORMAT.encode()) or len(words) != 2:
        raise UnusableIndex("it is no content index")
    if words[0] != str(FORMAT_VERSION):
        raise UnusableIndex(f"another version of layerbank wrote it (format {words[0]})")
    content = memoryview(data)[len(first) + 1 :]
    if xxh3_128_hexdigest(content) != words[1]:
        raise UnusableIndex("it is damaged")
    header_bytes = int.from_bytes(content[:8], "little")
    header = json.loads(bytes(content[8:header_bytes]))
    if header["scope"] != scope:
        raise UnusableIndex("it belongs to other data")
    parts = (RECORD, header["files"]), (np.dtype("<u8"), header["rows"]), (np.dtype("<u8"), header["rule1_rows"])
    arrays: list[NDArray[Any]] = []
    for dtype, count in parts:
        # a copy, because the bytes in the file are not aligned
        arrays.append(np.frombuffer(content, dtype=dtype, count=count, offset=header_bytes).copy())
        header_bytes += arrays[-1].nbytes
    records, hashes, rule1 = arrays
    return ContentIndex(records, hashes, rule1 if len(rule1) else None)


def write_index(paths: Sequence[Path], index: ContentIndex, scope: str) -> str:
    """Write an index to the first of some places that can be written; of two processes, the last one's stays.

    Returns:
        An empty text, or why no place can be written.
    """
    rule1 = np.empty(0, dtype=np.uint64) if index.rule1_hashes is None else index.rule1_hashes
    counts = {"files": len(index.records), "rows": len(index.hashes), "rule1_rows": len(rule1)}
    header = json.dumps({"scope": scope, **counts}, allow_nan=False).encode()
    start = (8 + len(header)).to_bytes(8, "little")
    content = b"".join((start, header, index.records.data, index.hashes.data, rule1.data))
    data = f"{FORMAT} {FORMAT_VERSION} {xxh3_128_hexdigest(content)}\n".encode() + content
    problem = "no folder"
    for path in paths:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_stale_staging(path)
            staging = path.with_name(f"{path.name}.{secrets.token_hex(4)}{STAGING_SUFFIX}")
            try:
                replace_file(path, data, staging)
            finally:
                staging.unlink(missing_ok=True)
        except OSError as error:
            problem = error.strerror or str(error)
            continue
        return ""
    return problem


def _remove_stale_staging(path: Path) -> None:
    """Remove what processes that were killed left of this index."""
    for file in path.parent.glob(f"{path.name}.*{STAGING_SUFFIX}"):
        if time.time() - file.stat().st_mtime > STALE_STAGING_S:
            file.unlink(missing_ok=True)
