"""The tokens of a store in one file for other tools: NumPy (.npz) or Parquet (.parquet).

Rows without usable tokens are left out. An array has the name of its level and kind (`block.6/cls`); bfloat16 becomes float32, and
so does float16 in Parquet, where few readers know it. This is no copy of the store: `hdf5` writes one that can be imported again.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..atomic_files import publish_file, staging_beside, storage_errors, sync_file
from ..errors import SpecError
from ..reader import TokenStore
from ..targets import Target, list_targets, read_target

ROWS_AT_A_TIME = 1024


def write_features(store: str | Path, file: str | Path, *, tap: str | None = None) -> int:
    """Write the usable rows of a store to one file, which appears whole or not at all.

    `.npz` holds `ids` [N], `content_hashes` [N], each array [N, D] or [N, T, D] under its level and kind, each target under
    `targets/<name>` and its class names under `class_names/<name>`. `.parquet` has one row per image: `id`, `content_hash`, each
    target as `targets/<name>` (classes by name), and each array as a list of D or T x D numbers, whose shape is in the metadata
    of the column.

    Args:
        store: the store.
        file: the file to make; it must not exist.
        tap: whose arrays are written, beside those of `final`; None for the only one.

    Returns:
        N.

    Raises:
        SpecError: the store has several taps or not this one, the file exists, has another extension, or pyarrow is missing for
            Parquet.
        CacheError: as `TokenStore.open`, or the disk refuses.
    """
    file, opened = Path(file), TokenStore.open(store, tap=tap)
    write = WRITERS.get(file.suffix.lower())
    if write is None:
        raise SpecError("cache.unknown_features_file", file=file, extensions=" or ".join(WRITERS))
    if os.path.lexists(file):
        raise SpecError("cache.path_taken", path=file)
    if (len(opened.taps) > 1 and tap is None) or (tap is not None and tap not in opened.taps):
        raise SpecError(
            "cache.choose_tap", store=store, taps=", ".join(opened.taps) or "final alone", tap=tap or "none"
        )
    is_usable = np.ones(opened.num_rows, dtype=bool)
    is_usable[list(opened.skipped)] = False
    rows = np.flatnonzero(is_usable)
    staging = staging_beside(file)
    try:
        with storage_errors(file):
            write(opened, rows, staging)
            sync_file(staging)
            publish_file(staging, file)
    except ImportError:
        raise SpecError("cache.no_pyarrow", file=file.name) from None
    finally:
        staging.unlink(missing_ok=True)
    return len(rows)


def _write_npz(store: TokenStore, rows: NDArray[np.int64], file: Path) -> None:
    ids = store.sample_ids
    with zipfile.ZipFile(file, "w") as archive:
        _add(archive, "ids", np.array([ids[row] for row in rows.tolist()]))
        _add(archive, "content_hashes", store.rows.hashes[rows])
        for name, target in _targets(store):
            _add(archive, f"targets/{name}", target.values[rows])
            if target.class_names:
                _add(archive, f"class_names/{name}", np.array(list(target.class_names)))
        for level, kind in store.arrays:
            shape = (len(rows), *store.tokens(level, kind).shape[1:])
            dtype = np.dtype("float16" if store.tokens(level, kind).logical_dtype == "float16" else "float32")
            with archive.open(f"{level}/{kind}.npy", "w", force_zip64=True) as member:
                header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(member, header)
                for values in _read(store, level, kind, rows):
                    member.write(np.ascontiguousarray(values, dtype=dtype).data)


def _write_parquet(store: TokenStore, rows: NDArray[np.int64], file: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    columns: dict[str, Any] = {
        "id": pa.array([store.sample_ids[row] for row in rows.tolist()], pa.string()),
        "content_hash": pa.array(store.rows.hashes[rows], pa.uint64()),
    }
    for name, target in _targets(store):
        columns[f"targets/{name}"] = pa.array(_plain(target, rows))
    fields = [pa.field(name, values.type) for name, values in columns.items()]
    for level, kind in store.arrays:
        shape = store.tokens(level, kind).shape[1:]
        about = {"shape": " ".join(map(str, shape))}
        fields.append(pa.field(f"{level}/{kind}", pa.list_(pa.float32(), int(np.prod(shape))), metadata=about))
    with parquet.ParquetWriter(file, schema := pa.schema(fields)) as writer:
        readers = [_read(store, level, kind, rows) for level, kind in store.arrays]
        for start in range(0, len(rows), ROWS_AT_A_TIME):
            part = [values.slice(start, ROWS_AT_A_TIME) for values in columns.values()]
            for field, reader in zip(fields[len(part) :], readers, strict=True):
                flat = pa.array(next(reader).astype(np.float32).reshape(-1))
                part.append(pa.FixedSizeListArray.from_arrays(flat, field.type.list_size))
            writer.write_table(pa.table(part, schema=schema))


def _add(archive: zipfile.ZipFile, name: str, values: NDArray[Any]) -> None:
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array(member, values, allow_pickle=False)


def _targets(store: TokenStore) -> Iterator[tuple[str, Target]]:
    for name in list_targets(store.path):
        yield name, read_target(store.path, name, num_rows=store.num_rows)


def _plain(target: Target, rows: NDArray[np.int64]) -> list[Any]:
    """Class names where there are any, else the values; None for an unknown class."""
    values: list[Any] = target.values[rows].tolist()
    names = list(target.class_names)
    if target.values.ndim > 1 or not names:
        return values
    return [names[value] if value >= 0 else None for value in values]


def _read(store: TokenStore, level: str, kind: str, rows: NDArray[np.int64]) -> Iterator[NDArray[Any]]:
    """The tokens of some rows, some at a time; bfloat16 as float32."""
    tokens = store.tokens(level, kind)
    for start in range(0, len(rows), ROWS_AT_A_TIME):
        values = tokens.take(rows[start : start + ROWS_AT_A_TIME])
        if tokens.logical_dtype == "bfloat16":
            values = (values.astype(np.uint32) << 16).view(np.float32)
        yield values


WRITERS: dict[str, Callable[[TokenStore, NDArray[np.int64], Path], None]] = {
    ".npz": _write_npz,
    ".parquet": _write_parquet,
}
