"""Reading rows of one array from the chunk files of one store, or of several by position.

Three ways to the same rows, tried in this order; the classes have the same methods:

    ContiguousRows  an address range is reserved and every chunk file mapped over its part of it: one ndarray, whatever the
                    number of files and stores. Needs Linux or macOS, and chunks whose data fill whole pages (or one chunk).
    ChunkRows       one map per chunk, rows gathered in sorted order. Works everywhere. JoinedRows does the same for stores.
    ZarrRows        any other codec, sharding, missing chunks: whatever zarr can read.

**Positions.** The rows of several stores of one model are read as one array: row r of store k has the position
`starts[k] + r`. `part_starts` computes the starts from the numbers of rows alone, so a position is valid for every array of
these stores. Each start is a multiple of `START_ROWS`, hence of the page whatever a row's bytes; the positions between two
stores are a hole. A hole takes addresses, at most `START_ROWS` rows an array and store, and neither memory nor disk; no row
lies there, what is read there is unspecified.
"""

from __future__ import annotations

import itertools
import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import zarr
from numpy.typing import NDArray

from ..geometry import LARGE_PAGE_BYTES
from .chunk_files import ChunkFiles, find_chunk_files
from .memory_maps import WILL_NEED, AddressRange, advise_rows, can_reserve, has_spare_maps, map_file

START_ROWS = max(LARGE_PAGE_BYTES, mmap.ALLOCATIONGRANULARITY)
"""Every store begins at a multiple of so many rows. The larger page of the two usual ones, so that most systems agree."""
TOUCH_ROWS = 512  # rows of 1.5 KB that the second-level cache holds


def open_rows(path: Path) -> Rows:
    """The rows of any Zarr array, in the fastest way that its layout allows."""
    files = find_chunk_files(path)
    return ZarrRows(path) if files is None else map_rows(files)


def map_rows(files: ChunkFiles) -> Rows:
    """The rows of one store: contiguous if the system can map them so, else by chunk."""
    return join_rows([files])


def part_starts(num_rows: Sequence[int]) -> tuple[int, ...]:
    """The position of the first row of each store, from the stores' numbers of rows.

    >>> [start // START_ROWS for start in part_starts([START_ROWS, 1, START_ROWS + 1, 500])]
    [0, 1, 2, 4]
    """
    padded = [-(-num // START_ROWS) * START_ROWS for num in num_rows]
    return tuple(itertools.accumulate(padded[:-1], initial=0))


def join_rows(parts: Sequence[ChunkFiles]) -> Rows:
    """The rows of one array in several stores, at the positions of `part_starts`.

    Args:
        parts: the array in each store, at least one; all of one row shape and dtype.
    """
    assert len({(part.shape[1:], part.dtype) for part in parts}) == 1, "arrays that differ in row shape or dtype"
    if all(map(can_be_contiguous, parts)) and has_spare_maps(_num_maps(parts)):
        try:
            return ContiguousRows(parts)
        except OSError:  # address space or overcommit: the other way maps a chunk at a time
            pass
    return ChunkRows(parts[0]) if len(parts) == 1 else JoinedRows([map_rows(part) for part in parts])


def can_be_contiguous(files: ChunkFiles) -> bool:
    """Whether this system can put these files side by side in memory."""
    return can_reserve() and (len(files.files) == 1 or files.chunk_bytes % mmap.ALLOCATIONGRANULARITY == 0)


class ContiguousRows:
    """All chunk files of one array in one or several stores, in one address range.

    Attributes:
        contiguous: all positions as one ndarray.

    Raises:
        OSError: the system refused a map.
        DamagedStoreError: a file is shorter than its chunk.
    """

    def __init__(self, parts: Sequence[ChunkFiles]) -> None:
        first, row_bytes = parts[0], parts[0].row_bytes
        self._lengths = [part.shape[0] for part in parts]
        self._starts = part_starts(self._lengths)
        self.shape = (self._starts[-1] + self._lengths[-1], *first.shape[1:])
        self.dtype = first.dtype
        addresses = AddressRange(self.shape[0] * row_bytes, _num_maps(parts))
        for start, part in zip(self._starts, parts, strict=True):
            for index, file in enumerate(part.files):
                row = index * part.chunk_rows
                num_bytes = min(part.chunk_rows, part.shape[0] - row) * row_bytes  # not the padding: a store may follow
                if file is not None:
                    addresses.map_file(file, (start + row) * row_bytes, num_bytes, part.chunk_bytes)
        self.contiguous = addresses.as_array(self.dtype).reshape(self.shape)
        self._firsts = self.contiguous.reshape(self.shape[0], -1)[:, 0]

    def gather(self, rows: NDArray[np.int64], out: NDArray[Any]) -> None:
        """Put these rows, in this order, into `out`. Rows are within range; repeats are allowed."""
        for start in range(0, len(rows), TOUCH_ROWS):
            part = rows[start : start + TOUCH_ROWS]
            self._firsts[part]  # loads that do not wait for each other: their page walks overlap, 15 % of the gather
            # without mode="clip" numpy gathers into a buffer first: 3.7 times slower
            np.take(self.contiguous, part, axis=0, out=out[start : start + TOUCH_ROWS], mode="clip")

    def gather_ascending(self, rows: NDArray[np.int64], out: NDArray[Any], places: NDArray[np.intp]) -> None:
        """Put row rows[i], in ascending order, into out[places[i]]."""
        out[places] = self.contiguous[rows]

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows start to stop; a view."""
        return self.contiguous[start:stop]

    def advise(self, start: int, stop: int, advice: int) -> None:
        """Pass advice about these rows to the system: WILL_NEED reads them ahead, DONT_NEED frees their memory."""
        for part, low, high in _overlaps(self._starts, self._lengths, start, stop):
            first = self._starts[part]
            advise_rows(self.contiguous[first : first + self._lengths[part]], low, high, advice)


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
        self.gather_ascending(rows[order], out, order)

    def gather_ascending(self, rows: NDArray[np.int64], out: NDArray[Any], places: NDArray[np.intp]) -> None:
        chunks, local = np.divmod(rows, self._files.chunk_rows)
        borders = [0, *(np.flatnonzero(np.diff(chunks)) + 1).tolist(), len(rows)]
        for first, last in itertools.pairwise(borders):
            if last > first:
                out[places[first:last]] = self._chunk(int(chunks[first]))[local[first:last]]

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
            if chunk in self._chunks or (advice == WILL_NEED and self._files.files[chunk] is not None):
                advise_rows(self._chunk(chunk), max(start - chunk * size, 0), min(stop - chunk * size, size), advice)

    def _chunk(self, chunk: int) -> NDArray[Any]:
        known = self._chunks.get(chunk)  # another thread may empty the dictionary at any time
        if known is not None:
            return known
        shape = (self._files.chunk_rows, *self.shape[1:])
        file, num_bytes = self._files.files[chunk], self._files.chunk_bytes
        if file is None:
            return np.broadcast_to(np.zeros((), self.dtype), shape)
        if not has_spare_maps():
            self._chunks.clear()
        try:
            values = map_file(file, num_bytes, self.dtype)
        except OSError:  # the system allows so many maps (or, elsewhere, open files) a process
            self._chunks.clear()
            values = map_file(file, num_bytes, self.dtype)
        self._chunks[chunk] = values = values.reshape(shape)
        return values


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

    def gather_ascending(self, rows: NDArray[np.int64], out: NDArray[Any], places: NDArray[np.intp]) -> None:
        if len(rows):
            out[places] = self._array.oindex[rows]

    def read(self, start: int, stop: int) -> NDArray[Any]:
        return np.asarray(self._array[start:stop])

    def advise(self, start: int, stop: int, advice: int) -> None:
        """Does nothing: zarr reads with ordinary calls and keeps nothing."""


class JoinedRows:
    """One array in several stores that cannot share an address range: rows are gathered store after store.

    Args:
        parts: the rows of each store, all of one row shape and dtype.
    """

    contiguous = None

    def __init__(self, parts: Sequence[Rows]) -> None:
        self._parts = tuple(parts)
        self._lengths = [part.shape[0] for part in parts]
        self._starts = part_starts(self._lengths)
        self.shape: tuple[int, ...] = (self._starts[-1] + self._lengths[-1], *parts[0].shape[1:])
        self.dtype: np.dtype[Any] = parts[0].dtype

    def gather(self, rows: NDArray[np.int64], out: NDArray[Any]) -> None:
        order = np.argsort(rows, kind="stable")
        self.gather_ascending(rows[order], out, order)

    def gather_ascending(self, rows: NDArray[np.int64], out: NDArray[Any], places: NDArray[np.intp]) -> None:
        ends = np.add(self._starts, self._lengths)
        borders = np.searchsorted(rows, np.column_stack([self._starts, ends]))
        for part, start, (first, last) in zip(self._parts, self._starts, borders, strict=True):
            part.gather_ascending(rows[first:last] - start, out, places[first:last])
        if (borders[:, 1] - borders[:, 0]).sum() < len(rows):
            part_of = np.searchsorted(self._starts, rows, side="right") - 1
            out[places[rows >= ends[part_of]]] = 0

    def read(self, start: int, stop: int) -> NDArray[Any]:
        out = np.zeros((stop - start, *self.shape[1:]), dtype=self.dtype)
        for part, low, high in _overlaps(self._starts, self._lengths, start, stop):
            first = self._starts[part] - start
            out[first + low : first + high] = self._parts[part].read(low, high)
        return out

    def advise(self, start: int, stop: int, advice: int) -> None:
        for part, low, high in _overlaps(self._starts, self._lengths, start, stop):
            self._parts[part].advise(low, high, advice)


Rows: TypeAlias = ContiguousRows | ChunkRows | ZarrRows | JoinedRows


def _num_maps(parts: Sequence[ChunkFiles]) -> int:
    return sum(len(part.files) + 1 for part in parts)  # one a file, and the hole after each part


def _overlaps(starts: Sequence[int], lengths: Sequence[int], start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """The parts between two positions: which, and from which to which of its rows."""
    for part, (first, length) in enumerate(zip(starts, lengths, strict=True)):
        low, high = max(start - first, 0), min(stop - first, length)
        if low < high:
            yield part, low, high
