"""What a writer would leave on the disk, before it writes anything: bytes and files, from the geometry and the journal.

The decision taken here: nothing is estimated. Chunk files have a size that the format fixes, and metadata, header and journal are
made in memory as the writer makes them, with placeholders for checksums, which all have eight digits. So a forecast is that of
the finished store to the byte, as long as no row is skipped and no value is out of range: those are notes that nobody knows yet.

Reads the header and the journal of a store that exists; whether its chunks are sound is for the writer to find out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from .catalog import measure_files
from .geometry import rows_per_block
from .header import Header, read_header
from .journal import Entry, Journal, read_journal
from .layout import (
    CHECKSUM_BYTES,
    CONTENT_HASHES,
    ChunkedArray,
    block_arrays,
    measure_skeleton,
    static_array,
    static_entry,
    token_array,
)
from .request import Request, check_request
from .resume import check_same
from .spec import ArraySpec, CacheSpec
from .worker import Worker

_CHECKSUM = "0" * (2 * CHECKSUM_BYTES)


@dataclass(frozen=True, kw_only=True)
class ArrayForecast:
    """One token array that is asked for.

    Attributes:
        spec: its level, kind and row shape.
        storage_dtype: float16, float32 or bfloat16.
        size_bytes: of its chunk files when it is complete.
        missing_bytes: of those that are not committed.
        missing_files: how many.
    """

    spec: ArraySpec
    storage_dtype: str
    size_bytes: int
    missing_bytes: int
    missing_files: int


@dataclass(frozen=True, kw_only=True)
class StoreForecast:
    """What a store will be when everything asked for is in it; of one of several shards, when that has done its share.

    Attributes:
        path: the store.
        num_rows: N.
        batch_size: rows a batch, of a store that exists its own.
        missing_rows: the rows of each block that lacks anything asked for.
        size_bytes, num_files: of all its files then; folders have no bytes, the lock lies beside.
        present_bytes, present_files: of all its files now.
        frees_first: whether what is there is deleted before anything is written (`overwrite`).
        arrays: those asked for, by level and kind.
    """

    path: Path
    num_rows: int
    batch_size: int
    missing_rows: tuple[range, ...]
    size_bytes: int
    num_files: int
    present_bytes: int
    present_files: int
    frees_first: bool
    arrays: tuple[ArrayForecast, ...]

    @property
    def num_missing_rows(self) -> int:
        return sum(map(len, self.missing_rows))

    @property
    def written_bytes(self) -> int:
        """Bytes of files that are still to be written."""
        return self.size_bytes if self.frees_first else max(self.size_bytes - self.present_bytes, 0)

    @property
    def written_files(self) -> int:
        return self.num_files if self.frees_first else max(self.num_files - self.present_files, 0)


def forecast_store(
    path: str | Path,
    spec: CacheSpec,
    arrays: Sequence[ArraySpec],
    *,
    labels: NDArray[Any],
    sample_ids: Sequence[str],
    batch_size: int,
    attributes: Mapping[str, Any] | None = None,
    parity: Mapping[str, Mapping[str, Any]] | None = None,
    overwrite: bool = False,
    worker: Worker | None = None,
) -> StoreForecast:
    """What `CacheWriter.open` with the same arguments, and all its batches, would leave; nothing is touched.

    Raises:
        SpecError, SpecMismatchError, ChangedDataError, NotAStoreError, DamagedStoreError: as `CacheWriter.open`.
    """
    store = Path(path)
    request = check_request(spec, arrays, labels, sample_ids, batch_size, attributes or {}, parity or {})
    present_bytes, present_files = measure_files(store)
    anew = overwrite or not store.exists()
    header = _blank(request) if anew else read_header(store)
    journal = Journal(entries={}) if anew else read_journal(store)
    check_same(store, header, request)
    entries, metadata_bytes = measure_skeleton(
        spec,
        list({a.name: a for a in [*(e.spec for e in header.arrays.values()), *request.arrays]}.values()),
        request.static,
    )
    header = replace(
        header,
        arrays={**entries, **header.arrays},
        metadata=dict.fromkeys(metadata_bytes, _CHECKSUM),
        parity={**request.parity, **header.parity},
    )
    missing = {
        block: names
        for block in range(header.hash_grid.num_blocks)
        if (names := [a.name for a in request.arrays if not journal.holds(block, a.name)])
        and (worker is None or worker.helps or worker.owns(block))
    }
    finished = _finished(header, request, journal, missing)
    chunks = {array.name: _num_chunks(array, finished) for array in block_arrays(header)}
    static = [static_array(header, name) for name in header.static]
    chunk_bytes = sum(array.file_bytes * chunks[array.name] for array in block_arrays(header))
    complete = {a.name: replace(header.arrays[a.name], complete=True) for a in request.arrays}
    done = replace(header, arrays={**header.arrays, **complete}, notes=finished.notes(header.arrays).totals())
    return StoreForecast(
        path=store,
        num_rows=spec.num_rows,
        batch_size=header.batch_size,
        missing_rows=tuple(header.hash_grid.block(block) for block in missing),
        size_bytes=chunk_bytes
        + sum(array.file_bytes for array in static)
        + sum(metadata_bytes.values())
        + len(done.render())
        + len(finished.render()),
        num_files=sum(chunks.values()) + len(static) + len(metadata_bytes) + 2,  # header and journal
        present_bytes=present_bytes,
        present_files=present_files,
        frees_first=overwrite and store.exists(),
        arrays=tuple(_of_array(a, token_array(header, a.name), spec, missing) for a in request.arrays),
    )


def _blank(request: Request) -> Header:
    """The header of a store that is not there, before its arrays."""
    return Header(
        spec=request.spec,
        block_rows=rows_per_block(request.spec.num_rows),
        batch_size=request.batch_size,
        versions=request.versions,
        attributes=request.attributes,
        static={name: static_entry(values) for name, values in request.static.items()},
    )


def _finished(header: Header, request: Request, journal: Journal, missing: Mapping[int, Sequence[str]]) -> Journal:
    """The journal with the blocks that are missing, their checksums made up."""
    arrays = {array.name: array for array in block_arrays(header)}
    entries = dict(journal.entries)
    for block, names in missing.items():
        sums = {name: (_CHECKSUM,) * len(arrays[name].grid.chunks_of(block)) for name in (*names, CONTENT_HASHES)}
        new = Entry(block=block, checksums=sums)
        entries[block] = entries[block].merged(new) if block in entries else new
    return Journal(entries=entries)


def _num_chunks(array: ChunkedArray, journal: Journal) -> int:
    return sum(len(entry.checksums.get(array.name, ())) for entry in journal.entries.values())


def _of_array(
    asked: ArraySpec, array: ChunkedArray, spec: CacheSpec, missing: Mapping[int, Sequence[str]]
) -> ArrayForecast:
    files = sum(len(array.grid.chunks_of(block)) for block, names in missing.items() if array.name in names)
    return ArrayForecast(
        spec=asked,
        storage_dtype=spec.dtype_of(asked.kind),
        size_bytes=array.grid.num_chunks * array.file_bytes,
        missing_bytes=files * array.file_bytes,
        missing_files=files,
    )
