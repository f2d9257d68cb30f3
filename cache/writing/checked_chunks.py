"""Committed chunks that were read back and found sound, so that the next process does not read them again.

A chunk is read back once after it was committed, by the first writer that resumes the store, and not when it is committed: what is
read back then has come through the end of the process that wrote it, and perhaps of its machine. From then on a chunk counts as
sound while size, mtime, ctime and inode of its file stay those of that time, by the rules of the content index (`..index`). So
what other programs and file systems do to a chunk is found at every resume. A medium that alters bytes in place and says nothing
is found at the first resume only, as in an array that is complete; `verify` reads everything.

The record is a file in the journal's folder, written by the owner of the store's lock and removed when the arrays are complete.
It is a shortcut: without it chunks are read again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from xxhash import xxh3_64_intdigest

from ..atomic_files import replace_file
from ..checked_arrays import UnusableIndex, read_arrays, render_arrays
from ..format import ChunkedArray
from ..index import RECORD, find_records, read_status, same_status
from ..journal import CHECKED_FILE, JOURNAL_FOLDER, STAGING_PREFIX

FORMAT, FORMAT_VERSION = "layerbank checked chunks", 1
CHUNKS = "chunks"


def check_chunks(store: Path, chunks: Sequence[tuple[ChunkedArray, int, str]]) -> list[str | None]:
    """The problem of each of some chunks, None for a sound one; reads those that were not read since they last changed.

    Args:
        store: the store, whose lock the caller holds.
        chunks: n arrays, numbers of a chunk and its CRC-32C by the journal.
    """
    files = [array.file(store, chunk) for array, chunk, _ in chunks]
    names = (f"{array.name}/{array.file_name(chunk)} {checksum}" for array, chunk, checksum in chunks)
    records = np.zeros(len(chunks), dtype=RECORD)
    records["key"] = np.fromiter(
        (xxh3_64_intdigest(name.encode()) for name in names), dtype=np.uint64, count=len(chunks)
    )
    records["recorded_ns"] = time.time_ns()  # before the first one is read
    records["status"] = read_status(files)
    known = _read(store)
    places = find_records(known, records["key"], lambda found: records["status"][found])
    is_known = places >= 0
    records["recorded_ns"][is_known] = known["recorded_ns"][places[is_known]]
    problems = [
        None if is_sound else array.problem(store, chunk, checksum)
        for is_sound, (array, chunk, checksum) in zip(is_known, chunks, strict=True)
    ]
    if not is_known.all():
        is_sound = np.array([problem is None for problem in problems])
        sound = records[is_sound & same_status(records["status"], read_status(files))]
        others = known[~np.isin(known["key"], records["key"])]  # of arrays that are not requested now
        folder = store / JOURNAL_FOLDER
        data = render_arrays(FORMAT, FORMAT_VERSION, "", {CHUNKS: np.concatenate([others, sound])})
        replace_file(folder / CHECKED_FILE, data, folder / f"{STAGING_PREFIX}{CHECKED_FILE}")
    return problems


def forget_checked(store: Path) -> None:
    """Remove the record: a complete store has the same files whatever its history."""
    (store / JOURNAL_FOLDER / CHECKED_FILE).unlink(missing_ok=True)


def _read(store: Path) -> np.ndarray[tuple[int], np.dtype[np.void]]:
    try:
        arrays = read_arrays(store / JOURNAL_FOLDER / CHECKED_FILE, FORMAT, FORMAT_VERSION, "", {CHUNKS: RECORD})
    except UnusableIndex:
        arrays = None
    return np.empty(0, dtype=RECORD) if arrays is None else arrays[CHUNKS]
