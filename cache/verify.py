"""Verify and repair a store: find every altered or missing file, list its rows, and drop what is damaged.

`verify_store` reads everything: each byte of a sound store is covered by a checksum that still holds (the header's own,
the header's of other metadata, labels and ids, the journal's of chunks, a journal line's own), and no foreign file is
there. `repair_store` drops damaged chunks from the journal, so that the same extraction computes those rows again and
no others.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from .atomic_files import storage_errors
from .errors import DamagedStoreError, NotAStoreError
from .format import (
    CHECKSUM_BYTES,
    ChunkedArray,
    block_arrays,
    content_hash_array,
    metadata_problem,
    static_array,
    token_array,
)
from .header import COMPLETE, HEADER_FILE, Header, read_header
from .journal import JOURNAL_FOLDER, Journal, read_journal, staging_files
from .locking import StoreLock
from .resume import drop_damaged

FOREIGN = "does not belong to the store"


@dataclass(frozen=True, kw_only=True)
class Damage:
    """One file that is not as it was written.

    Args:
        file: path inside the store.
        problem: a description.
        array: the array that it is a chunk of; None for other files.
        rows: the rows it holds (for `sample_ids/bytes`, bytes); None for other files.
    """

    file: str
    problem: str
    array: str | None = None
    rows: range | None = None

    @property
    def level(self) -> str | None:
        return self.array.split("/")[1] if self.array and self.array.startswith("tokens/") else None

    @property
    def kind(self) -> str | None:
        return self.array.split("/")[2] if self.array and self.array.startswith("tokens/") else None

    def __str__(self) -> str:
        rows = "" if self.rows is None else f" (rows {self.rows.start} to {self.rows.stop})"
        return f"{self.file}{rows}: {self.problem}"


def verify_store(path: str | Path, *, only: Collection[tuple[str, str]] | None = None) -> list[Damage]:
    """Read a whole store and list its damage; an empty list means a sound store.

    Row blocks that are not committed yet are not damage. Nothing is changed, and no lock is needed.

    Args:
        path: the store.
        only: the (level, kind) of the token arrays to read; None reads all. Everything else is always checked.

    Raises:
        StoreMissingError, NotAStoreError: there is no store.
    """
    store = Path(path)
    try:
        header = read_header(store)
    except (DamagedStoreError, NotAStoreError):
        if not (store / JOURNAL_FOLDER).is_dir():
            raise
        found = "altered" if (store / HEADER_FILE).is_file() else "missing"
        return [Damage(file=HEADER_FILE, problem=f"{found}; without it nothing else can be checked")]
    journal = read_journal(store)
    metadata = [
        Damage(file=path, problem=problem)
        for path, checksum in header.metadata.items()
        if (problem := metadata_problem(store, path, checksum))
    ]
    bad_lines = [
        Damage(file=f"{JOURNAL_FOLDER}/{name}", problem=f"line {line} was altered")
        for name, line, is_torn in journal.bad_lines
        if not is_torn or header.state == COMPLETE
    ]
    chunks = _block_damage(store, header, journal, only)
    return [*metadata, *bad_lines, *_static_damage(store, header), *chunks, *_foreign_files(store, header)]


def quick_damage(store: Path, header: Header, journal: Journal) -> Iterator[Damage]:
    """Damage of complete arrays that shows without reading tokens: one listing per folder."""
    yield from _static_damage(store, header)
    for array in (content_hash_array(header), *(token_array(header, a.name) for a in header.complete_arrays)):
        sizes = _file_sizes(store / array.name)
        for chunk in range(array.grid.num_chunks):
            size_bytes = sizes.get(array.file_name(chunk))
            problem = "missing" if size_bytes is None else array.size_problem(size_bytes)
            if problem is None and journal.checksum(array.name, chunk, array.grid) is None:
                problem = "not in the journal"
            if problem is not None:
                yield _chunk_damage(array, chunk, problem)


def swapped_chunks(store: Path, array: ChunkedArray, journal: Journal) -> Iterator[Damage]:
    """Chunk files whose own checksum is not the journal's: without reading the data, this finds files of another store."""
    for chunk in range(array.grid.num_chunks):
        with open(array.file(store, chunk), "rb") as file:
            file.seek(array.chunk_data_bytes)
            stored = int.from_bytes(file.read(CHECKSUM_BYTES), "little")
        if f"{stored:08x}" != journal.checksum(array.name, chunk, array.grid):
            yield _chunk_damage(array, chunk, "altered")


@dataclass(frozen=True, kw_only=True)
class Repair:
    """The result of a repair.

    Args:
        dropped: chunks that are no longer in the journal; the same extraction computes them again.
        restored_later: labels, sample ids and metadata, which the same extraction restores.
        foreign: files that do not belong to the store.
        num_rows: rows that have to be computed again, for at least one array.
    """

    dropped: tuple[Damage, ...]
    restored_later: tuple[Damage, ...]
    foreign: tuple[Damage, ...]
    num_rows: int


def repair_store(path: str | Path, *, remove_foreign: bool = False) -> Repair:
    """Verify a store, and drop damaged chunks from the journal and from the disk; a writer then lists their rows as pending.

    Args:
        path: the store.
        remove_foreign: also delete files that do not belong to the store.

    Raises:
        StoreMissingError, NotAStoreError: there is no store.
        DamagedStoreError: its header is damaged; such a store has to be recreated.
        StoreLockedError: another process writes it.
        StorageFullError, NotWritableError: the disk refuses.
    """
    store = Path(path)
    header = read_header(store)
    lock = StoreLock(store)
    lock.acquire()
    try:
        with storage_errors(store):
            damages = verify_store(store)
            names = {array.name for array in block_arrays(header)}
            dropped = [damage for damage in damages if damage.array in names]
            foreign = [damage for damage in damages if damage.problem == FOREIGN]
            by_block: dict[int, set[str]] = {}
            for damage in dropped:
                assert damage.array is not None, "chosen above"
                assert damage.rows is not None, "a chunk has rows"
                by_block.setdefault(damage.rows.start // header.block_rows, set()).add(damage.array)
            drop_damaged(store, header, read_journal(store), by_block)
            for damage in [*dropped, *(foreign if remove_foreign else [])]:
                (store / damage.file).unlink(missing_ok=True)
    finally:
        lock.release()
    return Repair(
        dropped=tuple(dropped),
        restored_later=tuple(d for d in damages if d not in dropped and d not in foreign),
        foreign=tuple(foreign),
        num_rows=sum(len(header.hash_grid.block(block)) for block in by_block),
    )


def _chunk_damage(array: ChunkedArray, chunk: int, problem: str) -> Damage:
    file = f"{array.name}/{array.file_name(chunk)}"
    return Damage(file=file, problem=problem, array=array.name, rows=array.grid.chunk(chunk))


def _file_sizes(folder: Path) -> Mapping[str, int]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry.stat().st_size for entry in entries}
    except OSError:
        return {}


def _static_damage(store: Path, header: Header) -> Iterator[Damage]:
    for name, entry in header.static.items():
        array = static_array(header, name)
        if problem := array.problem(store, 0, entry.crc32c):
            yield _chunk_damage(array, 0, problem)


def _block_damage(
    store: Path, header: Header, journal: Journal, only: Collection[tuple[str, str]] | None
) -> Iterator[Damage]:
    unread = set() if only is None else {a.name for a in header.complete_arrays if (a.level, a.kind) not in only}
    for array in (array for array in block_arrays(header) if array.name not in unread):
        must_be_there = array.name not in header.arrays or header.arrays[array.name].complete
        must_be_there &= bool(header.complete_arrays)
        for chunk in range(array.grid.num_chunks):
            checksum = journal.checksum(array.name, chunk, array.grid)
            if (must_be_there or checksum is not None) and (problem := array.problem(store, chunk, checksum)):
                yield _chunk_damage(array, chunk, problem)


def _foreign_files(store: Path, header: Header) -> Iterator[Damage]:
    arrays = [*block_arrays(header), *(static_array(header, name) for name in header.static)]
    known = {HEADER_FILE, *header.metadata, *(file.as_posix() for array in arrays for file in array.files(Path()))}
    in_progress = [*(store / JOURNAL_FOLDER).glob("worker-*.jsonl"), *staging_files(store)]
    known.update(file.relative_to(store).as_posix() for file in in_progress)
    found = {
        (Path(folder) / name).relative_to(store).as_posix() for folder, _, names in os.walk(store) for name in names
    }
    for path in sorted(found - known):
        yield Damage(file=path, problem=FOREIGN)
