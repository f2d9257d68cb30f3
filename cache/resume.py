"""What is done before a writer writes: make a store, or find out what one that exists still lacks.

The decision taken here: a store appears whole (made beside its place, then renamed), and nothing in the
journal is believed until the files agree with it. Arrays under way are read again and compared with their
checksums; complete ones are only measured, because reading 50 GB at each start would cost more than it finds
(`verify` reads them).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from .atomic_files import sync_folder
from .errors import ChangedDataError, NotAStoreError, SpecError, SpecMismatchError
from .geometry import rows_per_block
from .header import FORMAT, HEADER_FILE, Header, read_header, write_header
from .journal import ASIDE_PREFIX, JOURNAL_FOLDER, Entry, Journal, read_journal, rewrite_journal, staging_files
from .layout import (
    CONTENT_HASHES,
    ChunkedArray,
    content_hash_array,
    create_skeleton,
    static_array,
    static_entry,
    token_array,
)
from .request import Request
from .verify import chunk_problem, metadata_problem

ANEW = "Choose another folder with `--cache DIR`, or make the store anew with `layerbank extract --overwrite`."


def new_folder(store: Path) -> Path:
    """Where a store is made before it takes its place."""
    return store.with_name(f"{store.name}.new")


def old_folder(store: Path) -> Path:
    """Where a store goes before it is deleted."""
    return store.with_name(f"{store.name}.old")


def header_staging(store: Path) -> Path:
    """Where a header is written before it takes its place."""
    return store / JOURNAL_FOLDER / f"{ASIDE_PREFIX}{HEADER_FILE}"


def clear_leftovers(store: Path) -> None:
    """Remove what a killed owner of the lock left beside the store."""
    for folder in (new_folder(store), old_folder(store)):
        shutil.rmtree(folder, ignore_errors=True)


def remove_store(store: Path) -> None:
    """Delete a store: it disappears in one step, the bytes follow.

    Raises:
        NotAStoreError: what is there is not ours to delete.
    """
    if not store.exists():
        return
    header = store / HEADER_FILE
    is_ours = header.is_file() and FORMAT.encode() in header.read_bytes()
    if not is_ours and not (store / JOURNAL_FOLDER).is_dir():
        raise NotAStoreError(
            where=str(store),
            expected="a token store that may be overwritten",
            got="something that layerbank did not write",
            todo="Move it away yourself, or choose another folder with `--cache DIR`.",
        )
    os.replace(store, old_folder(store))
    sync_folder(store.parent)
    shutil.rmtree(old_folder(store))


def create_store(store: Path, request: Request) -> tuple[Header, Journal]:
    """Make a store without a single block."""
    folder = new_folder(store)
    skeleton = create_skeleton(folder, request.spec, request.arrays, request.static)
    header = Header(
        spec=request.spec,
        block_rows=rows_per_block(request.spec.num_rows),
        batch_size=request.batch_size,
        versions=request.versions,
        attributes=request.attributes,
        parity=request.parity,
        arrays=skeleton.arrays,
        static=skeleton.static,
        metadata=skeleton.metadata,
    )
    write_header(folder, header, header_staging(folder))
    os.replace(folder, store)
    for parent in [*store.parents][:3]:  # split, data set, root: any of them may be new
        sync_folder(parent)
    return header, Journal(entries={})


def resume_store(store: Path, request: Request, *, has_company: bool = False) -> tuple[Header, Journal]:
    """Take up a store: check that it is the one asked for, add what is new to it, forget what is damaged.

    Args:
        store: the store.
        request: what is wanted.
        has_company: other workers are writing it: the first of them has looked for damage, and files aside are theirs.
    """
    header = read_header(store)
    check_same(store, header, request)
    if has_company:
        return _with_skeleton(store, header, request), read_journal(store)
    (store / JOURNAL_FOLDER).mkdir(parents=True, exist_ok=True)
    for file in staging_files(store):
        file.unlink()
    header = _with_skeleton(store, header, request)
    return _with_checked_journal(store, header, request)


def check_same(store: Path, header: Header, request: Request) -> None:
    """Raise unless the store is the one asked for: same identity, same labels and ids, same shapes of tokens."""
    if differences := request.spec.difference(header.spec):
        raise SpecMismatchError(where=str(store), differences=differences, todo=ANEW)
    for name, values in request.static.items():
        if static_entry(values) != header.static[name]:
            raise ChangedDataError(
                where=f"{store} {name}",
                expected=f"the data that the store was made with ({header.static[name]})",
                got=f"other data under the same manifest digest ({static_entry(values)})",
                todo=ANEW,
            )
    for array in request.arrays:
        known = header.arrays.get(array.name)
        if known is not None and known.spec != array:
            raise SpecError(
                where=f"{store} {array.name}",
                expected=f"the row shape {known.spec.row_shape} that the store was made with",
                got=str(array.row_shape),
                todo=ANEW,
            )


def _with_skeleton(store: Path, header: Header, request: Request) -> Header:
    """Add the arrays that are new, and put back whatever is written once and is no longer as it was."""
    new = [array for array in request.arrays if array.name not in header.arrays]
    static = [static_array(header, name) for name in header.static]
    altered_metadata = {path for path, crc in header.metadata.items() if metadata_problem(store, path, crc)}
    altered_static = [a for a in static if chunk_problem(store, a, 0, header.static[a.name].crc32c)]
    if not new and not altered_metadata and not altered_static and request.parity.keys() <= header.parity.keys():
        return header
    folder = new_folder(store)
    known = [entry.spec for entry in header.arrays.values()]
    skeleton = create_skeleton(folder, header.spec, [*known, *new], request.static)
    added = altered_metadata | (skeleton.metadata.keys() - header.metadata.keys())
    for file in [*sorted(added), *(a.file(Path(), 0).as_posix() for a in altered_static)]:
        (store / file).parent.mkdir(parents=True, exist_ok=True)
        os.replace(folder / file, store / file)
        for parent in Path(file).parents:
            sync_folder(store / parent)
    shutil.rmtree(folder)
    header = replace(
        header,
        arrays={**skeleton.arrays, **header.arrays},
        metadata={**header.metadata, **{path: skeleton.metadata[path] for path in added}},
        parity={**request.parity, **header.parity},
    )
    write_header(store, header, header_staging(store))
    return header


def _with_checked_journal(store: Path, header: Header, request: Request) -> tuple[Header, Journal]:
    """Forget the chunks that are not on the disk as the journal has them, among those the request is about."""
    journal = read_journal(store)
    arrays = [content_hash_array(header), *(token_array(header, array.name) for array in request.arrays)]
    damaged = {
        block: {a.name for a in arrays if a.name in entry.checksums and not _is_sound(store, header, a, entry)}
        for block, entry in journal.entries.items()
    }
    return forget(store, header, journal, damaged)


def _is_sound(store: Path, header: Header, array: ChunkedArray, entry: Entry) -> bool:
    known = header.arrays.get(array.name)
    measure_only = known is not None and known.complete
    chunks = array.grid.chunks_of(entry.block)
    sums = entry.checksums[array.name]
    return len(sums) == len(chunks) and not any(
        chunk_problem(store, array, chunk, checksum, read=not measure_only)
        for chunk, checksum in zip(chunks, sums, strict=True)
    )


def forget(
    store: Path, header: Header, journal: Journal, damaged: Mapping[int, Collection[str]]
) -> tuple[Header, Journal]:
    """Drop damaged arrays of blocks from the journal, so that a writer computes them again.

    Args:
        store: the store; its lock is held.
        header: its header.
        journal: its journal, bad lines and all.
        damaged: block -> names of arrays; without its content hashes a whole block goes, because nothing shows
            any more that its tokens belong to these images.

    Returns:
        Header and journal as they are on the disk now.
    """
    entries: dict[int, Entry] = {}
    for block, entry in journal.entries.items():
        kept = entry.without(damaged.get(block, ()))
        if CONTENT_HASHES in kept.checksums:
            entries[block] = kept
    checked = Journal(entries=entries)
    blocks = range(header.hash_grid.num_blocks)
    arrays = {
        name: replace(entry, complete=entry.complete and all(checked.holds(block, name) for block in blocks))
        for name, entry in header.arrays.items()
    }
    if arrays != header.arrays:
        # the header first: between the two steps it may promise less than the journal has, never more
        header = replace(header, arrays=arrays)
        header = replace(header, notes=checked.notes(a.name for a in header.complete_arrays).totals())
        write_header(store, header, header_staging(store))
    if entries != journal.entries or journal.bad_lines:
        rewrite_journal(store, checked)
    return header, checked
