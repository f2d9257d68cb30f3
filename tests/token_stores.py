"""Small stores for the tests of `cache`: a token is a function of its array, image and view, so any two runs can be compared.

Images have numbers, and the hash of image i is `hashes_of(i)`; row i of a store shows image i unless a test says otherwise.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from layerbank.cache import (
    ArraySpec,
    Batch,
    BatchNotes,
    CacheWriter,
    ModelSpec,
    RowSet,
    StoreSpec,
    WantedRows,
    delete_store,
    storage_dtype_of,
)

NUM_ROWS = 1200
BATCH_SIZE = 60
VIEW_RULE = "crop 0.5 to 1, rule 2"
_FACTOR = 0x9E3779B97F4A7C15  # odd, so different images have different hashes


def make_model(**changes: Any) -> ModelSpec:
    values: dict[str, Any] = {
        "architecture": "timm/vit_tiny img_size=32",
        "weights": "0123456789abcdef",
        "token_rule": "1",
        "transform": "resize 32",
        "compute_dtype": "float32",
        "storage_dtype": "float16",
        "name": "timm/vit_tiny",
    }
    return ModelSpec(**(values | changes))


def make_parity(**changes: float) -> dict[str, float]:
    """The parity of an array."""
    values = {"num_images": 32, "cosine_min": 0.99987, "cosine_mean": 0.99998, "max_relative_error": 0.00049}
    return values | {"saturated": 0, "nonfinite": 0, "reference_nonfinite": 0} | changes


def make_rows(images: int | Sequence[int] | NDArray[np.int64] = NUM_ROWS, views: Sequence[int] | None = None) -> RowSet:
    """The rows of these images, or of images 0 to `images` - 1."""
    numbers = np.arange(images) if isinstance(images, int) else np.asarray(images, dtype=np.int64)
    if views is None:
        return RowSet(hashes=hashes_of(numbers))
    return RowSet(hashes=hashes_of(numbers), views=np.asarray(views, dtype=np.uint16), view_rule=VIEW_RULE)


def wanted(*images: Any) -> WantedRows:
    return WantedRows(rows=make_rows(*images))


def make_spec(
    num_rows: int = NUM_ROWS, *, rows: RowSet | None = None, name: str = "shapes-train", **changes: Any
) -> StoreSpec:
    """The spec of a store; changes are of its model."""
    rows = make_rows(num_rows) if rows is None else rows
    return StoreSpec(
        model=make_model(**changes),
        rows_digest=rows.digest,
        num_rows=len(rows),
        hash_rule=rows.hash_rule,
        view_rule=rows.view_rule,
        name=name,
    )


def make_array(level: str, kind: str = "cls", tap: str = "norm2", width: int = 8) -> ArraySpec:
    return ArraySpec(level=level, kind=kind, tap=tap, row_shape=(4, width) if kind == "grid2" else (width,))


def make_arrays(
    levels: Sequence[str] = ("block.0", "final"),
    kinds: Sequence[str] = ("cls", "grid2"),
    width: int = 8,
    tap: str = "norm2",
) -> list[ArraySpec]:
    return [make_array(level, kind, tap, width) for level in levels for kind in kinds]


def tokens_of(
    array: ArraySpec,
    hashes: NDArray[np.uint64],
    views: NDArray[np.uint16] | None = None,
    storage_dtype: str = "float16",
) -> NDArray[Any]:
    """[n, *row_shape] in the dtype on disk; every value is exact in float16. The storage dtype may be one by kind."""
    storage_dtype = storage_dtype_of(storage_dtype, array.kind)
    seeds = hashes if views is None else hashes + views.astype(np.uint64) * np.uint64(977)
    columns = np.arange(int(np.prod(array.row_shape)), dtype=np.uint64)
    name = np.uint64(zlib.crc32(array.name.encode()))
    values = (seeds[:, None] * np.uint64(31) + columns * np.uint64(7) + name) % np.uint64(2048)
    dtype = np.uint16 if storage_dtype == "bfloat16" else np.dtype(storage_dtype)
    return (values.astype(np.int64) - 1024).astype(dtype).reshape(len(hashes), *array.row_shape)


def hashes_of(images: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint64]:
    """The content hash of each numbered image, in no order."""
    return (np.asarray(images, np.uint64) + np.uint64(1)) * np.uint64(_FACTOR)


def numbers_of(rows: RowSet) -> NDArray[np.int64]:
    """The number of the image of each row."""
    return (rows.hashes * np.uint64(pow(_FACTOR, -1, 2**64)) - np.uint64(1)).astype(np.int64)


def open_writer(
    path: Path, spec: StoreSpec, arrays: Sequence[ArraySpec], rows: RowSet | None = None, **changes: Any
) -> CacheWriter:
    rows = make_rows(spec.num_rows) if rows is None else rows
    if changes.pop("overwrite", False):
        delete_store(path)
    arguments: dict[str, Any] = {
        "name": spec.name,
        "sample_ids": [f"image {row}" for row in range(len(rows))],
        "batch_size": BATCH_SIZE,
        "attributes": {"request": "all levels"},
    }
    return CacheWriter.open(path, spec.model, rows, arrays, **(arguments | changes))


def append(writer: CacheWriter, batch: Batch, **changes: Any) -> None:
    request = writer._request
    rows = request.rows.select(np.arange(batch.start, batch.stop))
    tokens = {
        array.name: tokens_of(array, rows.hashes, rows.views, request.spec.model.storage_dtype)
        for array in batch.arrays
    }
    writer.append(batch, tokens, **({"content_hashes": rows.hashes, "notes": notes_of(batch, rows)} | changes))


def notes_of(batch: Batch, rows: RowSet | None = None) -> BatchNotes:
    """Every hundredth image is unreadable, and one value of each token of row 7 was too large."""
    images = np.arange(batch.start, batch.stop) if rows is None else numbers_of(rows)
    return BatchNotes(
        skipped={batch.start + i: f"image {n} is cut off" for i, n in enumerate(images.tolist()) if n % 100 == 99},
        saturated={array.name: 1 for array in batch.arrays if batch.start <= 7 < batch.stop},
    )


def write_store(
    path: Path,
    spec: StoreSpec | None = None,
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
            append(writer, batch)
        if num_batches is None:
            writer.complete()
    return pending


def write_images(
    root: Path, images: Any, arrays: Sequence[ArraySpec] | None = None, *, views: Any = None, **changes: Any
) -> Path:
    """Write a store of these images at its place under a cache folder; `num_batches` leaves it incomplete.

    Further changes are of its name and its model.
    """
    num_batches = changes.pop("num_batches", None)
    rows = make_rows(images, views)
    spec = make_spec(rows=rows, **changes)
    write_store(spec.path(root), spec, arrays, rows=rows, num_batches=num_batches)
    return spec.path(root)


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
