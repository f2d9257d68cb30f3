"""What is sound in a store of format 1, in the words of format 2: rows, ids, labels, committed row blocks, and the header to write.

The decision taken here: damage is collected, never raised, so that everything else can be taken along. Changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..damage import Damage, chunk_damage, require_sound, static_damage, swapped_chunks
from ..errors import DamagedStoreError
from ..format import (
    CONTENT_HASHES,
    LABELS,
    SAMPLE_ID_BYTES,
    SAMPLE_ID_OFFSETS,
    static_array,
    static_arrays,
    static_entry,
    token_array,
)
from ..geometry import rows_per_block, rows_per_chunk
from ..header import HEADER_FILE, ArrayEntry, Header
from ..header_values import COMPLETE
from ..journal import JOURNAL_FOLDER, BatchNotes, Entry, Journal
from ..reader import StoreFiles, rows_of_format1
from ..rows import RowSet
from ..spec import ArraySpec
from ..targets import Target
from .verify import foreign_files

FINGERPRINT = "format1_fingerprint"  # attribute of an upgraded store: the identity that it had in format 1


@dataclass(frozen=True, kw_only=True)
class Content:
    """What is sound in a store of format 1, in the words of format 2.

    Args:
        header: the header to write; its metadata are made with the skeleton.
        static: hashes, views and ids, see `format.static_arrays`.
        journal: committed row blocks, by new names.
        names: path of an array in format 2 -> path in format 1.
        target: the labels; None where they are damaged.
        damages: what is not sound.
    """

    header: Header
    static: Mapping[str, NDArray[Any]]
    journal: Journal
    names: Mapping[str, str]
    target: Target | None
    damages: tuple[Damage, ...]


def read_content(files: StoreFiles, *, read: bool) -> Content:
    """Everything that is sound in a store of format 1; chunks of tokens are read, or judged by size and stored checksum.

    Raises:
        DamagedStoreError: the header has chunks of other sizes than the format.
    """
    _require_geometry(files)
    header, damages = files.header, [*foreign_files(files.path, files.header)]
    for file, line, is_torn in files.journal.bad_lines:
        if not is_torn or header.state == COMPLETE:
            damages.append(Damage(file=f"{JOURNAL_FOLDER}/{file}", problem=f"line {line} was altered"))
    rows, hash_damages = rows_of_format1(files)
    chunks = [one for name in header.arrays for one in _token_damage(files, name, read)]
    damages += [*hash_damages, *chunks]
    unreadable = {damage.array: damage for damage in static_damage(files.path, header)}
    damages += unreadable.values()
    has_ids = not unreadable.keys() & {SAMPLE_ID_BYTES, SAMPLE_ID_OFFSETS}
    ids = files.sample_ids[:] if has_ids else [f"row {row}" for row in range(len(rows))]
    arrays = {name: _new_array(entry.spec) for name, entry in header.arrays.items()}
    lost = {
        (one.rows.start // header.block_rows, one.array) for one in [*hash_damages, *chunks] if one.rows is not None
    }
    journal = _new_journal(files, {name: array.name for name, array in arrays.items()}, lost)
    values = static_arrays(rows, ids)
    return Content(
        header=_new_header(files, rows, arrays, values, journal),
        static=values,
        journal=journal,
        names={array.name: name for name, array in arrays.items()},
        target=None if LABELS in unreadable else label_target(files),
        damages=tuple(damages),
    )


def _require_geometry(files: StoreFiles) -> None:
    header = files.header
    num_rows = header.spec.num_rows
    chunk_rows = {
        name: rows_per_chunk(num_rows, math.prod(array.row_shape) * array.dtype.itemsize)
        for name in header.arrays
        for array in [token_array(header, name)]
    }
    is_same = chunk_rows == {name: entry.chunk_rows for name, entry in header.arrays.items()}
    if not is_same or header.block_rows != rows_per_block(num_rows):
        raise DamagedStoreError("cache.header_damaged", file=files.path / HEADER_FILE)


def label_target(files: StoreFiles) -> Target:
    """The labels of a store of format 1.

    Raises:
        DamagedStoreError: they are damaged.
    """
    array = static_array(files.header, LABELS)
    if problem := array.problem(files.path, 0, files.header.static[LABELS].crc32c):
        require_sound(files.path, [chunk_damage(array, 0, problem)])
    values = np.array(files.static(LABELS))
    if values.dtype.kind not in "iu":
        return Target(values=values, type="regression", source="format 1")
    recorded = files.header.attributes.get("class_names")
    names = [str(name) for name in recorded] if isinstance(recorded, list) else []
    fits = values.ndim == 1 and values.min() >= 0 and values.max() < len(names)
    return Target(values=values, type="multiclass", class_names=names if fits else (), source="format 1")


def _token_damage(files: StoreFiles, name: str, read: bool) -> Iterator[Damage]:
    """Chunks of a token array that are missing, altered, of another store, or lack a journal line."""
    array = token_array(files.header, name)
    for chunk in range(array.grid.num_chunks):
        checksum = files.journal.checksum(name, chunk, array.grid)
        if checksum is None and not files.header.arrays[name].complete:
            continue
        if problem := array.problem(files.path, chunk, checksum, read=read):
            yield chunk_damage(array, chunk, problem)
        else:
            yield from swapped_chunks(files.path, array, [chunk], files.journal)


def _new_array(array: ArraySpec) -> ArraySpec:
    return ArraySpec(level=array.level, kind=array.kind, row_shape=array.row_shape, tap=array.tap)


def _new_journal(files: StoreFiles, names: Mapping[str, str], lost: set[tuple[int, str | None]]) -> Journal:
    """The committed and sound arrays of each row block, by new names; a row block without sound hashes has none."""
    journal = Journal()
    for block, entry in sorted(files.journal.entries.items()):
        if CONTENT_HASHES not in entry.checksums or (block, CONTENT_HASHES) in lost:
            continue
        kept = {name for name in entry.checksums if name in names and (block, name) not in lost}
        notes = entry.notes.of_arrays(kept)
        checksums = {names[name]: entry.checksums[name] for name in kept}
        if checksums:
            saturated, nonfinite = (
                {names[name]: count for name, count in counts.items()} for counts in (notes.saturated, notes.nonfinite)
            )
            notes = BatchNotes(skipped=notes.skipped, saturated=saturated, nonfinite=nonfinite)
            journal.add(Entry(block=block, checksums=checksums, notes=notes))
    return journal


def _new_header(
    files: StoreFiles,
    rows: RowSet,
    arrays: Mapping[str, ArraySpec],
    static: Mapping[str, NDArray[Any]],
    journal: Journal,
) -> Header:
    old = files.header
    blocks = range(old.block_grid.num_blocks)
    entries = {}
    for name, array in arrays.items():
        is_complete = old.arrays[name].complete and all(journal.holds(block, array.name) for block in blocks)
        entries[array.name] = ArrayEntry(spec=array, chunk_rows=old.arrays[name].chunk_rows, complete=is_complete)
    header = Header(
        spec=replace(old.spec, rows_digest=rows.digest, view_rule=rows.view_rule),
        block_rows=old.block_rows,
        batch_size=old.batch_size,
        arrays=entries,
        static={name: static_entry(values) for name, values in static.items()},
        versions=old.versions,
        parity={arrays[name].name: one for name, one in old.parity.items() if name in arrays},
        # what stood for the digest of the rows in format 1 is its fingerprint
        attributes={**old.attributes, FINGERPRINT: old.spec.rows_digest},
    )
    complete = [array.name for array in header.complete_arrays]
    return replace(header, notes=journal.notes(complete).totals() if complete else {})
