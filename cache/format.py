"""The files of a store, and its Zarr arrays, which zarr creates.

The decision taken here: a chunk file is the array's memory followed by a CRC-32C of four bytes (codecs ``bytes``
little-endian, ``crc32c``), and the chunk files of an array lie flat in its folder (``c.3.0``). So they can be mapped,
zarr verifies them, and one listing of one folder shows whether all of them are there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BytesCodec, Crc32cCodec
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from .atomic_files import sync_tree
from .geometry import Grid, rows_per_chunk
from .header import HEADER_FILE, ArrayEntry, Header, StaticEntry
from .journal import JOURNAL_FOLDER, WORKER_FILE
from .rows import RowSet
from .spec import STORAGE_DTYPES, ArraySpec, ModelSpec, StoreSpec, array_order

CONTENT_HASHES = "content_hashes"
VIEWS = "views"
SAMPLE_ID_BYTES = "sample_ids/bytes"
SAMPLE_ID_OFFSETS = "sample_ids/offsets"
SIZES = "sizes"
LABELS = "labels"  # of format 1
CHECKSUM_BYTES = 4


@dataclass(frozen=True)
class ChunkedArray:
    """The chunk files of one array.

    Args:
        name: path inside the store.
        row_shape: shape of one row, ``()`` for the content hashes.
        dtype: as stored, little-endian.
        grid: its row blocks and chunks.
    """

    name: str
    row_shape: tuple[int, ...]
    dtype: np.dtype[Any]
    grid: Grid

    @property
    def chunk_data_bytes(self) -> int:
        return self.grid.chunk_rows * math.prod(self.row_shape) * self.dtype.itemsize

    @property
    def file_bytes(self) -> int:
        """Size of every chunk file; the last one is padded with zeros."""
        return self.chunk_data_bytes + CHECKSUM_BYTES

    def file_name(self, chunk: int) -> str:
        """Name of a chunk file.

        >>> ChunkedArray("tokens/final/cls", (384,), np.dtype("<f2"), Grid(1200, 240, 240)).file_name(3)
        'c.3.0'
        """
        return ".".join(["c", str(chunk), *["0"] * len(self.row_shape)])

    def file(self, store: Path, chunk: int) -> Path:
        return store / self.name / self.file_name(chunk)

    def has_file(self, name: str) -> bool:
        """Whether one of the chunk files is called so."""
        number = name.split(".")[1] if name.count(".") else ""
        is_number = number.isascii() and number.isdigit() and len(number) < 20
        return is_number and int(number) < self.grid.num_chunks and name == self.file_name(int(number))

    def size_problem(self, size_bytes: int) -> str | None:
        return None if size_bytes == self.file_bytes else f"{size_bytes} bytes instead of {self.file_bytes}"

    def problem(self, store: Path, chunk: int, checksum: str | None, *, read: bool = True) -> str | None:
        """The problem of a chunk file; None if it is sound.

        Args:
            store: the store.
            chunk: number of the chunk.
            checksum: the CRC-32C of its data by journal or header, None where they have none.
            read: read it, or only check its size.
        """
        file = self.file(store, chunk)
        if not file.is_file():
            return "missing"
        if problem := self.size_problem(file.stat().st_size):
            return problem
        if checksum is None:
            return "not in the journal"
        if read:
            data = np.fromfile(file, dtype=np.uint8)
            stored = int.from_bytes(data[-CHECKSUM_BYTES:].tobytes(), "little")
            if f"{stored:08x}" != checksum or google_crc32c.value(data[:-CHECKSUM_BYTES]) != stored:
                return "altered"
        return None


def storage_dtype(model: ModelSpec, kind: str) -> np.dtype[Any]:
    """The dtype on disk of the token arrays of a kind."""
    return np.dtype(STORAGE_DTYPES[model.dtype_of(kind)]).newbyteorder("<")


def token_array(header: Header, name: str) -> ChunkedArray:
    array = header.arrays[name].spec
    return ChunkedArray(name, array.row_shape, storage_dtype(header.spec.model, array.kind), header.grid(name))


def static_array(header: Header, name: str) -> ChunkedArray:
    """An array that is written once, as one chunk."""
    entry = header.static[name]
    grid = Grid(*[entry.shape[0]] * 3)
    return ChunkedArray(name, entry.shape[1:], np.dtype(entry.dtype).newbyteorder("<"), grid)


def block_arrays(header: Header) -> list[ChunkedArray]:
    """All arrays that are written in row blocks; in format 1 the content hashes are one of them."""
    hashes = [ChunkedArray(CONTENT_HASHES, (), np.dtype("<u8"), header.block_grid)] if header.format == 1 else []
    return [*hashes, *(token_array(header, name) for name in header.arrays)]


def create_skeleton(
    folder: Path, spec: StoreSpec, arrays: Sequence[ArraySpec], static: Mapping[str, NDArray[Any]]
) -> tuple[dict[str, ArrayEntry], dict[str, str]]:
    """Make a store without a single row block in a new folder: metadata, static arrays, an empty journal; no header yet.

    Returns:
        The header's entries of the token arrays, and path -> CRC-32C of each ``zarr.json``.
    """
    entries, made = _create_arrays(zarr.create_group(folder, zarr_format=3), spec, arrays, static)
    for name, values in static.items():
        made[name][...] = values
    (folder / JOURNAL_FOLDER).mkdir(parents=True)
    (folder / JOURNAL_FOLDER / WORKER_FILE).touch()
    sync_tree(folder)
    paths = sorted(metadata_paths([*static, *entries]))
    return entries, {path: _file_checksum(folder / path) for path in paths}


def metadata_files(
    spec: StoreSpec, arrays: Sequence[ArraySpec], static: Mapping[str, NDArray[Any]]
) -> tuple[dict[str, ArrayEntry], dict[str, bytes]]:
    """Make the metadata in memory.

    Returns:
        The header's entries of the token arrays, and path -> content of each ``zarr.json``.
    """
    files: dict[str, Buffer] = {}
    entries, _ = _create_arrays(zarr.create_group(MemoryStore(files), zarr_format=3), spec, arrays, static)
    return entries, {path: files[path].to_bytes() for path in metadata_paths([*static, *entries])}


def metadata_paths(names: Iterable[str]) -> set[str]:
    """The ``zarr.json`` of these arrays and of the groups above them, the root excepted."""
    nodes = {node.as_posix() for name in names for node in (Path(name), *Path(name).parents)}
    return {f"{node}/{HEADER_FILE}" for node in nodes - {"."}}


def _create_arrays(
    group: zarr.Group, spec: StoreSpec, arrays: Sequence[ArraySpec], static: Mapping[str, NDArray[Any]]
) -> tuple[dict[str, ArrayEntry], dict[str, zarr.Array[Any]]]:
    """Create every array, without values; return the header's entries of the token arrays, and the static arrays."""
    dimensions = {SAMPLE_ID_BYTES: ("byte",), SAMPLE_ID_OFFSETS: ("border",)}
    made = {
        name: create_array(
            group,
            name,
            values.shape,
            values.shape,
            values.dtype,
            dimensions.get(name, ("row",)),
        )
        for name, values in static.items()
    }
    return {array.name: _create_tokens(group, spec, array) for array in sorted(arrays, key=array_order)}, made


def _create_tokens(group: zarr.Group, spec: StoreSpec, array: ArraySpec) -> ArrayEntry:
    dtype = storage_dtype(spec.model, array.kind)
    chunk_rows = rows_per_chunk(spec.num_rows, math.prod(array.row_shape) * dtype.itemsize)
    # grid2 and grid4 of one level have different numbers of tokens, so the axis is named after the kind
    token_axis = (f"{array.kind}_token",) if len(array.row_shape) == 2 else ()
    create_array(
        group,
        array.name,
        (spec.num_rows, *array.row_shape),
        (chunk_rows, *array.row_shape),
        dtype,
        ("row", *token_axis, "embed"),
        attributes={"logical_dtype": spec.model.dtype_of(array.kind)},
    )
    return ArrayEntry(spec=array, chunk_rows=chunk_rows, complete=False)


def create_array(
    group: zarr.Group,
    name: str,
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    dtype: np.dtype[Any],
    dimension_names: tuple[str, ...],
    attributes: dict[str, Any] | None = None,
) -> zarr.Array[Any]:
    """Create an array whose chunk files are its memory followed by a CRC-32C."""
    return group.create_array(
        name,
        shape=shape,
        chunks=chunks,
        dtype=dtype,
        fill_value=0,
        filters=None,
        serializer=BytesCodec(endian="little"),
        compressors=[Crc32cCodec()],
        chunk_key_encoding={"name": "default", "separator": "."},
        dimension_names=dimension_names,
        attributes=attributes,
        config={"write_empty_chunks": True},  # zarr would leave out a chunk of zeros
    )


def metadata_problem(store: Path, path: str, checksum: str) -> str | None:
    if not (store / path).is_file():
        return "missing"
    return None if _file_checksum(store / path) == checksum else "altered"


def _file_checksum(file: Path) -> str:
    return f"{google_crc32c.value(file.read_bytes()):08x}"


def static_arrays(
    rows: RowSet, sample_ids: Sequence[str], sizes: NDArray[np.int64] | None = None
) -> dict[str, NDArray[Any]]:
    """What is stored of the rows: hashes, views if there are any, ids as UTF-8 one after the other with N + 1 offsets, sizes.

    File names that are not valid UTF-8 keep their bytes (``surrogateescape``, as Python reads them from a folder).
    """
    encoded = [name.encode("utf-8", "surrogateescape") for name in sample_ids]
    offsets = np.zeros(len(encoded) + 1, dtype="<i8")
    np.cumsum([len(name) for name in encoded], out=offsets[1:])
    return {
        CONTENT_HASHES: rows.hashes,
        SAMPLE_ID_BYTES: np.frombuffer(b"".join(encoded), dtype=np.uint8),
        SAMPLE_ID_OFFSETS: offsets,
        **({} if rows.views is None else {VIEWS: rows.views}),
        **({} if sizes is None else {SIZES: np.ascontiguousarray(sizes, dtype="<i8")}),
    }


def static_entry(values: NDArray[Any]) -> StaticEntry:
    checksum = google_crc32c.value(values.reshape(-1).view(np.uint8))
    return StaticEntry(shape=values.shape, dtype=values.dtype.name, crc32c=f"{checksum:08x}")
