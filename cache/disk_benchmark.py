"""How fast a disk takes what a store is made of: one block is written as it would be, timed, and removed.

The decision taken here: it is the writer itself that writes, with its checksums, fsyncs and renames, beside the place
of the store, so that what is measured is what will be done there.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .atomic_files import storage_errors
from .disk_space import free_bytes, nearest_folder
from .format import storage_dtype
from .geometry import rows_per_block
from .spec import ArraySpec, CacheSpec
from .writer import CacheWriter

LARGEST_BYTES = 64 << 20  # half a second of a slow disk
TRIAL_PREFIX = ".layerbank-trial-"


@dataclass(frozen=True)
class BlockTime:
    """What was written, and how long it took until it was safe."""

    size_bytes: int
    num_files: int
    seconds: float

    @property
    def bytes_per_s(self) -> float:
        return self.size_bytes / max(self.seconds, 1e-9)


def time_block(root: str | Path, spec: CacheSpec, arrays: Sequence[ArraySpec], *, batch_size: int) -> BlockTime:
    """Write a block of these arrays where a cache folder is, or would be, and remove it.

    A block of more than 64 MiB, or a quarter of the free space, is cut to fewer rows.

    Args:
        root: the folder of all stores.
        spec: of the store that the block would belong to.
        arrays: what it would hold.
        batch_size: rows a batch.

    Raises:
        StorageFullError, NotWritableError: the disk refuses.
    """
    row_bytes = sum(int(np.prod(a.row_shape)) * storage_dtype(spec, a.kind).itemsize for a in arrays)
    limit_bytes = min(LARGEST_BYTES, free_bytes(Path(root)) // 4)
    num_rows = max(1, min(rows_per_block(spec.num_rows), limit_bytes // row_bytes))
    with storage_errors(Path(root)):
        folder = Path(tempfile.mkdtemp(prefix=TRIAL_PREFIX, dir=nearest_folder(Path(root))))
    try:
        return _timed(folder / "trial.zarr", replace(spec, num_rows=num_rows), arrays, min(batch_size, num_rows))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _timed(store: Path, spec: CacheSpec, arrays: Sequence[ArraySpec], batch_size: int) -> BlockTime:
    rng = np.random.default_rng(0)  # noise, for file systems that compress or share what is equal
    hashes = np.zeros(batch_size, dtype=np.uint64)
    noise = {}
    for array in arrays:
        dtype = storage_dtype(spec, array.kind)
        row = int(np.prod(array.row_shape))
        noise[array.name] = np.frombuffer(rng.bytes(batch_size * row * dtype.itemsize), dtype).reshape(
            batch_size, *array.row_shape
        )
    labels, ids = np.zeros(spec.num_rows, dtype=np.int64), ["0"] * spec.num_rows
    with CacheWriter.open(store, spec, arrays, labels=labels, sample_ids=ids, batch_size=batch_size) as writer:
        pending = writer.pending()
        began = time.perf_counter()
        for batch in pending:
            tokens = {array.name: noise[array.name][: len(batch)] for array in batch.arrays}
            writer.append(batch, tokens, content_hashes=hashes[: len(batch)])
        seconds = time.perf_counter() - began
    files = list(store.glob("tokens/*/*/c.*"))
    return BlockTime(sum(file.stat().st_size for file in files), len(files), seconds)
