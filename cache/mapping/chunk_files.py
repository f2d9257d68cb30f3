"""Which files are the memory of a Zarr array: arrays of plain chunks, split along the rows only, all of them there."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_PLAIN_DTYPES = {"bool", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64))} | {
    "float16",
    "float32",
    "float64",
}


@dataclass(frozen=True)
class ChunkFiles:
    """An array whose chunk files are its memory, split along the rows only.

    Args:
        files: one file per chunk, data first; None where the store has no such chunk (yet): its rows are a hole.
        shape: shape of the array; the last chunk is padded beyond it.
        chunk_rows: rows per chunk.
        dtype: native byte order.
    """

    files: tuple[Path | None, ...]
    shape: tuple[int, ...]
    chunk_rows: int
    dtype: np.dtype[Any]

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def chunk_bytes(self) -> int:
        return self.chunk_rows * self.row_bytes


def find_chunk_files(path: Path) -> ChunkFiles | None:
    """The chunk files of a Zarr v3 array, if they are its memory and all there; else None."""
    try:
        meta = json.loads((path / "zarr.json").read_bytes())
        shape, chunks = meta["shape"], meta["chunk_grid"]["configuration"]["chunk_shape"]
        codecs = [(codec["name"], codec.get("configuration", {})) for codec in meta["codecs"]]
        is_plain = (
            meta["chunk_grid"]["name"] == "regular"
            and shape[0] > 0
            and shape[1:] == chunks[1:]
            and meta["data_type"] in _PLAIN_DTYPES
            and [name for name, _ in codecs] in (["bytes"], ["bytes", "crc32c"])
            and codecs[0][1].get("endian", "little") == sys.byteorder == "little"
            and not meta.get("storage_transformers")
        )
        encoding = meta["chunk_key_encoding"]
        separator = encoding.get("configuration", {}).get("separator")
        prefix, default = {"default": (["c"], "/"), "v2": ([], ".")}[encoding["name"]]
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None
    if not is_plain:
        return None
    zeros = ["0"] * (len(shape) - 1)
    names = [(separator or default).join([*prefix, str(i), *zeros]) for i in range(-(-shape[0] // chunks[0]))]
    paths = tuple(path / name for name in names)
    files = ChunkFiles(paths, tuple(shape), chunks[0], np.dtype(meta["data_type"]))
    size_bytes = files.chunk_bytes + 4 * (len(codecs) - 1)
    is_whole = all(file.is_file() and file.stat().st_size == size_bytes for file in paths)
    return files if is_whole and files.chunk_bytes else None
