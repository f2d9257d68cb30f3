"""Verify and repair a store: find every altered or missing file, list its rows, and drop what is damaged.

`verify_store` reads everything: each byte of a sound store is covered by a checksum that still holds (the header's own,
the header's of other metadata, labels and ids, the journal's of chunks, a journal line's own), and no foreign file is
there. `repair_store` drops damaged chunks from the journal, so that the same extraction computes those rows again and
no others.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..atomic_files import remove_path, storage_errors
from ..damage import Damage, chunk_damage, static_damage
from ..errors import CacheError, DamagedStoreError, NotAStoreError
from ..format import CONTENT_HASHES, SAMPLE_ID_OFFSETS, VIEWS, block_arrays, metadata_problem, static_array
from ..header import HEADER_FILE, Header, read_header
from ..header_values import COMPLETE
from ..journal import (
    CHECKED_FILE,
    JOURNAL_FOLDER,
    Journal,
    journal_problems,
    read_journal,
    rewrite_journal,
    staging_files,
)
from ..reader import StoreFiles, require_current
from ..targets import (
    POINTERS,
    TARGETS,
    drop_damaged_targets,
    group_problem,
    is_target_file,
    is_target_folder,
    list_targets,
    read_target,
    target_staging,
)
from ..writing.locking import StoreLock, is_locked, lock_file, read_owner, worker_files
from ..writing.resume import drop_damaged, temporary_folders

FOREIGN = "does not belong to the store"
_ARRAY_FOLDER = re.compile(r"tokens/([\w.-]+/block\.\d+/|final/)?[\w.-]+|tokens/[\w.-]+/block\.\d+")  # or one around it
_OF_FILE_MANAGERS = (".DS_Store", "Thumbs.db", "desktop.ini", ".directory")


def verify_store(path: str | Path, *, only: Collection[tuple[str, str]] | None = None) -> list[Damage]:
    """Read a whole store and list its damage; an empty list means a sound store.

    Row blocks that are not committed yet are not damage. Nothing is changed, and no lock is needed.

    Args:
        path: the store.
        only: the (level, kind) of the token arrays to read; None reads all. Everything else is always checked.

    Raises:
        StoreMissingError, NotAStoreError: there is no store.
        NewerStoreError: a newer layerbank wrote it.
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
    names = [array.name for array in block_arrays(header)]
    known = journal.of_store(names, header.block_grid).entries
    bad_entries = [
        Damage(file=JOURNAL_FOLDER, problem=f"row block {block}: it, an array or a skipped row does not exist")
        for block, entry in sorted(journal.entries.items())
        if known.get(block) != entry
    ]
    if header.state == COMPLETE:
        bad_lines += [
            Damage(file=f"{JOURNAL_FOLDER}/{name}", problem=problem)
            for name, problem in journal_problems(store, journal)
        ]
    static = list(static_damage(store, header))
    return [
        *metadata,
        *bad_lines,
        *bad_entries,
        *static,
        *_rows_damage(store, header, static),
        *_block_damage(store, header, journal, only),
        *_target_damage(store, header.spec.num_rows),
        *foreign_files(store, header),
    ]


def find_unfinished_work(path: str | Path) -> list[Damage]:
    """What killed processes left of a store, if no process writes it now: an unfinished store, staging files, lock files.

    Paths of what lies beside the store begin with ``../``.
    """
    store = Path(path)
    if is_locked(store):
        return []
    found = [(f"../{folder.name}", "left behind when a store was made or deleted") for folder in _temporary(store)]
    found += [(f"../{file.name}", "the lock of a worker that was killed") for file in worker_files(store).values()]
    if read_owner(lock_file(store)) is not None:
        found.append((f"../{lock_file(store).name}", "the lock of a process that was killed"))
    left = [file.relative_to(store).as_posix() for file in (*staging_files(store), *target_staging(store))]
    found += [(path, "left behind by a process that was killed") for path in left]
    with suppress(CacheError):  # `verify_store` reports it
        header = read_header(store)
        found += [(path, "left behind by a process that was killed") for path in _not_begun(store, header)]
        if header.state != COMPLETE:
            num_blocks, entries = header.block_grid.num_blocks, read_journal(store).entries.values()
            done = sum(header.arrays.keys() <= entry.checksums.keys() for entry in entries)
            found.append((HEADER_FILE, f"the store is not finished: {done:,} of {num_blocks:,} row blocks"))
    return [Damage(file=file, problem=problem) for file, problem in found]


def _temporary(store: Path) -> list[Path]:
    return [folder for folder in temporary_folders(store) if os.path.lexists(folder)]


@dataclass(frozen=True, kw_only=True)
class Repair:
    """The result of a repair.

    Args:
        dropped: chunks that are no longer in the journal; the same extraction computes them again.
        dropped_targets: names of targets that were damaged and are deleted; the same extraction writes `label` again.
        restored_later: hashes, ids and metadata, which the same extraction restores.
        foreign: files that do not belong to the store.
        left_behind: staging and lock files of killed processes, which are removed.
        num_rows: rows that have to be computed again, for at least one array.
        still_damaged: what is damaged after the extraction that followed, other than foreign files; empty before.
    """

    dropped: tuple[Damage, ...]
    dropped_targets: tuple[str, ...]
    restored_later: tuple[Damage, ...]
    foreign: tuple[Damage, ...]
    left_behind: tuple[Damage, ...]
    num_rows: int
    still_damaged: tuple[Damage, ...] = ()


def repair_store(path: str | Path, *, remove_foreign: bool = False) -> Repair:
    """Verify a store, and drop damaged chunks from the journal and from the disk; a writer then lists their rows as pending.

    Args:
        path: the store.
        remove_foreign: also delete files that do not belong to the store.

    Raises:
        StoreMissingError, NotAStoreError: there is no store.
        NewerStoreError, OldFormatError: another version of layerbank has to repair it.
        DamagedStoreError: its header is damaged; such a store has to be recreated.
        StoreLockedError: another process writes it.
        StorageFullError, NotWritableError: the disk refuses.
    """
    store = Path(path)
    header = require_current(store, read_header(store))
    left_behind = [damage for damage in find_unfinished_work(store) if damage.file != HEADER_FILE]
    lock = StoreLock(store)
    lock.acquire()  # and with it what killed processes held
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
            for one in (*_temporary(store), *staging_files(store), *target_staging(store)):
                remove_path(one)
            for path in _not_begun(store, header):
                _remove_foreign(store, path)
            _, journal = drop_damaged(store, header, read_journal(store), by_block)
            if journal_problems(store, journal):
                rewrite_journal(store, journal)
            of_targets = set(_target_damage(store, header.spec.num_rows))
            dropped_targets = drop_damaged_targets(store, num_rows=header.spec.num_rows)
            for damage in damages:
                if damage not in foreign and (store / damage.file).is_dir():
                    _remove_folder(store / damage.file, with_content=remove_foreign)
                elif damage in dropped:
                    (store / damage.file).unlink(missing_ok=True)
            foreign = [damage for damage in foreign if os.path.lexists(store / damage.file)]
            for damage in foreign if remove_foreign else []:
                _remove_foreign(store, damage.file)
    finally:
        lock.release()
    return Repair(
        dropped=tuple(dropped),
        dropped_targets=tuple(dropped_targets),
        restored_later=tuple(d for d in damages if d not in dropped and d not in foreign and d not in of_targets),
        left_behind=tuple(left_behind),
        foreign=tuple(foreign),
        num_rows=sum(len(header.block_grid.block(block)) for block in by_block),
    )


def _block_damage(
    store: Path, header: Header, journal: Journal, only: Collection[tuple[str, str]] | None
) -> Iterator[Damage]:
    unread = set() if only is None else {a.name for a in header.complete_arrays if (a.level, a.kind) not in only}
    are_counted = _rows_are_counted(store, header)
    for array in (array for array in block_arrays(header) if array.name not in unread):
        entry = header.arrays.get(array.name)
        is_complete = bool(header.complete_arrays) if entry is None else entry.complete
        committed = sorted(block for block, entry in journal.entries.items() if array.name in entry.checksums)
        blocks = range(array.grid.num_blocks) if is_complete and are_counted else committed
        for chunk in (chunk for block in blocks for chunk in array.grid.chunks_of(block)):
            checksum = journal.checksum(array.name, chunk, array.grid)
            if (is_complete or checksum is not None) and (problem := array.problem(store, chunk, checksum)):
                yield chunk_damage(array, chunk, problem)


def _rows_are_counted(store: Path, header: Header) -> bool:
    """Whether a file of the store shows that the header's number of rows is no mistake; else their blocks are not looked for."""
    arrays = [static_array(header, name) for name in (CONTENT_HASHES, SAMPLE_ID_OFFSETS) if name in header.static]
    files = [array.file(store, 0) for array in arrays]
    return any(
        file.is_file() and not array.size_problem(file.stat().st_size)
        for array, file in zip(arrays, files, strict=True)
    )


def _rows_damage(store: Path, header: Header, static: Collection[Damage]) -> Iterator[Damage]:
    """Rows that are not those of the store's identity."""
    if header.format > 1 and not {damage.array for damage in static} & {CONTENT_HASHES, VIEWS}:
        files = StoreFiles(store, header, Journal())
        if files.rows.digest != header.spec.rows_digest:
            array = static_array(header, CONTENT_HASHES)
            yield chunk_damage(array, 0, "altered")


def _target_damage(store: Path, num_rows: int) -> Iterator[Damage]:
    if problem := group_problem(store):
        yield Damage(file=f"{TARGETS}/{HEADER_FILE}", problem=problem)
    for name in list_targets(store):
        try:
            read_target(store, name, num_rows=num_rows)
        except CacheError as error:
            yield Damage(file=f"{POINTERS}/{name}.json", problem=error.got)


def is_harmless(name: str) -> bool:
    """Whether file managers and network drives leave files of this name in folders that are looked at.

    >>> is_harmless(".DS_Store"), is_harmless("._zarr.json"), is_harmless("zarr.json")
    (True, True, False)
    """
    return name in _OF_FILE_MANAGERS or name.startswith("._")


def harmless_files(store: str | Path) -> list[Path]:
    """The files in a store that file managers leave there, and that are no damage."""
    return sorted(file for file in Path(store).rglob("*") if is_harmless(file.name) and not file.is_dir())


def foreign_files(store: Path, header: Header) -> Iterator[Damage]:
    """Files, links to folders and empty folders inside a store that the format does not have, other than harmless files."""
    paths = (path for path in _unknown(store, header) if not _is_array_without_chunks(store, path))
    yield from (Damage(file=path, problem=FOREIGN) for path in paths)


def _not_begun(store: Path, header: Header) -> list[str]:
    """The folders or metadata of arrays that the header does not have yet: what a writer makes before it adds them."""
    return [path for path in _unknown(store, header) if _is_array_without_chunks(store, path)]


def _is_array_without_chunks(store: Path, path: str) -> bool:
    place = store / path
    folder = place.parent if place.name == HEADER_FILE else place
    if not _ARRAY_FOLDER.fullmatch(path.removesuffix(f"/{HEADER_FILE}")) or place.is_symlink() or not folder.is_dir():
        return False
    files = [file for file in folder.rglob("*") if file.is_symlink() or not file.is_dir()]
    return place.is_file() == (place != folder) and all(file.name == HEADER_FILE for file in files)


def _unknown(store: Path, header: Header) -> list[str]:
    """What a store has and its header does not, other than harmless files; sorted."""
    arrays = {array.name: array for array in block_arrays(header)}
    arrays |= {name: static_array(header, name) for name in header.static}
    journals = [file for file in (store / JOURNAL_FOLDER).glob("worker-*.jsonl") if file.is_file()]
    in_progress = [*journals, *staging_files(store)]
    known = {
        HEADER_FILE,
        f"{JOURNAL_FOLDER}/{CHECKED_FILE}",
        *header.metadata,
        *(file.relative_to(store).as_posix() for file in in_progress),
    }
    known_folders = {JOURNAL_FOLDER, *arrays}
    known_folders |= {parent.as_posix() for path in [*known, *arrays] for parent in Path(path).parents}
    found = []
    for place, folders, names in os.walk(store):
        inside = Path(place).relative_to(store).as_posix()
        for path in (_join(inside, name) for name in names):
            folder, _, name = path.rpartition("/")
            is_chunk = folder in arrays and arrays[folder].has_file(name)
            if path not in known and not is_chunk and not is_target_file(path) and not is_harmless(name):
                found.append(path)
        if not folders and not names and inside not in known_folders and not is_target_folder(inside):
            found.append(inside)
        links = [_join(inside, name) for name in folders if os.path.islink(os.path.join(place, name))]
        found += [path for path in links if path not in known_folders and not is_target_folder(path)]
    return sorted(found)


def _join(folder: str, name: str) -> str:
    return name if folder == "." else f"{folder}/{name}"


def _remove_folder(folder: Path, *, with_content: bool) -> None:
    """Delete a folder in the place of a file of the store, one with something in it on request only."""
    if with_content or folder.is_symlink() or not any(folder.iterdir()):
        remove_path(folder)


def _remove_foreign(store: Path, path: str) -> None:
    """Delete a file, a link or an empty folder, and the folders around it that are empty then."""
    place = store / path
    if place.is_dir() and not place.is_symlink():
        place.rmdir()
    else:
        place.unlink(missing_ok=True)
    for folder in place.parents:
        if folder == store or any(folder.iterdir()):
            break
        folder.rmdir()
