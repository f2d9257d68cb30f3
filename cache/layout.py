"""Where things lie inside a store, and the Zarr arrays themselves, made by zarr.

The decision taken here: a chunk is the array's memory followed by a CRC-32C of four bytes (codecs ``bytes``
little-endian, ``crc32c``), and the chunk files of an array lie flat in its folder (``c.3.0``). So they can be
mapped, zarr verifies them, and one listing of one folder shows whether all of them are there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from .geometry import Grid, rows_per_block, rows_per_chunk
from .header import HEADER_FILE, ArrayEntry, Header, StaticEntry
from .journal import JOURNAL_FOLDER, WORKER_FILE
from .spec import ArraySpec, CacheSpec, array_order
from .storage_dtypes import STORAGE_DTYPES

LABELS = "labels"
SAMPLE_ID_BYTES = "sample_ids/bytes"
SAMPLE_ID_OFFSETS = "sample_ids/offsets"
STATIC_ARRAYS = (LABELS, SAMPLE_ID_BYTES, SAMPLE_ID_OFFSETS)  # written once, at creation, one chunk each
CONTENT_HASHES = "content_hashes"
CHECKSUM_BYTES = 4


@dataclass(frozen=True)
class ChunkedArray:
    """One array that is written in blocks: where its chunk files are, and how large.

    Args:
        name: path inside the store.
        row_shape: shape of one row, ``()`` for the content hashes.
        dtype: as stored, little-endian.
        grid: its blocks and chunks.
    """

    name: str
    row_shape: tuple[int, ...]
    dtype: np.dtype[Any]
    grid: Grid

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.row_shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def chunk_data_bytes(self) -> int:
        return self.grid.chunk_rows * self.row_bytes

    @property
    def file_bytes(self) -> int:
        """Size of every chunk file; the last one is padded with zeros."""
        return self.chunk_data_bytes + CHECKSUM_BYTES

    def file_name(self, chunk: int) -> str:
        return chunk_file_name(chunk, 1 + len(self.row_shape))

    def file(self, store: Path, chunk: int) -> Path:
        return store / self.name / self.file_name(chunk)

    def files(self, store: Path) -> list[Path]:
        return [self.file(store, chunk) for chunk in range(self.grid.num_chunks)]


def chunk_file_name(chunk: int, rank: int) -> str:
    """Name of the file of a chunk of an array of `rank` axes, split along the first.

    >>> chunk_file_name(3, 2)
    'c.3.0'
    """
    return ".".join(["c", str(chunk), *["0"] * (rank - 1)])


def storage_dtype(spec: CacheSpec, kind: str) -> np.dtype[Any]:
    """The dtype on disk of the token arrays of a kind."""
    return np.dtype(STORAGE_DTYPES[spec.dtype_of(kind)]).newbyteorder("<")


def token_array(header: Header, name: str) -> ChunkedArray:
    """A token array that the header knows."""
    array = header.arrays[name].spec
    return ChunkedArray(name, array.row_shape, storage_dtype(header.spec, array.kind), header.grid(name))


def content_hash_array(header: Header) -> ChunkedArray:
    """The content hashes: a chunk a block."""
    return ChunkedArray(CONTENT_HASHES, (), np.dtype("<u8"), header.hash_grid)


def static_array(header: Header, name: str) -> ChunkedArray:
    """An array that is written once, as one chunk."""
    entry = header.static[name]
    num_rows = entry.shape[0]
    return ChunkedArray(
        name, entry.shape[1:], np.dtype(entry.dtype).newbyteorder("<"), Grid(num_rows, num_rows, num_rows)
    )


def block_arrays(header: Header) -> Iterator[ChunkedArray]:
    """Everything that is written in blocks."""
    yield content_hash_array(header)
    for name in header.arrays:
        yield token_array(header, name)


@dataclass(frozen=True, kw_only=True)
class Skeleton:
    """What the header is to say of a store without blocks; see `Header`."""

    arrays: dict[str, ArrayEntry]
    static: dict[str, StaticEntry]
    metadata: dict[str, str]


def create_skeleton(
    folder: Path,
    spec: CacheSpec,
    arrays: Sequence[ArraySpec],
    static: Mapping[str, NDArray[Any]],
) -> Skeleton:
    """Make a store without a single block in a new folder: metadata, labels and sample ids, an empty journal; no header yet."""
    group = zarr.create_group(folder, zarr_format=3)
    entries, made = _create_arrays(group, spec, arrays, static)
    for name, values in static.items():
        made[name][...] = values
    (folder / JOURNAL_FOLDER).mkdir()
    (folder / JOURNAL_FOLDER / WORKER_FILE).touch()
    sync_tree(folder)
    return Skeleton(
        arrays=entries,
        static={name: static_entry(values) for name, values in static.items()},
        metadata={
            path: file_checksum(folder / path) for path in sorted(metadata_paths([*static, CONTENT_HASHES, *entries]))
        },
    )


def measure_skeleton(
    spec: CacheSpec, arrays: Sequence[ArraySpec], static: Mapping[str, NDArray[Any]]
) -> tuple[dict[str, ArrayEntry], dict[str, int]]:
    """The skeleton of a store without a disk: what the header says of its arrays, and path -> bytes of each ``zarr.json``."""
    files: dict[str, Buffer] = {}
    entries, _ = _create_arrays(zarr.create_group(MemoryStore(files), zarr_format=3), spec, arrays, static)
    return entries, {path: len(files[path]) for path in metadata_paths([*static, CONTENT_HASHES, *entries])}


def metadata_paths(names: Iterable[str]) -> set[str]:
    """The ``zarr.json`` of these arrays and of the groups above them, the root excepted."""
    nodes = {node.as_posix() for name in names for node in (Path(name), *Path(name).parents)}
    return {f"{node}/{HEADER_FILE}" for node in nodes - {"."}}


def _create_arrays(
    group: zarr.Group, spec: CacheSpec, arrays: Sequence[ArraySpec], static: Mapping[str, NDArray[Any]]
) -> tuple[dict[str, ArrayEntry], dict[str, zarr.Array[Any]]]:
    """Every array of a store without blocks, none with values yet: what the header says of tokens, and the static ones."""
    made = {name: _create_static(group, name, values) for name, values in static.items()}
    _create(group, CONTENT_HASHES, (spec.num_rows,), (rows_per_block(spec.num_rows),), np.dtype("<u8"), ("row",))
    return {array.name: _create_tokens(group, spec, array) for array in sorted(arrays, key=array_order)}, made


def _create_static(group: zarr.Group, name: str, values: NDArray[Any]) -> zarr.Array[Any]:
    dimensions = {
        LABELS: ("row", "target")[: values.ndim],
        SAMPLE_ID_BYTES: ("byte",),
        SAMPLE_ID_OFFSETS: ("border",),
    }
    return _create(group, name, values.shape, values.shape, values.dtype, dimensions[name])


def _create_tokens(group: zarr.Group, spec: CacheSpec, array: ArraySpec) -> ArrayEntry:
    dtype = storage_dtype(spec, array.kind)
    chunk_rows = rows_per_chunk(spec.num_rows, int(np.prod(array.row_shape)) * dtype.itemsize)
    # grid2 and grid4 of one level have different numbers of tokens, so the axis is named after the kind
    token_axis = (f"{array.kind}_token",) if len(array.row_shape) == 2 else ()
    _create(
        group,
        array.name,
        (spec.num_rows, *array.row_shape),
        (chunk_rows, *array.row_shape),
        dtype,
        ("row", *token_axis, "embed"),
        attributes={"logical_dtype": spec.dtype_of(array.kind)},
    )
    return ArrayEntry(spec=array, chunk_rows=chunk_rows, complete=False)


def _create(
    group: zarr.Group,
    name: str,
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    dtype: np.dtype[Any],
    dimension_names: tuple[str, ...],
    attributes: dict[str, Any] | None = None,
) -> zarr.Array[Any]:
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


def file_checksum(file: Path) -> str:
    """CRC-32C of a whole file, 8 hex digits."""
    return f"{google_crc32c.value(file.read_bytes()):08x}"


def static_arrays(labels: NDArray[Any], sample_ids: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Labels and sample ids as they are stored: ids are UTF-8, one after the other, and N + 1 borders.

    Names of files that are no UTF-8 keep their bytes (``surrogateescape``, as Python reads them from a
    folder).
    """
    encoded = [name.encode("utf-8", "surrogateescape") for name in sample_ids]
    offsets = np.zeros(len(encoded) + 1, dtype="<i8")
    np.cumsum([len(name) for name in encoded], out=offsets[1:])
    integers = labels.dtype.kind in "iub"
    return {
        LABELS: np.ascontiguousarray(labels, dtype="<i8" if integers else labels.dtype.newbyteorder("<")),
        SAMPLE_ID_BYTES: np.frombuffer(b"".join(encoded), dtype=np.uint8),
        SAMPLE_ID_OFFSETS: offsets,
    }


def static_entry(values: NDArray[Any]) -> StaticEntry:
    """What the header says of an array that is written once."""
    checksum = google_crc32c.value(values.reshape(-1).view(np.uint8))
    return StaticEntry(shape=values.shape, dtype=values.dtype.name, crc32c=f"{checksum:08x}")
