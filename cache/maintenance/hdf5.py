"""Export a store to one HDF5 file, and import it again.

The file holds each array as a dataset under its name in the store, the header as JSON and the journal, so that an
import is a round trip: every file of the store comes back with the same bytes, and every chunk is compared with its
CRC-32C on the way. Arrays that are not complete are left out.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py  # type: ignore[import-untyped]  # it ships no types
import numpy as np

from ..atomic_files import publish_file, staging_beside, storage_errors, sync_file, sync_folder
from ..damage import require_sound, static_damage
from ..errors import (
    CacheError,
    DamagedStoreError,
    NotAStoreError,
    NotWritableError,
    OldFormatError,
    SpecError,
    StorageFullError,
)
from ..format import CONTENT_HASHES, SAMPLE_ID_BYTES, SAMPLE_ID_OFFSETS, VIEWS, metadata_paths, token_array
from ..header import FORMAT_VERSION, Header, parse_header, read_header
from ..journal import BatchNotes, Journal, parse_line, read_journal
from ..mapping import map_rows
from ..reader import SampleIds, StoreFiles, chunk_files, require_any_complete, require_complete, require_current
from ..rows import RowSet
from ..spec import StoreSpec
from ..targets import TARGETS, Target, list_targets, read_target, write_target
from ..writing.locking import StoreLock
from ..writing.resume import StoreRequest, temporary_folders
from ..writing.staging import Batch
from ..writing.writer import CacheWriter
from .hdf5_inside import place_outside

HEADER_ATTRIBUTE = "layerbank_header"
JOURNAL_DATASET = "journal"
HEADROOM_BYTES = 1 << 20  # metadata of HDF5
# what h5py raises where it meets damage; MemoryError: it believes any shape
_DAMAGE = (OSError, RuntimeError, KeyError, TypeError, ValueError, AttributeError, MemoryError)


def export_hdf5(store: str | Path, file: str | Path) -> None:
    """Write the complete arrays of a store to one HDF5 file, which appears whole or not at all.

    Args:
        store: the store.
        file: the file to make; it must not exist.

    Raises:
        SpecError: the file exists.
        CacheError: as `TokenStore.open`, or the disk refuses.
    """
    store, file = Path(store), Path(file)
    _require_absent(file)
    files = StoreFiles.read(store)
    require_current(store, files.header)
    require_any_complete(files)
    header, journal = _only_complete(files.header, files.journal)
    require_sound(store, list(static_damage(store, header)))
    require_complete(files, list(header.arrays))
    staging = staging_beside(file)
    with storage_errors(file):
        _require_space(file, files)
    try:
        with storage_errors(file):
            with h5py.File(staging, "w") as target:
                target.attrs[HEADER_ATTRIBUTE] = header.render().decode("ascii")
                target[JOURNAL_DATASET] = np.frombuffer(journal.render(), dtype=np.uint8)
                for name in header.static:
                    target[name] = files.static(name)
                for name in header.arrays:
                    _export_array(files, name, target)
                for name in list_targets(store):
                    _export_target(read_target(store, name, num_rows=header.spec.num_rows), name, target)
            sync_file(staging)
            publish_file(staging, file)
    finally:
        staging.unlink(missing_ok=True)


def _require_space(file: Path, files: StoreFiles) -> None:
    """Refuse a disk that is too small before anything is written: HDF5 cannot close a file that the disk no longer takes."""
    arrays = [*files.header.static, *files.header.arrays]
    needed = sum(one.stat().st_size for name in arrays for one in (files.path / name).glob("c.*"))
    free = shutil.disk_usage(file.absolute().parent).free
    if needed + HEADROOM_BYTES > free:
        reason = f"{free:,} bytes free, about {needed + HEADROOM_BYTES:,} needed"
        raise StorageFullError("cache.storage_full", path=file, reason=reason)


def read_hdf5_spec(file: str | Path) -> StoreSpec:
    """The spec of an exported file, without reading tokens.

    Raises:
        NotAStoreError: the file is not an exported store.
    """
    with _open_exported(Path(file)) as (_, header):
        return header.spec


def import_hdf5(file: str | Path, store: str | Path) -> None:
    """Make a store from a file of `export_hdf5`, which appears whole or not at all; after an interruption it can be repeated.

    Args:
        file: the HDF5 file.
        store: the store to make; it must not exist.

    Raises:
        SpecError: the store exists.
        NotAStoreError: the file is not an exported store.
        DamagedStoreError: its data are not those that were exported.
        StoreLockedError: another process makes the store.
        StorageFullError, NotWritableError: the disk refuses.
    """
    file, store = Path(file), Path(store)
    _require_absent(store)
    lock, (folder, _) = StoreLock(store), temporary_folders(store)
    staging = folder / "import"  # and its own lock, which goes with the folder
    lock.acquire()
    try:
        shutil.rmtree(folder, ignore_errors=True)
        with _open_exported(file) as (source, header):
            try:
                _write_imported(source, header, staging)
            except (StorageFullError, NotWritableError):
                raise
            except (CacheError, *_DAMAGE) as error:
                raise DamagedStoreError("cache.hdf5_damaged", file=file, reason=_reason(error)) from error
        with storage_errors(store):
            os.replace(staging, store)
            sync_folder(store.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def _reason(error: Exception) -> str:
    return error.got if isinstance(error, CacheError) else f"{type(error).__name__}: {error}"


def _write_imported(source: Any, header: Header, store: Path) -> None:
    """Make the store of an exported file.

    Raises:
        CacheError, and what `_DAMAGE` lists: the file is damaged, or the disk refuses.
    """
    journal, spec = _read_journal(source), header.spec
    sizes = {**{name: entry.shape for name, entry in header.static.items()}, **_token_shapes(header)}
    if wrong := [name for name, shape in sizes.items() if source[name].shape != shape]:
        raise ValueError(f"{wrong[0]} has another shape")
    static = {name: source[name][...] for name in header.static}
    hashes = static[CONTENT_HASHES]
    request = StoreRequest(
        spec=spec,
        rows=RowSet(hashes=hashes, views=static.get(VIEWS), view_rule=spec.view_rule, hash_rule=spec.hash_rule),
        arrays=tuple(header.complete_arrays),
        static=static,
        sample_ids=SampleIds(static[SAMPLE_ID_BYTES], static[SAMPLE_ID_OFFSETS]),
        batch_size=header.batch_size,
        attributes=header.attributes,
        parity=header.parity,
        versions=header.versions,
        unknown=header.unknown,
    )
    with CacheWriter.open_request(store, request) as writer:
        for batch in writer.pending():
            part = slice(batch.start, batch.stop)
            tokens = {array.name: source[array.name][part] for array in batch.arrays}
            notes = _notes_of(batch, journal, header.block_rows)
            writer.append(batch, tokens, content_hashes=hashes[part], notes=notes)
        for name, target in _import_targets(source, spec.num_rows):
            write_target(store, name, target, num_rows=spec.num_rows)
        if read_journal(store).entries != journal.entries or read_header(store).static != header.static:
            raise ValueError("data with another CRC-32C")
        writer.complete()


def _token_shapes(header: Header) -> dict[str, tuple[int, ...]]:
    return {name: (header.spec.num_rows, *entry.spec.row_shape) for name, entry in header.arrays.items()}


def _only_complete(header: Header, journal: Journal) -> tuple[Header, Journal]:
    complete = {array.name: header.arrays[array.name] for array in header.complete_arrays}
    paths = metadata_paths([*header.static, *complete])
    metadata = {path: checksum for path, checksum in header.metadata.items() if path in paths}
    others = header.arrays.keys() - complete.keys()
    entries = {block: entry.without(others) for block, entry in journal.entries.items()}
    return replace(header, arrays=complete, metadata=metadata), Journal(entries=entries)


def _export_array(files: StoreFiles, name: str, target: Any) -> None:
    array, rows_at_once = token_array(files.header, name), files.header.block_rows
    rows = map_rows(chunk_files(files.path, array))
    dataset = target.create_dataset(name, shape=rows.shape, dtype=rows.dtype)
    dataset.attrs["logical_dtype"] = files.header.spec.model.dtype_of(files.header.arrays[name].spec.kind)
    for start in range(0, rows.shape[0], rows_at_once):
        stop = min(start + rows_at_once, rows.shape[0])
        dataset[start:stop] = rows.read(start, stop)


def _export_target(kept: Target, name: str, target: Any) -> None:
    target[f"{TARGETS}/{name}"] = kept.values
    about = {"type": kept.type, "class_names": list(kept.class_names), "source": kept.source}
    target[f"{TARGETS}/{name}"].attrs["about"] = json.dumps(about, allow_nan=False)


def _import_targets(source: Any, num_rows: int) -> Iterator[tuple[str, Target]]:
    for name, dataset in source.get(TARGETS, {}).items():
        if dataset.shape[:1] != (num_rows,):
            raise ValueError(f"target {name} has another shape")
        yield name, Target(values=dataset[...], **json.loads(dataset.attrs["about"]))


def _read_journal(source: Mapping[str, Any]) -> Journal:
    entries = [parse_line(line) for line in source[JOURNAL_DATASET][...].tobytes().splitlines(keepends=True)]
    if None in entries:
        raise ValueError("an altered line of the journal")
    return Journal(entries={entry.block: entry for entry in entries if entry is not None})


def _notes_of(batch: Batch, journal: Journal, block_rows: int) -> BatchNotes:
    """The part of a row block's notes that belongs to a batch: its rows, and with the first batch all counts."""
    notes = journal.entries[batch.block].notes
    is_first = batch.start == batch.block * block_rows
    return BatchNotes(
        skipped={row: reason for row, reason in notes.skipped.items() if batch.start <= row < batch.stop},
        saturated=notes.saturated if is_first else {},
        nonfinite=notes.nonfinite if is_first else {},
    )


@contextmanager
def _open_exported(file: Path) -> Iterator[tuple[Any, Header]]:
    if not file.exists():
        raise NotAStoreError("cache.hdf5_missing", file=file)
    if not file.is_file():
        raise NotAStoreError("cache.hdf5_unreadable", file=file, reason="no regular file")
    try:
        source = h5py.File(file, "r")
    except OSError as error:
        raise NotAStoreError("cache.hdf5_unreadable", file=file, reason=error) from None
    with source:
        try:
            header = _exported_header(source, file)
        except CacheError:
            raise
        except _DAMAGE as error:
            raise NotAStoreError("cache.hdf5_unreadable", file=file, reason=error) from error
        yield source, header


def _exported_header(source: Any, file: Path) -> Header:
    if HEADER_ATTRIBUTE not in source.attrs:
        raise NotAStoreError("cache.other_hdf5", file=file)
    header = parse_header(str(source.attrs[HEADER_ATTRIBUTE]).encode("ascii", "replace"), file)
    if header.format != FORMAT_VERSION:
        raise OldFormatError("cache.old_hdf5", file=file, expected=FORMAT_VERSION, got=header.format)
    _require_inside(source, header, file)
    return header


def _require_inside(source: Any, header: Header, file: Path) -> None:
    """Refuse an export that would bring in data of other files.

    Raises:
        NotAStoreError: a dataset leads out of the file.
    """
    names = [JOURNAL_DATASET, *header.static, *header.arrays, TARGETS]
    if TARGETS in source and not place_outside(source, TARGETS):
        names += [f"{TARGETS}/{name}" for name in source[TARGETS]]
    for name in names:
        if place := place_outside(source, name):
            raise NotAStoreError("cache.hdf5_outside", file=file, name=name, place=place)


def _require_absent(path: Path) -> None:
    if os.path.lexists(path):
        raise SpecError("cache.path_taken", path=path)
