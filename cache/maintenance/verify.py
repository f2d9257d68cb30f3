"""Verify and repair a store: find every altered or missing file, list its rows, and drop what is damaged.

`verify_store` reads everything: each byte of a sound store is covered by a checksum that still holds (the header's own,
the header's of other metadata, labels and ids, the journal's of chunks, a journal line's own), and no foreign file is
there. `repair_store` drops damaged chunks from the journal, so that the same extraction computes those rows again and
no others.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..atomic_files import storage_errors
from ..damage import Damage, chunk_damage, static_damage
from ..errors import CacheError, DamagedStoreError, NotAStoreError
from ..format import block_arrays, metadata_problem, static_array
from ..header import COMPLETE, HEADER_FILE, Header, read_header
from ..journal import JOURNAL_FOLDER, Journal, read_journal, staging_files
from ..targets import POINTERS, is_target_file, list_targets, read_target
from ..writing.locking import StoreLock
from ..writing.resume import drop_damaged

FOREIGN = "does not belong to the store"


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
    return [
        *metadata,
        *bad_lines,
        *static_damage(store, header),
        *chunks,
        *_target_damage(store),
        *foreign_files(store, header),
    ]


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
        num_rows=sum(len(header.block_grid.block(block)) for block in by_block),
    )


def _block_damage(
    store: Path, header: Header, journal: Journal, only: Collection[tuple[str, str]] | None
) -> Iterator[Damage]:
    unread = set() if only is None else {a.name for a in header.complete_arrays if (a.level, a.kind) not in only}
    for array in (array for array in block_arrays(header) if array.name not in unread):
        entry = header.arrays.get(array.name)
        must_be_there = bool(header.complete_arrays) if entry is None else entry.complete
        for chunk in range(array.grid.num_chunks):
            checksum = journal.checksum(array.name, chunk, array.grid)
            if (must_be_there or checksum is not None) and (problem := array.problem(store, chunk, checksum)):
                yield chunk_damage(array, chunk, problem)


def _target_damage(store: Path) -> Iterator[Damage]:
    for name in list_targets(store):
        try:
            read_target(store, name)
        except CacheError as error:
            yield Damage(file=f"{POINTERS}/{name}.json", problem=error.got)


def foreign_files(store: Path, header: Header) -> Iterator[Damage]:
    """Files inside a store that the format does not have."""
    arrays = [*block_arrays(header), *(static_array(header, name) for name in header.static)]
    known = {HEADER_FILE, *header.metadata, *(file.as_posix() for array in arrays for file in array.files(Path()))}
    in_progress = [*(store / JOURNAL_FOLDER).glob("worker-*.jsonl"), *staging_files(store)]
    known.update(file.relative_to(store).as_posix() for file in in_progress)
    found = {
        (Path(folder) / name).relative_to(store).as_posix() for folder, _, names in os.walk(store) for name in names
    }
    for path in sorted(found - known):
        if not is_target_file(path):
            yield Damage(file=path, problem=FOREIGN)
