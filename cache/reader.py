"""Reading a store: what it holds, and its tokens as arrays.

The decision taken here: the journal is believed, not the absence of errors. zarr reads a missing chunk as
zeros without a word; here a store opens only if every chunk of every complete array is in the journal and on
the disk with its right size.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import DamagedStoreError, IncompleteStoreError, MissingArrayError, SpecMismatchError
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
from .mapping import ChunkFiles, ChunkRows, ZarrRows, map_rows
from .spec import ArraySpec, CacheSpec, natural_order
from .token_array import SampleIds, TokenArray
from .verify import Damage, chunk_damage, chunk_problem, size_problem

NUM_VIEWS = "num_views"
"""Attribute of a store with several rows an image."""


class TokenCache:
    """A store that was found whole; made by `TokenCache.open`."""

    def __init__(
        self, path: Path, header: Header, journal: Journal, *, mapped: bool, num_views: int | None = None
    ) -> None:
        self.path = path
        self.spec = header.spec
        self._header = header
        self._journal = journal
        self._mapped = mapped
        self._num_views = num_views
        self._tokens: dict[tuple[str, str], TokenArray] = {}
        self.arrays: dict[tuple[str, str], ArraySpec] = {(a.level, a.kind): a for a in header.complete_arrays}
        self.notes: BatchNotes = journal.notes(array.name for array in header.complete_arrays)
        self.labels: NDArray[Any] = self._static(LABELS).copy()
        self.sample_ids: Sequence[str] = SampleIds(self._static(SAMPLE_ID_BYTES), self._static(SAMPLE_ID_OFFSETS))

    @classmethod
    def open(
        cls,
        path: str | Path,
        spec: CacheSpec | None = None,
        *,
        mapped: bool = True,
        num_views: int | None = None,
    ) -> TokenCache:
        """Open a store for reading. Arrays that are still being added are not shown.

        Args:
            path: the store.
            spec: what it must hold; None takes whatever it does.
            mapped: False reads through zarr, for comparison.
            num_views: views of an image to offer beside the centre one: 0 for that alone, None for all that are there.

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
        return cls(store, header, journal, mapped=mapped, num_views=num_views)

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
    def parity(self) -> dict[str, dict[str, Any]]:
        """Array name -> how far its first rows are from a float32 run; empty where nobody measured it."""
        complete = {array.name for array in self.arrays.values()}
        return {name: dict(one) for name, one in self._header.parity.items() if name in complete}

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
    def num_views(self) -> int:
        """Augmented views of an image in the store, beside the centre one: rows of an image are 1 + num_views."""
        return int(self._header.attributes.get(NUM_VIEWS, 0))

    @property
    def rows(self) -> NDArray[np.int64]:
        """The usable rows, ascending: all but the skipped ones, and views beyond those that the store was opened with."""
        rows = np.setdiff1d(np.arange(self.num_rows, dtype=np.int64), np.array([*self.skipped], dtype=np.int64))
        return rows if self._num_views is None else rows[rows % (1 + self.num_views) <= self._num_views]

    @property
    def images(self) -> NDArray[np.int64]:
        """Of each usable row, the number of the image that it shows; the first row of an image is its centre view."""
        return self.rows // (1 + self.num_views)

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
        if (level, kind) not in self._tokens:
            self._tokens[level, kind] = self._open_tokens(self.arrays[level, kind].name)
        return self._tokens[level, kind]

    def _open_tokens(self, name: str) -> TokenArray:
        array = token_array(self._header, name)
        logical_dtype = self.spec.dtype_of(self._header.arrays[name].spec.kind)
        _refuse(self.path, list(_foreign_chunks(self.path, array, self._journal)))
        rows = map_rows(_chunk_files(self.path, array)) if self._mapped else ZarrRows(self.path / name)
        return TokenArray(name, rows, logical_dtype)

    def _static(self, name: str) -> NDArray[Any]:
        array = static_array(self._header, name)
        rows = map_rows(_chunk_files(self.path, array))
        return rows.read(0, rows.shape[0])


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
