"""Rows of a Zarr array without zarr in between: its chunk files mapped into memory.

Three ways to the same rows, tried in this order; the classes have the same methods:

    ContiguousRows  an address range is reserved and every chunk file mapped over its part of it (MAP_FIXED): one ndarray,
                    whatever the number of files. Needs Linux or macOS, and chunks whose data fill whole pages (or one chunk).
    ChunkRows       one map per chunk, rows gathered in sorted order. Works everywhere.
    ZarrRows        any other codec, sharding, missing chunks: whatever zarr can read.

Maps are private and writable: torch warns of read-only memory, and a stray write then changes this process's copy, never the
file. A file that is cut off *while* it is mapped kills the reader (SIGBUS); the writer only ever replaces files whole.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import json
import math
import mmap
import os
import sys
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import zarr
from numpy.typing import NDArray

_MAP_PRIVATE, _MAP_FIXED = 0x02, 0x10
_MAP_ANONYMOUS, _MAP_NORESERVE = {"linux": (0x20, 0x4000), "darwin": (0x1000, 0x40)}.get(sys.platform, (0, 0))
_FAILED = ctypes.c_void_p(-1).value
WILL_NEED, DONT_NEED = 3, 4  # madvise, the same numbers on Linux and macOS: read ahead, free the memory
_FOLIO_BYTES = 2 << 20  # one page fault may map so much: memory must be freed in pieces as large, or the rest stays
TOUCH_ROWS = 512  # rows of 1.5 KB that the second-level cache holds
_PLAIN_DTYPES = {"bool", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64))} | {
    "float16",
    "float32",
    "float64",
}


@dataclass(frozen=True)
class ChunkFiles:
    """An array whose chunk files are its memory, split along the rows only.

    Args:
        files: one file per chunk, data first.
        shape: shape of the array; the last chunk is padded beyond it.
        chunk_rows: rows per chunk.
        dtype: native byte order.
    """

    files: tuple[Path, ...]
    shape: tuple[int, ...]
    chunk_rows: int
    dtype: np.dtype[Any]

    @property
    def chunk_bytes(self) -> int:
        return self.chunk_rows * math.prod(self.shape[1:]) * self.dtype.itemsize


def open_rows(path: Path) -> Rows:
    """The rows of any Zarr array, in the fastest way that its layout allows."""
    files = find_chunk_files(path)
    return ZarrRows(path) if files is None else map_rows(files)


def map_rows(files: ChunkFiles) -> Rows:
    """Contiguous rows if the system can map them, else rows by chunk."""
    if can_be_contiguous(files):
        try:
            return ContiguousRows(files)
        except OSError:  # address space or overcommit: the other way maps a chunk at a time
            pass
    return ChunkRows(files)


def can_be_contiguous(files: ChunkFiles) -> bool:
    """Whether this system can put these files side by side in memory."""
    whole_pages = len(files.files) == 1 or files.chunk_bytes % mmap.ALLOCATIONGRANULARITY == 0
    return bool(_MAP_ANONYMOUS) and ctypes.sizeof(ctypes.c_void_p) == 8 and whole_pages


class ContiguousRows:
    """All chunk files side by side in one address range.

    Attributes:
        contiguous: the whole array as one ndarray.

    Raises:
        OSError: the system refused a map, or a file is shorter than its chunk.
    """

    def __init__(self, files: ChunkFiles) -> None:
        padded_rows = len(files.files) * files.chunk_rows
        region = _Region(len(files.files) * files.chunk_bytes)
        for index, file in enumerate(files.files):
            region.map_file(file, index * files.chunk_bytes, files.chunk_bytes)
        values = region.as_array(files.dtype).reshape(padded_rows, *files.shape[1:])
        self.contiguous = values[: files.shape[0]]
        self._firsts = self.contiguous.reshape(files.shape[0], -1)[:, 0]
        self.shape = files.shape
        self.dtype = files.dtype

    def gather(self, rows: NDArray[np.int64], out: NDArray[Any]) -> None:
        """Put these rows, in this order, into `out`. Rows are within range; repeats are allowed."""
        for start in range(0, len(rows), TOUCH_ROWS):
            part = rows[start : start + TOUCH_ROWS]
            self._firsts[part]  # loads that do not wait for each other: their page walks overlap, 15 % of the gather
            # without mode="clip" numpy gathers into a buffer first: 3.7 times slower
            np.take(self.contiguous, part, axis=0, out=out[start : start + TOUCH_ROWS], mode="clip")

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows start to stop; a view."""
        return self.contiguous[start:stop]

    def advise(self, start: int, stop: int, advice: int) -> None:
        """Pass advice about these rows to the system: WILL_NEED reads them ahead, DONT_NEED frees their memory."""
        _advise(self.contiguous, start, stop, advice)


class ChunkRows:
    """One map per chunk, made when the chunk is first read and kept; rows are gathered chunk after chunk."""

    contiguous = None

    def __init__(self, files: ChunkFiles) -> None:
        self._files = files
        self._chunks: dict[int, NDArray[Any]] = {}
        self.shape = files.shape
        self.dtype = files.dtype

    def gather(self, rows: NDArray[np.int64], out: NDArray[Any]) -> None:
        order = np.argsort(rows, kind="stable")
        chunks, local = np.divmod(rows[order], self._files.chunk_rows)
        borders = [0, *(np.flatnonzero(np.diff(chunks)) + 1).tolist(), len(rows)]
        for first, last in itertools.pairwise(borders):
            if last > first:
                out[order[first:last]] = self._chunk(int(chunks[first]))[local[first:last]]

    def read(self, start: int, stop: int) -> NDArray[Any]:
        out = np.empty((stop - start, *self.shape[1:]), dtype=self.dtype)
        for chunk in range(start // self._files.chunk_rows, -(-stop // self._files.chunk_rows)):
            first = chunk * self._files.chunk_rows
            low, high = max(start, first), min(stop, first + self._files.chunk_rows)
            out[low - start : high - start] = self._chunk(chunk)[low - first : high - first]
        return out

    def advise(self, start: int, stop: int, advice: int) -> None:
        size = self._files.chunk_rows
        for chunk in range(start // size, -(-stop // size)):
            if advice == WILL_NEED or chunk in self._chunks:
                _advise(self._chunk(chunk), max(start - chunk * size, 0), min(stop - chunk * size, size), advice)

    def _chunk(self, chunk: int) -> NDArray[Any]:
        if chunk not in self._chunks:
            file, num_bytes = self._files.files[chunk], self._files.chunk_bytes
            try:
                values = _map_chunk(file, num_bytes, self.dtype)
            except OSError:  # the system allows so many maps (or, elsewhere, open files) a process
                self._chunks.clear()
                values = _map_chunk(file, num_bytes, self.dtype)
            self._chunks[chunk] = values.reshape(self._files.chunk_rows, *self.shape[1:])
        return self._chunks[chunk]


class ZarrRows:
    """Rows read by zarr: any codec, about a hundred times slower for random rows."""

    contiguous = None

    def __init__(self, path: Path) -> None:
        array = zarr.open_array(path, mode="r")
        assert isinstance(array, zarr.Array)
        self._array = array
        self.shape = tuple(array.shape)
        self.dtype = np.dtype(array.dtype)

    def gather(self, rows: NDArray[np.int64], out: NDArray[Any]) -> None:
        if len(rows):
            out[...] = self._array.oindex[rows]

    def read(self, start: int, stop: int) -> NDArray[Any]:
        return np.asarray(self._array[start:stop])

    def advise(self, start: int, stop: int, advice: int) -> None:
        """Does nothing: zarr reads with ordinary calls and keeps nothing."""


Rows: TypeAlias = ContiguousRows | ChunkRows | ZarrRows


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
    files = ChunkFiles(tuple(path / name for name in names), tuple(shape), chunks[0], np.dtype(meta["data_type"]))
    size_bytes = files.chunk_bytes + 4 * (len(codecs) - 1)
    is_whole = all(file.is_file() and file.stat().st_size == size_bytes for file in files.files)
    return files if is_whole and files.chunk_bytes else None


class _Region:
    """A reserved address range, released with the last array over it."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        flags = _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_NORESERVE
        self.address: int = _mmap(None, num_bytes, 0, flags, -1)
        finalizer = weakref.finalize(self, _libc().munmap, self.address, num_bytes)
        finalizer.atexit = False  # other threads may still read while the interpreter ends

    def map_file(self, file: Path, offset: int, num_bytes: int) -> None:
        fd = os.open(file, os.O_RDONLY)
        try:
            if os.fstat(fd).st_size < num_bytes:  # touching memory beyond the end of a file is SIGBUS
                raise OSError(f"{file} is shorter than {num_bytes} bytes")
            protection = mmap.PROT_READ | mmap.PROT_WRITE
            _mmap(self.address + offset, num_bytes, protection, _MAP_PRIVATE | _MAP_FIXED | _MAP_NORESERVE, fd)
        finally:
            os.close(fd)

    def as_array(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        memory = (ctypes.c_uint8 * self.num_bytes).from_address(self.address)
        memory._region = self  # type: ignore[attr-defined]  # every view keeps `memory`, and so the maps
        return np.frombuffer(memoryview(memory), dtype=dtype)


def _map_chunk(file: Path, num_bytes: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    if _MAP_ANONYMOUS:
        region = _Region(num_bytes)
        region.map_file(file, 0, num_bytes)
        return region.as_array(dtype)
    with open(file, "rb") as opened:  # this map keeps a handle of the file, the other does not
        return np.frombuffer(mmap.mmap(opened.fileno(), num_bytes, access=mmap.ACCESS_READ), dtype=dtype)


def _advise(values: NDArray[Any], start: int, stop: int, advice: int) -> None:
    """Advise the system about the pages of some rows of a map; without effect, only the speed differs."""
    if not _MAP_ANONYMOUS or stop <= start:
        return
    base, row_bytes = int(values.__array_interface__["data"][0]), values.nbytes // len(values)
    coarse = _FOLIO_BYTES if advice == DONT_NEED else mmap.PAGESIZE
    first = max((base + start * row_bytes) // coarse * coarse, base)
    last = min(-(-(base + stop * row_bytes) // coarse) * coarse, base + values.nbytes)
    _libc().madvise(first, last - first, advice)


def _mmap(address: int | None, num_bytes: int, protection: int, flags: int, fd: int) -> int:
    result = _libc().mmap(address, num_bytes, protection, flags, fd, 0)
    if result is None or result == _FAILED:
        raise OSError(ctypes.get_errno(), "mmap failed")
    return int(result)


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    libc.mmap.restype = pointer
    libc.mmap.argtypes = [pointer, size, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]
    libc.munmap.argtypes = [pointer, size]
    libc.madvise.argtypes = [pointer, size, ctypes.c_int]
    return libc
