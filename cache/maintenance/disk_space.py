"""Forecast the size of a store, and measure the space and the speed of its disk, before anything is written.

The decision taken here: nothing is estimated. Chunk files have a size that the format fixes, and metadata, header and
journal are made in memory as the writer makes them, with placeholders for checksums, which all have eight digits. So a
forecast equals the size of the finished store to the byte, as long as no row is skipped and no value is out of range:
those notes are not known yet. Nor are the last digits of the measured parity, which a plan takes from other images.

Reads the header and the journal of an existing store; the writer checks its chunks. Quotas, and disks that others fill
meanwhile, show only when a write is refused (`StorageFullError`).
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..atomic_files import storage_errors
from ..errors import NotWritableError
from ..format import (
    CHECKSUM_BYTES,
    block_arrays,
    metadata_files,
    static_array,
    storage_dtype,
    token_array,
)
from ..geometry import rows_per_block
from ..header import Header
from ..journal import Entry, Journal, read_journal
from ..rows import RowSet
from ..spec import ArraySpec, ModelSpec
from ..targets import is_target_file
from ..writing.lost_header import find_header
from ..writing.resume import StoreRequest, check_same
from ..writing.workers import Worker
from ..writing.writer import CacheWriter
from .catalog import measure_files

HEADROOM_BYTES = 1 << 20  # folders; new journal and header are written beside the old ones
LABEL_BYTES = 8  # a row of the target `label`
UNKNOWN_BLOCK_BYTES = 4096  # for file systems that do not report their block size
BENCHMARK_BYTES = 64 << 20  # half a second of a slow disk
BENCHMARK_PREFIX = ".layerbank-trial-"

_CHECKSUM = "0" * (2 * CHECKSUM_BYTES)


@dataclass(frozen=True, kw_only=True)
class ArrayForecast:
    """One requested token array.

    Attributes:
        spec: its level, kind and row shape.
        storage_dtype: float16, float32 or bfloat16.
        size_bytes: size of its chunk files when it is complete.
        missing_bytes: size of those that are not committed.
    """

    spec: ArraySpec
    storage_dtype: str
    size_bytes: int
    missing_bytes: int


@dataclass(frozen=True, kw_only=True)
class StoreForecast:
    """The size of a store when everything requested is in it, or when one of several shards has done its share.

    Attributes:
        path: the store.
        num_rows: N.
        batch_size: rows per batch; an existing store keeps its own.
        missing_rows: the rows of each row block that lacks anything requested.
        size_bytes, num_files: all its files then but for targets; folders count nothing, the lock lies beside the store.
        present_bytes, present_files: the same now; none if the store is deleted first.
        freed_bytes: size of all stores that are deleted first.
        arrays: the requested arrays, by level and kind.
    """

    path: Path
    num_rows: int
    batch_size: int
    missing_rows: tuple[range, ...]
    size_bytes: int
    num_files: int
    present_bytes: int
    present_files: int
    freed_bytes: int
    arrays: tuple[ArrayForecast, ...]

    @property
    def num_missing_rows(self) -> int:
        return sum(map(len, self.missing_rows))

    @property
    def written_bytes(self) -> int:
        return max(self.size_bytes - self.present_bytes, 0)

    @property
    def written_files(self) -> int:
        return max(self.num_files - self.present_files, 0)


def forecast_store(
    path: str | Path, request: StoreRequest, *, replaced: Collection[Path] = (), worker: Worker | None = None
) -> StoreForecast:
    """Forecast what `CacheWriter.open_request` with the same arguments, and all its batches, would leave.

    Args:
        path: the store.
        request: what `check_request` returns.
        replaced: stores that are deleted first.
        worker: the number of this writer among several of this store; None for its only writer.

    Raises:
        SpecMismatchError, OldFormatError, NotAStoreError, NewerStoreError, DamagedStoreError: as `CacheWriter.open`.
    """
    store = Path(path)
    starts_empty = store in replaced or not store.exists()
    header, journal = request.blank_header(), Journal()
    if not starts_empty:
        header, _ = find_header(store, header, request.arrays, request.static)
        journal = read_journal(store)
    check_same(store, header, request)
    header, file_sizes = _with_new_arrays(header, request)
    missing = {
        block: names
        for block in range(header.block_grid.num_blocks)
        if (names := [a.name for a in request.arrays if not journal.holds(block, a.name)])
        and (worker is None or worker.helps or worker.owns(block))
    }
    finished = _finished_journal(header, journal, missing)
    file_sizes += _chunk_bytes(header, finished) + [static_array(header, name).file_bytes for name in header.static]
    complete = {a.name: replace(header.arrays[a.name], complete=True) for a in request.arrays}
    done = replace(header, arrays={**header.arrays, **complete}, notes=finished.notes(header.arrays).totals())
    file_sizes += [len(done.render()), len(finished.render())]
    present = (0, 0) if starts_empty else measure_files(store, leave_out=is_target_file)
    return StoreForecast(
        path=store,
        num_rows=len(request.rows),
        batch_size=header.batch_size,
        missing_rows=tuple(header.block_grid.block(block) for block in missing),
        size_bytes=sum(file_sizes),
        num_files=len(file_sizes),
        present_bytes=present[0],
        present_files=present[1],
        freed_bytes=sum(measure_files(one)[0] for one in replaced),
        arrays=tuple(_forecast_array(array, header, missing) for array in request.arrays),
    )


def _chunk_bytes(header: Header, journal: Journal) -> list[int]:
    """The size of each chunk file in a journal."""
    return [
        array.file_bytes
        for array in block_arrays(header)
        for entry in journal.entries.values()
        for _ in entry.checksums.get(array.name, ())
    ]


def _with_new_arrays(header: Header, request: StoreRequest) -> tuple[Header, list[int]]:
    """The header with the requested arrays, and the size of each ``zarr.json`` below the root."""
    arrays = {array.name: array for array in (*(entry.spec for entry in header.arrays.values()), *request.arrays)}
    # an existing store keeps its own, without the sizes of a request, say; no memory is taken
    static = {name: np.broadcast_to(np.zeros((), one.dtype), one.shape) for name, one in header.static.items()}
    entries, metadata = metadata_files(request.spec, list(arrays.values()), static)
    header = replace(
        header,
        arrays={**entries, **header.arrays},
        metadata=dict.fromkeys(metadata, _CHECKSUM),
        parity={**request.parity, **header.parity},
    )
    return header, list(map(len, metadata.values()))


def _finished_journal(header: Header, journal: Journal, missing: Mapping[int, Sequence[str]]) -> Journal:
    """The journal with the missing row blocks, their checksums made up."""
    arrays = {array.name: array for array in block_arrays(header)}
    finished = Journal(entries=dict(journal.entries))
    for block, names in missing.items():
        sums = {name: (_CHECKSUM,) * len(arrays[name].grid.chunks_of(block)) for name in names}
        finished.add(Entry(block=block, checksums=sums))
    return finished


def _forecast_array(spec: ArraySpec, header: Header, missing: Mapping[int, Sequence[str]]) -> ArrayForecast:
    array = token_array(header, spec.name)
    num_missing = sum(len(array.grid.chunks_of(block)) for block, names in missing.items() if spec.name in names)
    return ArrayForecast(
        spec=spec,
        storage_dtype=header.spec.model.dtype_of(spec.kind),
        size_bytes=array.grid.num_chunks * array.file_bytes,
        missing_bytes=num_missing * array.file_bytes,
    )


def nearest_folder(path: Path) -> Path:
    """The folder itself, or the nearest existing one above it."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def free_bytes(root: Path) -> int:
    """Free bytes, for this user, on the disk of a folder; the folder need not exist."""
    return shutil.disk_usage(nearest_folder(root)).free


def free_files(root: Path) -> int | None:
    """The number of files that can still be made on the disk of a folder; None for a disk without a limit."""
    if not hasattr(os, "statvfs"):  # Windows
        return None
    disk = os.statvfs(nearest_folder(root))
    return disk.f_favail if disk.f_files else None


def needed_bytes(root: Path, forecasts: Sequence[StoreForecast]) -> int:
    """The disk space that stores under a folder will take; 0 if nothing is to be written.

    Files take whole disk blocks, with some headroom; stores that are deleted first are subtracted.
    """
    writing = [one for one in forecasts if one.written_files or one.written_bytes]
    if not writing:
        return 0
    has_statvfs = hasattr(os, "statvfs")  # not on Windows
    block_bytes = (has_statvfs and os.statvfs(nearest_folder(root)).f_frsize) or UNKNOWN_BLOCK_BYTES
    files = sum(one.written_bytes + block_bytes * one.written_files + LABEL_BYTES * one.num_rows for one in writing)
    freed = sum(one.freed_bytes for one in writing)
    return max(files - freed, 0) + HEADROOM_BYTES


def check_writable(folder: Path) -> None:
    """Make a temporary file in the folder, or in the nearest existing one above it.

    Raises:
        NotWritableError: read-only, no permission, or a file has the name of a folder.
        StorageFullError: the disk is full.
    """
    place = folder.absolute()
    if files := [path for path in (place, *place.parents) if path.is_file()]:
        raise NotWritableError("cache.file_in_the_way", folder=folder, file=files[0])
    with storage_errors(folder), tempfile.TemporaryFile(dir=nearest_folder(folder)) as file:
        file.write(b"layerbank")


@dataclass(frozen=True)
class BlockTime:
    """The size of a written row block, and the seconds until it was committed."""

    size_bytes: int
    num_files: int
    seconds: float

    @property
    def bytes_per_s(self) -> float:
        return self.size_bytes / max(self.seconds, 1e-9)


def time_block(
    root: str | Path, model: ModelSpec, arrays: Sequence[ArraySpec], *, num_rows: int, batch_size: int
) -> BlockTime:
    """Let `CacheWriter` write a row block of these arrays in the folder, or in the nearest existing one above it, and remove it.

    A row block of more than 64 MiB, or a quarter of the free space, is cut to fewer rows.

    Args:
        root: the folder of all stores.
        model: the model of the store that the row block would belong to.
        arrays: the arrays of the row block.
        num_rows: rows of that store.
        batch_size: rows per batch.

    Raises:
        StorageFullError, NotWritableError: the disk refuses.
    """
    shapes = {array.name: (array.row_shape, storage_dtype(model, array.kind)) for array in arrays}
    row_bytes = sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes.values())
    limit_bytes = min(BENCHMARK_BYTES, free_bytes(Path(root)) // 4)
    num_rows = max(1, min(rows_per_block(num_rows), limit_bytes // row_bytes))
    batch_size = min(batch_size, num_rows)
    rng = np.random.default_rng(0)  # noise, for file systems that compress or share what is equal
    noise = {
        name: np.frombuffer(rng.bytes(batch_size * math.prod(shape) * dtype.itemsize), dtype).reshape(-1, *shape)
        for name, (shape, dtype) in shapes.items()
    }
    rows, ids = RowSet(hashes=np.arange(1, num_rows + 1, dtype=np.uint64)), ["0"] * num_rows
    with storage_errors(Path(root)):
        folder = Path(tempfile.mkdtemp(prefix=BENCHMARK_PREFIX, dir=nearest_folder(Path(root))))
    try:
        store = folder / "trial.zarr"
        with CacheWriter.open(
            store, model, rows, arrays, name="trial", sample_ids=ids, batch_size=batch_size
        ) as writer:
            pending = writer.pending()
            began = time.perf_counter()
            for batch in pending:
                tokens = {array.name: noise[array.name][: len(batch)] for array in batch.arrays}
                writer.append(batch, tokens, content_hashes=rows.hashes[batch.start : batch.stop])
            seconds = time.perf_counter() - began
        sizes = [file.stat().st_size for file in store.glob("tokens/**/c.*")]
        return BlockTime(sum(sizes), len(sizes), seconds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
