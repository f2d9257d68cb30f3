"""The stores of released formats in `tests/golden/`, and stores of any rows as the golden ones were written."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import token_stores
from numpy.typing import NDArray
from token_stores import append, make_array, make_model, make_spec, open_writer

from layerbank.cache import ArraySpec, BatchNotes, ModelSpec, RowSet, StoreFiles, TokenStore
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


ARRAYS = (make_array("block.0"), make_array("final"), make_array("final", "grid2"))


def write_rows(
    root: Path,
    rows: RowSet,
    *,
    model: ModelSpec | None = None,
    arrays: Sequence[ArraySpec] = ARRAYS,
    name: str = "shapes",
    skipped: Mapping[int, str] | None = None,
    num_batches: int | None = None,
) -> Path:
    """Write a store of rows; with `num_batches` only so many batches, and it is left incomplete.

    Args:
        skipped: row -> reason.
    """
    spec = replace(make_spec(rows=rows, name=name), model=model or make_model())
    named = {"sample_ids": [f"{name} {row}" for row in range(len(rows))], "attributes": {"dataset": name}}
    with open_writer(
        spec.path(root), spec, arrays, rows, sizes=rows.hashes.astype(np.int64) & 0xFFFF, **named
    ) as writer:
        for batch in writer.pending()[:num_batches]:
            notes = BatchNotes(
                skipped={row: why for row, why in (skipped or {}).items() if row in range(batch.start, batch.stop)},
                saturated={array.name: 1 for array in batch.arrays if batch.start == 0},
            )
            append(writer, batch, notes=notes)
        if num_batches is None:
            writer.complete()
    return writer.path


def read_tokens(store: Path, key: tuple[str, str, str]) -> NDArray[Any]:
    """All tokens of an array of a complete store."""
    opened = TokenStore.open(store, tap=key[0] or None)
    return np.array(opened.tokens(*key[1:]).read(0, opened.num_rows))


def tree(path: Path) -> dict[str, bytes]:
    """Every file below a folder, locks excepted: relative path -> content."""
    return {file: content for file, content in token_stores.tree(path).items() if not file.endswith(".lock")}
