"""Prepare a writer: check its arguments, then create the store or find what an existing one lacks.

The decision taken here: a store appears whole (made beside its place, then renamed), and the journal counts only where
the files agree with it. Each chunk of an array in progress is read again once and compared with its checksum (`checked_chunks`);
of complete arrays only the sizes are checked, because reading 50 GB at each start would cost more than it finds (`verify` reads
them). A store is the
requested one if its model and its rows are; ids are names that the first writer gave, and stay.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from ..atomic_files import sync_folder
from ..errors import DamagedStoreError, NotAStoreError, SpecError, SpecMismatchError
from ..format import (
    SAMPLE_ID_BYTES,
    SAMPLE_ID_OFFSETS,
    ChunkedArray,
    block_arrays,
    create_skeleton,
    metadata_problem,
    static_array,
    static_arrays,
    static_entry,
    token_array,
)
from ..geometry import rows_per_block
from ..header import HEADER_FILE, Header, read_header, write_header
from ..header_values import PARITY_COUNTS, PARITY_NUMBERS, is_parity
from ..journal import JOURNAL_FOLDER, Journal, read_journal, rewrite_journal, staging_files
from ..reader import require_current
from ..rows import MISSING, RowSet
from ..spec import ArraySpec, ModelSpec, StoreSpec, array_order
from .checked_chunks import check_chunks
from .lost_header import find_header


@dataclass(frozen=True, kw_only=True)
class StoreRequest:
    """The checked arguments of `CacheWriter.open`.

    Args:
        spec: identity and names of the store.
        rows: image and view of each row.
        arrays: the requested arrays, sorted by level and kind.
        static: hashes, views, ids and sizes as they are stored, see `format.static_arrays`.
        sample_ids: N texts, for messages.
        batch_size: rows per batch, for a store that is made now.
        attributes: what the caller records, as JSON.
        parity: path of an array -> what the caller measured, as JSON, for arrays that are new to the store.
        versions: library -> version, for a store that is made now.
        unknown: optional attributes of a newer layerbank, for an import.
    """

    spec: StoreSpec
    rows: RowSet
    arrays: tuple[ArraySpec, ...]
    static: Mapping[str, NDArray[Any]]
    sample_ids: Sequence[str]
    batch_size: int
    attributes: Mapping[str, Any]
    parity: Mapping[str, Mapping[str, Any]]
    versions: Mapping[str, str] = field(
        default_factory=lambda: {"numpy": np.__version__, "python": platform.python_version(), "zarr": zarr.__version__}
    )
    unknown: Mapping[str, Any] = field(default_factory=dict)

    def blank_header(self) -> Header:
        """The header of a new store, before its arrays are made."""
        return Header(
            spec=self.spec,
            block_rows=rows_per_block(self.spec.num_rows),
            batch_size=self.batch_size,
            versions=self.versions,
            attributes=self.attributes,
            unknown=self.unknown,
            static={name: static_entry(values) for name, values in self.static.items()},
        )


def check_request(
    model: ModelSpec,
    rows: RowSet,
    arrays: Sequence[ArraySpec],
    *,
    name: str,
    sample_ids: Sequence[str],
    batch_size: int,
    sizes: NDArray[np.int64] | None = None,
    attributes: Mapping[str, Any] | None = None,
    parity: Mapping[str, Mapping[str, Any]] | None = None,
) -> StoreRequest:
    """Check the arguments of `CacheWriter.open`, which explains them.

    Raises:
        SpecError: names every invalid argument.
    """
    attributes, parity = attributes or {}, parity or {}
    names = [array.name for array in arrays]
    num_empty = sum(not name for name in sample_ids)
    not_parity = sorted(name for name, one in parity.items() if not is_parity(one))
    num_rows, num_missing = len(rows), int((rows.hashes == MISSING).sum())
    checks = [
        (names and len(set(names)) == len(names), "arrays", "at least one, each once", names),
        (num_rows and not num_missing, "rows", "at least one, each with a hash", f"{num_rows}, {num_missing} without"),
        (
            len(sample_ids) == num_rows and not num_empty,
            "sample_ids",
            f"{num_rows} texts",
            f"{len(sample_ids)}, {num_empty} of them empty",
        ),
        (sizes is None or len(sizes) == num_rows, "sizes", f"{num_rows} numbers", sizes is None or len(sizes)),
        (batch_size >= 1, "batch_size", "at least 1", batch_size),
        (set(parity) <= set(names), "parity", "parity of requested arrays", sorted(set(parity) - set(names))),
        (not not_parity, "parity", f"with {', '.join(PARITY_COUNTS + PARITY_NUMBERS)}", not_parity),
    ]
    wrong = [(name, rule, str(got)) for is_right, name, rule, got in checks if not is_right]
    as_json, not_json = _through_json(attributes=attributes, parity=parity)
    wrong += not_json
    if wrong:
        raise SpecError(
            "cache.invalid_arguments",
            expected="; ".join(f"{name}: {rule}" for name, rule, _ in wrong),
            got="; ".join(f"{name}: {got}" for name, _, got in wrong),
        )
    return StoreRequest(
        spec=StoreSpec.of_rows(model, rows, name),
        rows=rows,
        arrays=tuple(sorted(arrays, key=array_order)),
        static=static_arrays(rows, sample_ids, sizes),
        sample_ids=sample_ids,
        batch_size=batch_size,
        **as_json,
    )


def _through_json(**arguments: Any) -> tuple[dict[str, Any], list[tuple[str, str, str]]]:
    """Arguments as JSON gives them back; and what is wrong with the others."""
    values: dict[str, Any] = {}
    wrong = []
    for name, value in arguments.items():
        try:
            values[name] = json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError) as error:
            wrong.append((name, "values that JSON can hold", str(error)))
    return values, wrong


def temporary_folders(store: Path) -> tuple[Path, Path]:
    """Where a store is made before it gets its name, and where it goes before it is deleted."""
    return store.with_name(f"{store.name}.new"), store.with_name(f"{store.name}.old")


def remove_store(store: Path) -> None:
    """Delete a store: it is renamed in one step, then deleted. A damaged store may be deleted.

    Raises:
        NotAStoreError: what lies there was not written by layerbank.
        NewerStoreError: a newer layerbank wrote it.
    """
    if not store.exists():
        return
    if store.is_symlink():
        raise NotAStoreError("cache.store_is_link", store=store, target=store.resolve())
    try:
        read_header(store)
    except DamagedStoreError:
        pass
    except NotAStoreError:
        if not (store / JOURNAL_FOLDER).is_dir():
            raise NotAStoreError("cache.foreign_folder", store=store) from None
    _, old = temporary_folders(store)
    os.replace(store, old)
    with suppress(OSError):  # a full disk refuses, and has room again once the store is deleted
        sync_folder(store.parent)
    shutil.rmtree(old)


def create_store(store: Path, request: StoreRequest) -> tuple[Header, Journal]:
    """Make a store without a single row block."""
    folder, _ = temporary_folders(store)
    arrays, metadata = create_skeleton(folder, request.spec, request.arrays, request.static)
    header = replace(request.blank_header(), parity=request.parity, arrays=arrays, metadata=metadata)
    write_header(folder, header)
    os.replace(folder, store)
    for parent in [*store.parents][:2]:  # the model's folder and the root: either may be new
        sync_folder(parent)
    return header, Journal()


def resume_store(store: Path, request: StoreRequest, *, has_others: bool = False) -> tuple[Header, Journal]:
    """Resume a store: check that it is the requested one, add new arrays, drop damaged chunks.

    With `has_others`, other workers are writing the store: damage is not checked again, and their staging files are kept.
    """
    header, is_there = find_header(store, request.blank_header(), request.arrays, request.static)
    check_same(store, header, request)
    if not is_there:
        write_header(store, header)
    if has_others:
        return _with_skeleton(store, header, request), read_journal(store)
    (store / JOURNAL_FOLDER).mkdir(parents=True, exist_ok=True)
    for file in staging_files(store):
        file.unlink()
    header = _with_skeleton(store, header, request)
    journal = read_journal(store)
    arrays = [token_array(header, array.name) for array in request.arrays]
    return drop_damaged(store, header, journal, _find_damaged(store, header, journal, arrays))


def check_same(store: Path, header: Header, request: StoreRequest) -> None:
    """Raise unless the store is the requested one: same model and rows, same row shapes, a format that is written."""
    require_current(store, header)
    if differences := request.spec.difference(header.spec):
        raise SpecMismatchError("cache.other_identity", store=store, differences=differences)
    for array in request.arrays:
        known = header.arrays.get(array.name)
        if known is not None and known.spec != array:
            raise SpecError(
                "cache.changed_row_shape",
                store=store,
                array=array.name,
                expected=known.spec.row_shape,
                got=array.row_shape,
            )


def _with_skeleton(store: Path, header: Header, request: StoreRequest) -> Header:
    """Add the new arrays, and restore every file that is written once and was altered."""
    new = [array for array in request.arrays if array.name not in header.arrays]
    altered_metadata = {path for path, crc in header.metadata.items() if metadata_problem(store, path, crc)}
    altered_static = {
        name for name, entry in header.static.items() if static_array(header, name).problem(store, 0, entry.crc32c)
    }
    if not new and not altered_metadata and not altered_static and request.parity.keys() <= header.parity.keys():
        return header
    altered_static |= {path.removesuffix(f"/{HEADER_FILE}") for path in altered_metadata} & header.static.keys()
    static = _restorable(header, request, altered_static)
    folder, _ = temporary_folders(store)
    known = [entry.spec for entry in header.arrays.values()]
    arrays, metadata = create_skeleton(folder, header.spec, [*known, *new], static)
    replaced = {name for name in static if header.static[name] != static_entry(static[name])}
    moved = (
        altered_metadata | (metadata.keys() - header.metadata.keys()) | {f"{name}/{HEADER_FILE}" for name in replaced}
    )
    moved &= metadata.keys()
    header = replace(header, static={**header.static, **{name: static_entry(static[name]) for name in replaced}})
    chunks = [
        static_array(header, name).file(Path(), 0).as_posix() for name in (altered_static | replaced) & static.keys()
    ]
    for file in sorted([*moved, *chunks]):
        (store / file).parent.mkdir(parents=True, exist_ok=True)
        os.replace(folder / file, store / file)
        for parent in Path(file).parents:
            sync_folder(store / parent)
    shutil.rmtree(folder)
    header = replace(
        header,
        arrays={**arrays, **header.arrays},
        metadata={**header.metadata, **{path: metadata[path] for path in moved}},
        parity={**request.parity, **header.parity},
    )
    write_header(store, header)
    return header


def _restorable(header: Header, request: StoreRequest, altered: Collection[str]) -> dict[str, NDArray[Any]]:
    """The values of static arrays that the request can restore: equal ones, and its ids where those of the store are lost."""
    values = {name: request.static[name] for name in header.static if name in request.static}
    are_lost = bool({SAMPLE_ID_BYTES, SAMPLE_ID_OFFSETS} & set(altered))
    return {
        name: value
        for name, value in values.items()
        if header.static[name] == static_entry(value) or (are_lost and name in (SAMPLE_ID_BYTES, SAMPLE_ID_OFFSETS))
    }


def _find_damaged(store: Path, header: Header, journal: Journal, arrays: Sequence[ChunkedArray]) -> dict[int, set[str]]:
    """Row block -> the arrays of which a committed chunk there is damaged."""
    damaged: dict[int, set[str]] = {}
    to_read: list[tuple[ChunkedArray, int, str]] = []
    for block, entry in journal.entries.items():
        for array in (array for array in arrays if array.name in entry.checksums):
            chunks, sums = array.grid.chunks_of(block), entry.checksums[array.name]
            committed = [(array, chunk, checksum) for chunk, checksum in zip(chunks, sums, strict=False)]
            if len(sums) != len(chunks):
                damaged.setdefault(block, set()).add(array.name)
            elif not header.arrays[array.name].complete:
                to_read += committed
            elif any(array.problem(store, chunk, checksum, read=False) for _, chunk, checksum in committed):
                damaged.setdefault(block, set()).add(array.name)
    for (array, chunk, _), problem in zip(to_read, check_chunks(store, to_read), strict=True):
        if problem:
            damaged.setdefault(array.grid.chunk(chunk).start // header.block_rows, set()).add(array.name)
    return damaged


def drop_damaged(
    store: Path, header: Header, journal: Journal, damaged: Mapping[int, Collection[str]]
) -> tuple[Header, Journal]:
    """Drop damaged arrays (row block -> names) from the journal, so that a writer computes them again; the caller holds the lock.

    Returns:
        Header and journal as they are on the disk now.
    """
    known = journal.of_store([array.name for array in block_arrays(header)], header.block_grid)
    kept = {block: entry.without(damaged.get(block, ())) for block, entry in known.entries.items()}
    checked = Journal(entries={block: entry for block, entry in kept.items() if entry.checksums})
    blocks = range(header.block_grid.num_blocks)
    arrays = {
        name: replace(entry, complete=entry.complete and all(checked.holds(block, name) for block in blocks))
        for name, entry in header.arrays.items()
    }
    if arrays != header.arrays:
        # the header first: between the two steps it may claim less than the journal has, never more
        header = replace(header, arrays=arrays)
        header = replace(header, notes=checked.notes(a.name for a in header.complete_arrays).totals())
        write_header(store, header)
    if checked.entries != journal.entries or journal.bad_lines:
        rewrite_journal(store, checked)
    return header, checked
