"""The stores of released formats in `tests/golden/`, and small stores of rows for tests that upgrade and merge.

A token is a function of its array and of its image's hash, so that stores of any rows in any order can be compared.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from layerbank.cache import ArraySpec, BatchNotes, CacheWriter, ModelSpec, RowSet, StoreFiles, StoreSpec, TokenStore
from layerbank.cache.format import token_array
from layerbank.cache.header import read_header

GOLDEN = Path(__file__).parent / "golden"
ArrayValues = dict[tuple[str, str, str], NDArray[Any]]


def unpack(folder: Path, archive: str = "format1.zip") -> Path:
    """Unpack an archive of golden stores."""
    with zipfile.ZipFile(GOLDEN / archive) as opened:
        opened.extractall(folder)
    return folder


def stores_under(root: Path, version: int | None = None) -> list[Path]:
    """The stores under a folder, of one format or of any."""
    found = sorted(path for path in root.rglob("*.zarr") if path.is_dir())
    return [path for path in found if version is None or read_header(path).format == version]


def committed_values(store: Path) -> tuple[RowSet, ArrayValues]:
    """The rows of a store, and what its chunk files hold: (tap, level, kind) -> ``[N, ...]``, zeros where nothing is committed.

    Reads the chunk files with numpy alone.
    """
    files = StoreFiles.read(store)
    values: ArrayValues = {}
    for key, name in files.arrays.items():
        array = token_array(files.header, name)
        out = np.zeros((array.grid.num_rows, *array.row_shape), array.dtype)
        for chunk in range(array.grid.num_chunks):
            if files.journal.checksum(name, chunk, array.grid):
                rows = array.grid.chunk(chunk)
                data = np.fromfile(array.file(store, chunk), array.dtype, out[rows.start : rows.stop].size)
                out[rows.start : rows.stop] = data.reshape(len(rows), *array.row_shape)
        values[key] = out
    return files.rows, values


def make_model(**changes: str) -> ModelSpec:
    values = {
        "architecture": "timm/vit_tiny img_size=32",
        "weights": "0123456789abcdef",
        "token_rule": "1",
        "transform": "resize 32",
        "compute_dtype": "float32",
        "storage_dtype": "float16",
        "name": "timm/vit_tiny",
    }
    return ModelSpec(**(values | changes))


def make_array(level: str, kind: str = "cls", tap: str = "norm2", width: int = 8) -> ArraySpec:
    return ArraySpec(level=level, kind=kind, tap=tap, row_shape=(4, width) if kind == "grid2" else (width,))


ARRAYS = (make_array("block.0"), make_array("final"), make_array("final", "grid2"))


def hashes_of(images: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint64]:
    """The content hash of each numbered image, in no order."""
    return (np.asarray(images, np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)


def tokens_of(array: ArraySpec, hashes: NDArray[np.uint64], views: NDArray[np.uint16] | None = None) -> NDArray[Any]:
    """``[n, *row_shape]`` float16, exact."""
    columns = np.arange(int(np.prod(array.row_shape)), dtype=np.uint64)
    seeds = hashes if views is None else hashes + views.astype(np.uint64) * np.uint64(977)
    values = (
        seeds[:, None] * np.uint64(31) + columns * np.uint64(7) + np.uint64(zlib.crc32(array.name.encode()))
    ) % 2048
    return values.astype(np.float16).reshape(len(hashes), *array.row_shape) - np.float16(1024)


def write_rows(
    root: Path,
    rows: RowSet,
    *,
    model: ModelSpec | None = None,
    arrays: Sequence[ArraySpec] = ARRAYS,
    name: str = "shapes",
    skipped: Mapping[int, str] | None = None,
    num_batches: int | None = None,
    before_batch: Callable[[], None] = lambda: None,
    **changes: Any,
) -> Path:
    """Write a store of rows; with `num_batches` only so many batches, and it is left incomplete.

    Args:
        skipped: row -> reason.
    """
    model = model or make_model()
    spec = StoreSpec(
        model=model,
        rows_digest=rows.digest,
        num_rows=len(rows),
        hash_rule=rows.hash_rule,
        view_rule=rows.view_rule,
        name=name,
    )
    arguments: dict[str, Any] = {
        "sample_ids": [f"{name} {row}" for row in range(len(rows))],
        "sizes": rows.hashes.astype(np.int64) & 0xFFFF,
        "batch_size": 60,
        "attributes": {"dataset": name},
    }
    writer = CacheWriter.open(spec.path(root), model, rows, arrays, name=name, **(arguments | changes))
    with writer:
        for batch in writer.pending()[:num_batches]:
            before_batch()
            part = slice(batch.start, batch.stop)
            views = None if rows.views is None else rows.views[part]
            tokens = {array.name: tokens_of(array, rows.hashes[part], views) for array in batch.arrays}
            notes = BatchNotes(
                skipped={row: why for row, why in (skipped or {}).items() if row in range(batch.start, batch.stop)},
                saturated={array.name: 1 for array in batch.arrays if batch.start == 0},
            )
            writer.append(batch, tokens, content_hashes=rows.hashes[part], notes=notes)
        if num_batches is None:
            writer.complete()
    return writer.path


def read_tokens(store: Path, key: tuple[str, str, str]) -> NDArray[Any]:
    """All tokens of an array of a complete store."""
    opened = TokenStore.open(store, tap=key[0] or None)
    return np.array(opened.tokens(*key[1:]).read(0, opened.num_rows))


def tree(path: Path) -> dict[str, bytes]:
    """Every file below a folder, locks excepted: relative path -> content."""
    files = (file for file in sorted(path.rglob("*")) if file.is_file() and not file.name.endswith(".lock"))
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in files}


def folders_of(path: Path) -> set[str]:
    return {folder.relative_to(path).as_posix() for folder in path.rglob("*") if folder.is_dir()}


@pytest.fixture(autouse=True, scope="module")
def without_fsync() -> Iterator[None]:
    """For test files that import it: nobody cuts the power here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: None)
        yield
