"""Find every file of a store that is not as it was written, and name the rows it holds.

Everything is read: a store is verified when each of its bytes is covered by a checksum that still holds (the
header's own, the header's of other metadata, labels and ids, the journal's of chunks, a journal line's own),
and no file is there that does not belong.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import numpy as np

from .errors import DamagedStoreError, NotAStoreError
from .header import COMPLETE, HEADER_FILE, Header, read_header
from .journal import JOURNAL_FOLDER, Journal, read_journal, staging_files
from .layout import CHECKSUM_BYTES, ChunkedArray, block_arrays, file_checksum, static_array

FOREIGN = "does not belong to the store"


@dataclass(frozen=True, kw_only=True)
class Damage:
    """One file that is not as it was written.

    Args:
        file: path inside the store.
        problem: what is wrong with it, in words.
        array: name of the array that it is a chunk of; None for other files.
        rows: the rows it holds (of `sample_ids/bytes`, bytes); None for other files.
    """

    file: str
    problem: str
    array: str | None = None
    rows: range | None = None

    @property
    def level(self) -> str | None:
        """The level, for a chunk of a token array."""
        return self.array.split("/")[1] if self.array and self.array.startswith("tokens/") else None

    @property
    def kind(self) -> str | None:
        """The kind, for a chunk of a token array."""
        return self.array.split("/")[2] if self.array and self.array.startswith("tokens/") else None

    def __str__(self) -> str:
        rows = "" if self.rows is None else f" (rows {self.rows.start} to {self.rows.stop})"
        return f"{self.file}{rows}: {self.problem}"


def verify_store(
    path: str | Path,
    *,
    only: Collection[tuple[str, str]] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Damage]:
    """Read a whole store and list what is wrong with it; an empty list is a sound store.

    Blocks that are not committed yet are no damage. Nothing is changed, and no lock is needed.

    Args:
        path: the store.
        only: the (level, kind) of the token arrays to read; None reads all. Everything else is checked in any case.
        progress: called with (chunks read, chunks in all) after each chunk.

    Raises:
        StoreMissingError, NotAStoreError: there is no store.
    """
    store = Path(path)
    try:
        header = read_header(store)
    except (DamagedStoreError, NotAStoreError):
        if not (store / JOURNAL_FOLDER).is_dir():
            raise
        problem = "altered" if (store / HEADER_FILE).is_file() else "missing"
        return [Damage(file=HEADER_FILE, problem=f"{problem}; without it nothing else can be checked")]
    journal = read_journal(store)
    return [
        *_metadata_damage(store, header),
        *_journal_damage(header, journal),
        *_static_damage(store, header),
        *_block_damage(store, header, journal, only, progress),
        *_foreign_files(store, header),
    ]


def chunk_problem(
    store: Path, array: ChunkedArray, chunk: int, checksum: str | None, *, read: bool = True
) -> str | None:
    """What is wrong with one chunk file, or None.

    Args:
        store: the store.
        array: the array.
        chunk: which chunk.
        checksum: the CRC-32C of its data by journal or header, None where they have none.
        read: read it, or only measure it.
    """
    file = array.file(store, chunk)
    if not file.is_file():
        return "missing"
    if problem := size_problem(array, os.stat(file).st_size):
        return problem
    if checksum is None:
        return "not in the journal"
    if read:
        data = np.fromfile(file, dtype=np.uint8)
        kept = int.from_bytes(data[-CHECKSUM_BYTES:].tobytes(), "little")
        if f"{kept:08x}" != checksum or google_crc32c.value(data[:-CHECKSUM_BYTES]) != kept:
            return "altered"
    return None


def size_problem(array: ChunkedArray, size_bytes: int) -> str | None:
    """What is wrong with the size of a chunk file, or None."""
    if size_bytes == array.file_bytes:
        return None
    return f"{size_bytes} bytes instead of {array.file_bytes}"


def metadata_problem(store: Path, path: str, checksum: str) -> str | None:
    """What is wrong with one ``zarr.json``, or None."""
    if not (store / path).is_file():
        return "missing"
    return None if file_checksum(store / path) == checksum else "altered"


def chunk_damage(array: ChunkedArray, chunk: int, problem: str) -> Damage:
    """The damage of one chunk."""
    file = f"{array.name}/{array.file_name(chunk)}"
    return Damage(file=file, problem=problem, array=array.name, rows=array.grid.chunk(chunk))


def _metadata_damage(store: Path, header: Header) -> Iterator[Damage]:
    for path, checksum in header.metadata.items():
        if problem := metadata_problem(store, path, checksum):
            yield Damage(file=path, problem=problem)


def _journal_damage(header: Header, journal: Journal) -> Iterator[Damage]:
    for name, line in journal.bad_lines:
        if (name, line) not in journal.torn or header.state == COMPLETE:
            yield Damage(file=f"{JOURNAL_FOLDER}/{name}", problem=f"line {line} was altered")


def _static_damage(store: Path, header: Header) -> Iterator[Damage]:
    for name, entry in header.static.items():
        array = static_array(header, name)
        if problem := chunk_problem(store, array, 0, entry.crc32c):
            yield chunk_damage(array, 0, problem)


def _block_damage(
    store: Path,
    header: Header,
    journal: Journal,
    only: Collection[tuple[str, str]] | None,
    progress: Callable[[int, int], None] | None,
) -> Iterator[Damage]:
    unread = set() if only is None else {a.name for a in header.complete_arrays if (a.level, a.kind) not in only}
    arrays = [array for array in block_arrays(header) if array.name not in unread]
    num_chunks = sum(array.grid.num_chunks for array in arrays)
    num_done = 0
    for array in arrays:
        must_be_there = array.name not in header.arrays or header.arrays[array.name].complete
        must_be_there &= bool(header.complete_arrays)
        for chunk in range(array.grid.num_chunks):
            checksum = journal.checksum(array.name, chunk, array.grid)
            if must_be_there or checksum is not None:
                problem = chunk_problem(store, array, chunk, checksum)
                if problem:
                    yield chunk_damage(array, chunk, problem)
            num_done += 1
            if progress is not None:
                progress(num_done, num_chunks)


def _foreign_files(store: Path, header: Header) -> Iterator[Damage]:
    known = {HEADER_FILE, *header.metadata}
    known.update(f"{name}/{static_array(header, name).file_name(0)}" for name in header.static)
    known.update(
        f"{array.name}/{array.file_name(chunk)}"
        for array in block_arrays(header)
        for chunk in range(array.grid.num_chunks)
    )
    known.update(file.relative_to(store).as_posix() for file in staging_files(store))
    known.update(file.relative_to(store).as_posix() for file in (store / JOURNAL_FOLDER).glob("worker-*.jsonl"))
    found = {
        (Path(folder) / name).relative_to(store).as_posix() for folder, _, names in os.walk(store) for name in names
    }
    for path in sorted(found - known):
        yield Damage(file=path, problem=FOREIGN)
