"""Reading a store: what it holds, and its tokens as arrays.

The decision taken here: the journal is believed, not the absence of errors. zarr reads a missing chunk as
zeros without a word; here a store opens only if every chunk of every complete array is in the journal and on
the disk with its right size.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from .errors import (
    DamagedStoreError,
    IncompleteStoreError,
    MissingArrayError,
    SpecError,
    SpecMismatchError,
)
from .header import Header, read_header
from .journal import BatchNotes, Journal, read_journal
from .layout import (
    CHECKSUM_BYTES,
    LABELS,
    SAMPLE_ID_BYTES,
    SAMPLE_ID_OFFSETS,
    ChunkedArray,
    content_hash_array,
    static_array,
    token_array,
)
from .mapping import ChunkFiles, ChunkRows, Rows, ZarrRows, map_rows, open_rows
from .spec import ArraySpec, CacheSpec, natural_order
from .verify import Damage, chunk_damage, chunk_problem, size_problem


class TokenArray:
    """The tokens of one level and kind, ``[N, D]`` or ``[N, T, D]``.

    Args:
        name: for error messages.
        rows: how the rows are reached.
        logical_dtype: what the bits mean; ``bfloat16`` is stored as uint16.
    """

    def __init__(self, name: str, rows: Rows, logical_dtype: str) -> None:
        self.name = name
        self._rows = rows
        self.logical_dtype = logical_dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self._rows.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._rows.dtype

    @property
    def contiguous(self) -> NDArray[Any] | None:
        """All rows as one ndarray over the files, or None where this system or layout has none. Writing to it changes no file."""
        return self._rows.contiguous

    def take(self, rows: NDArray[np.int64], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Gather rows in the order given; repeats are allowed.

        Args:
            rows: ``[n]`` integers within ``[0, N)``.
            out: ``[n, *row_shape]`` to fill; a new one each batch costs five times the gather itself.

        Returns:
            `out`, or a new array.

        Raises:
            SpecError: rows out of range, or an `out` of another shape or dtype.
        """
        rows = np.asarray(rows, dtype=np.int64)
        shape = (len(rows), *self.shape[1:])
        if out is None:
            out = np.empty(shape, dtype=self.dtype)
        elif out.shape != shape or out.dtype != self.dtype:
            raise SpecError(
                where=f"{self.name} take(out=)",
                expected=f"{self.dtype} {shape}",
                got=f"{out.dtype} {out.shape}",
                todo="Pass a buffer made for this batch size.",
            )
        if len(rows):
            self._check_range(int(rows.min()), int(rows.max()) + 1)
            self._rows.gather(rows, out)
        return out

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows start to stop, a view where the array is contiguous.

        Raises:
            SpecError: not within ``0 <= start <= stop <= N``.
        """
        self._check_range(start, stop)
        return self._rows.read(start, stop)

    def _check_range(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.shape[0]:
            raise SpecError(
                where=self.name,
                expected=f"rows within 0 to {self.shape[0]}",
                got=f"{start} to {stop}",
                todo="Rows are counted from 0 over the whole split, skipped ones included.",
            )


class TokenCache:
    """A store that was found whole; made by `TokenCache.open`."""

    def __init__(self, path: Path, header: Header, journal: Journal, *, mapped: bool) -> None:
        self.path = path
        self.spec = header.spec
        self._header = header
        self._journal = journal
        self._mapped = mapped
        self.arrays: dict[tuple[str, str], ArraySpec] = {(a.level, a.kind): a for a in header.complete_arrays}
        self.notes: BatchNotes = journal.notes(array.name for array in header.complete_arrays)
        self.labels: NDArray[Any] = self._static(LABELS).copy()
        self.sample_ids: Sequence[str] = SampleIds(
            self._static(SAMPLE_ID_BYTES), self._static(SAMPLE_ID_OFFSETS)
        )

    @classmethod
    def open(cls, path: str | Path, spec: CacheSpec | None = None, *, mapped: bool = True) -> TokenCache:
        """Open a store for reading. Arrays that are still being added are not shown.

        Args:
            path: the store.
            spec: what it must hold; None takes whatever it does.
            mapped: False reads through zarr, for comparison.

        Raises:
            StoreMissingError, NotAStoreError: there is none.
            SpecMismatchError: it holds tokens of something else.
            IncompleteStoreError: no array of it is complete yet.
            DamagedStoreError: a file is missing or of another size, or labels or ids were altered.
        """
        store = Path(path)
        header = read_header(store)
        if spec is not None and (differences := spec.difference(header.spec)):
            raise SpecMismatchError(
                where=str(store),
                differences=differences,
                todo="Run `layerbank extract` for what you want, or open the store without a spec to take what it has.",
            )
        journal = read_journal(store)
        if not header.complete_arrays:
            raise IncompleteStoreError(
                where=str(store),
                expected="a complete store",
                got=f"{len(journal.entries)} of {header.hash_grid.num_blocks} blocks",
                todo="Run the same `layerbank extract` again: it goes on where it stopped.",
            )
        _refuse(store, list(_quick_damage(store, header, journal)))
        return cls(store, header, journal, mapped=mapped)

    @property
    def num_rows(self) -> int:
        return self.spec.num_rows

    @property
    def attributes(self) -> dict[str, Any]:
        """What the caller of the writer recorded at creation."""
        return dict(self._header.attributes)

    @property
    def versions(self) -> dict[str, str]:
        """Library versions at creation."""
        return dict(self._header.versions)

    @property
    def batch_size(self) -> int:
        """Rows a batch when the tokens were computed."""
        return self._header.batch_size

    @property
    def block_rows(self) -> int:
        """Rows a block: what lies together on the disk; see `order.chunk_shuffle`."""
        return self._header.block_rows

    @property
    def levels(self) -> list[str]:
        """Levels by depth."""
        return list(dict.fromkeys(level for level, _ in self.arrays))

    @property
    def kinds(self) -> list[str]:
        """Kinds by name, of any level."""
        return sorted({kind for _, kind in self.arrays}, key=natural_order)

    @property
    def skipped(self) -> dict[int, str]:
        """Row -> reason, of rows without usable tokens."""
        return dict(self.notes.skipped)

    @property
    def rows(self) -> NDArray[np.int64]:
        """The usable rows: all but the skipped ones."""
        return np.setdiff1d(
            np.arange(self.num_rows, dtype=np.int64), np.array([*self.skipped], dtype=np.int64)
        )

    @property
    def content_hashes(self) -> NDArray[np.uint64]:
        """``[N]``, of the encoded images."""
        return ChunkRows(_chunk_files(self.path, content_hash_array(self._header))).read(0, self.num_rows)

    def tokens(self, level: str, kind: str) -> TokenArray:
        """The tokens of one level and kind.

        Raises:
            MissingArrayError: the store has no such array, or not completely.
            DamagedStoreError: a chunk file is not the one in the journal.
        """
        if (level, kind) not in self.arrays:
            raise MissingArrayError(
                where=str(self.path),
                expected=f"tokens of level {level!r} and kind {kind!r}",
                got=f"levels {', '.join(self.levels)} and kinds {', '.join(self.kinds)}",
                todo=f"Add it with `layerbank extract --levels {level} --kinds {kind}`; what is there is kept.",
            )
        array = token_array(self._header, self.arrays[level, kind].name)
        _refuse(self.path, list(_foreign_chunks(self.path, array, self._journal)))
        rows = map_rows(_chunk_files(self.path, array)) if self._mapped else ZarrRows(self.path / array.name)
        return TokenArray(array.name, rows, self.spec.storage_dtype)

    def _static(self, name: str) -> NDArray[Any]:
        array = static_array(self._header, name)
        rows = map_rows(_chunk_files(self.path, array))
        return rows.read(0, rows.shape[0])


class SampleIds(Sequence[str]):
    """Sample ids over mapped memory: UTF-8 bytes one after the other, and N + 1 borders."""

    def __init__(self, data: NDArray[np.uint8], offsets: NDArray[np.int64]) -> None:
        self._data = data
        self._offsets = offsets

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = range(len(self))[index]  # negative indices and IndexError as everywhere
        return (
            self._data[self._offsets[row] : self._offsets[row + 1]]
            .tobytes()
            .decode("utf-8", "surrogateescape")
        )


def open_array(path: str | Path) -> TokenArray:
    """One Zarr array of any store, ours or not: mapped if its chunks are plain, else through zarr."""
    rows = open_rows(Path(path))
    return TokenArray(str(path), rows, rows.dtype.name)


def _chunk_files(store: Path, array: ChunkedArray) -> ChunkFiles:
    shape = (array.grid.num_rows, *array.row_shape)
    return ChunkFiles(tuple(array.files(store)), shape, array.grid.chunk_rows, array.dtype)


def _quick_damage(store: Path, header: Header, journal: Journal) -> Iterator[Damage]:
    """What can be seen without reading tokens: one listing a folder."""
    for name, entry in header.static.items():
        array = static_array(header, name)
        if problem := chunk_problem(store, array, 0, entry.crc32c):
            yield chunk_damage(array, 0, problem)
    arrays = [content_hash_array(header), *(token_array(header, a.name) for a in header.complete_arrays)]
    for array in arrays:
        sizes = _file_sizes(store / array.name)
        for chunk in range(array.grid.num_chunks):
            size_bytes = sizes.get(array.file_name(chunk))
            problem = "missing" if size_bytes is None else size_problem(array, size_bytes)
            if problem is None and journal.checksum(array.name, chunk, array.grid) is None:
                problem = "not in the journal"
            if problem is not None:
                yield chunk_damage(array, chunk, problem)


def _foreign_chunks(store: Path, array: ChunkedArray, journal: Journal) -> Iterator[Damage]:
    """Chunk files whose own checksum is not the journal's: the data are not read, but a file of another store is noticed."""
    for chunk in range(array.grid.num_chunks):
        with open(array.file(store, chunk), "rb") as file:
            file.seek(array.chunk_data_bytes)
            kept = int.from_bytes(file.read(CHECKSUM_BYTES), "little")
        if f"{kept:08x}" != journal.checksum(array.name, chunk, array.grid):
            yield chunk_damage(array, chunk, "altered")


def _file_sizes(folder: Path) -> Mapping[str, int]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry.stat().st_size for entry in entries}
    except OSError:
        return {}


def _refuse(store: Path, damages: list[Damage]) -> None:
    if damages:
        more = f" and {len(damages) - 3} more" if len(damages) > 3 else ""
        raise DamagedStoreError(
            where=str(store),
            expected="every chunk as it was written",
            got="; ".join(str(damage) for damage in damages[:3]) + more,
            todo=f"`layerbank cache verify {store}` reads and names everything damaged, `layerbank cache repair {store}` drops it, "
            "and the same `layerbank extract` again computes those rows anew.",
        )
