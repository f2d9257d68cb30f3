"""Small stores for the tests of `cache`: a token is a function of its array and row, so any two runs can be compared."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from layerbank.cache import ArraySpec, Batch, BatchNotes, CacheSpec, CacheWriter, storage_dtype_of

NUM_ROWS = 1200
BATCH_SIZE = 60


def make_spec(num_rows: int = NUM_ROWS, **changes: Any) -> CacheSpec:
    values: dict[str, Any] = {
        "architecture": "timm/vit_tiny img_size=32",
        "weights": "0123456789abcdef",
        "tap": "norm2",
        "token_rule": "1",
        "transform": "resize 32",
        "compute_dtype": "float32",
        "storage_dtype": "float16",
        "manifest": "fedcba9876543210",
        "num_rows": num_rows,
        "backbone": "timm/vit_tiny",
        "dataset": "shapes",
        "split": "train",
    }
    return CacheSpec(**(values | changes))


def make_arrays(
    levels: Sequence[str] = ("block.0", "final"), kinds: Sequence[str] = ("cls", "grid2"), width: int = 8
) -> list[ArraySpec]:
    shapes = {"grid2": (4, width)}
    return [
        ArraySpec(level=level, kind=kind, row_shape=shapes.get(kind, (width,))) for level in levels for kind in kinds
    ]


def tokens_of(array: ArraySpec, rows: NDArray[np.int64], storage_dtype: str = "float16") -> NDArray[Any]:
    """[n, *row_shape] in the dtype on disk; every value is exact in float16. The storage dtype may be one by kind."""
    storage_dtype = storage_dtype_of(storage_dtype, array.kind)
    columns = np.arange(int(np.prod(array.row_shape)))
    values = (rows[:, None] * 31 + columns * 7 + zlib.crc32(array.name.encode())) % 2048 - 1024
    if storage_dtype == "bfloat16":
        return values.astype(np.uint16).reshape(len(rows), *array.row_shape)
    return values.astype(storage_dtype).reshape(len(rows), *array.row_shape)


def hashes_of(rows: NDArray[np.int64]) -> NDArray[np.uint64]:
    return rows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def open_writer(path: Path, spec: CacheSpec, arrays: Sequence[ArraySpec], **changes: Any) -> CacheWriter:
    arguments: dict[str, Any] = {
        "labels": np.arange(spec.num_rows) % 10,
        "sample_ids": [f"image {row}" for row in range(spec.num_rows)],
        "batch_size": BATCH_SIZE,
        "attributes": {"class_names": ["circle", "square"]},
    }
    return CacheWriter.open(path, spec, arrays, **(arguments | changes))


def append(writer: CacheWriter, batch: Batch, storage_dtype: str = "float16", **changes: Any) -> None:
    rows = np.arange(batch.start, batch.stop)
    tokens = {array.name: tokens_of(array, rows, storage_dtype) for array in batch.arrays}
    writer.append(batch, tokens, **({"content_hashes": hashes_of(rows), "notes": notes_of(batch)} | changes))


def notes_of(batch: Batch) -> BatchNotes:
    """Every hundredth image is unreadable, and one value of each token of row 7 was too large."""
    return BatchNotes(
        skipped={row: f"image {row} is cut off" for row in range(batch.start, batch.stop) if row % 100 == 99},
        saturated={array.name: 1 for array in batch.arrays if batch.start <= 7 < batch.stop},
    )


def write_store(
    path: Path,
    spec: CacheSpec | None = None,
    arrays: Sequence[ArraySpec] | None = None,
    *,
    num_batches: int | None = None,
    before_batch: Callable[[], None] = lambda: None,
    **changes: Any,
) -> list[Batch]:
    """Write a store, or what it still lacks; with `num_batches` only so many batches, and it is left incomplete.

    Returns:
        The batches that were pending.
    """
    spec = spec or make_spec()
    with open_writer(path, spec, make_arrays() if arrays is None else arrays, **changes) as writer:
        pending = writer.pending()
        for batch in pending[:num_batches]:
            before_batch()
            append(writer, batch, spec.storage_dtype)
        if num_batches is None:
            writer.complete()
    return pending


def tree(path: Path) -> dict[str, bytes]:
    """Every file below a folder: relative path -> content."""
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in files_of(path)}


def files_of(path: Path) -> Iterator[Path]:
    return (file for file in sorted(path.rglob("*")) if file.is_file())


def folders_of(path: Path) -> set[str]:
    return {folder.relative_to(path).as_posix() for folder in path.rglob("*") if folder.is_dir()}


@pytest.fixture(autouse=True, scope="module")
def without_fsync() -> Iterator[None]:
    """For test files that import it: nobody cuts the power here, and fsync is nine tenths of the time of a small store."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: None)
        yield
