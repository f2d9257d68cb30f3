"""Reading a store: what it holds, and its tokens as arrays.

The decision taken here: the journal counts, not the absence of errors. zarr reads a missing chunk as zeros without a
warning; here a store opens only if every chunk of every complete array is in the journal and on the disk with its right
size.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from .errors import DamagedStoreError, IncompleteStoreError, MissingArrayError, SpecMismatchError
from .format import (
    LABELS,
    SAMPLE_ID_BYTES,
    SAMPLE_ID_OFFSETS,
    ChunkedArray,
    content_hash_array,
    static_array,
    token_array,
)
from .header import Header, read_header
from .journal import BatchNotes, Journal, read_journal
from .mapping import ChunkFiles, ChunkRows, ZarrRows, map_rows
from .spec import ArraySpec, CacheSpec, natural_order
from .token_array import TokenArray
from .verify import Damage, quick_damage, swapped_chunks

NUM_VIEWS = "num_views"
"""Attribute of a store with several rows per image."""


class TokenCache:
    """A store whose completeness was checked; made by `TokenCache.open`.

    Attributes:
        path: the store.
        spec: its identity and labels.
        arrays: (level, kind) -> its complete token arrays, by depth of level, then kind.
        num_rows: N, skipped rows included.
        block_rows: rows per row block: they lie together on the disk, see `row_order.chunk_shuffle`.
        batch_size: rows per batch when the tokens were computed.
        attributes: what the caller of the writer recorded at creation.
        versions: library -> version, at creation.
        num_views: augmented views per image in the store, beside the centre view: an image has 1 + num_views rows.
        notes: notes of all rows.
        skipped: row -> reason, rows without usable tokens.
        labels: ``[N]`` or ``[N, K]``, a copy.
        sample_ids: N texts.
    """

    def __init__(
        self, path: Path, header: Header, journal: Journal, *, mapped: bool, num_views: int | None = None
    ) -> None:
        self.path = path
        self.spec = header.spec
        self.arrays: dict[tuple[str, str], ArraySpec] = {(a.level, a.kind): a for a in header.complete_arrays}
        self.num_rows = header.spec.num_rows
        self.block_rows = header.block_rows
        self.batch_size = header.batch_size
        self.attributes: dict[str, Any] = dict(header.attributes)
        self.versions = dict(header.versions)
        self.num_views = int(header.attributes.get(NUM_VIEWS, 0))
        self.notes: BatchNotes = journal.notes(array.name for array in header.complete_arrays)
        self.skipped: dict[int, str] = dict(self.notes.skipped)
        self._header = header
        self._journal = journal
        self._mapped = mapped
        self._offered_views = self.num_views if num_views is None else num_views
        self._tokens: dict[tuple[str, str], TokenArray] = {}
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
            spec: its expected identity; None accepts any.
            mapped: False reads through zarr, for comparison.
            num_views: views per image to offer beside the centre view; 0 for that alone, None for all.

        Raises:
            StoreMissingError, NotAStoreError: there is no store.
            SpecMismatchError: the store has another identity.
            IncompleteStoreError: no array of it is complete yet.
            DamagedStoreError: a file is missing or of another size, or labels or ids were altered.
        """
        store = Path(path)
        header = read_header(store)
        if spec is not None and (differences := spec.difference(header.spec)):
            raise SpecMismatchError("cache.other_identity_to_read", store=store, differences=differences)
        journal = read_journal(store)
        if not header.complete_arrays:
            num_blocks = header.hash_grid.num_blocks
            raise IncompleteStoreError(
                "cache.store_incomplete", store=store, num_blocks=num_blocks, num_done=len(journal.entries)
            )
        _require_sound(store, list(quick_damage(store, header, journal)))
        return cls(store, header, journal, mapped=mapped, num_views=num_views)

    @property
    def parity(self) -> dict[str, dict[str, Any]]:
        """Array name -> how far its first rows are from a float32 run; empty where it was not measured."""
        complete = {array.name for array in self.arrays.values()}
        return {name: dict(one) for name, one in self._header.parity.items() if name in complete}

    @property
    def levels(self) -> list[str]:
        return list(dict.fromkeys(level for level, _ in self.arrays))

    @property
    def kinds(self) -> list[str]:
        return sorted({kind for _, kind in self.arrays}, key=natural_order)

    @property
    def rows(self) -> NDArray[np.int64]:
        """The usable rows, ascending: not the skipped ones, and not the views beyond those that the store was opened with."""
        rows = np.setdiff1d(np.arange(self.num_rows, dtype=np.int64), np.array([*self.skipped], dtype=np.int64))
        return rows[rows % (1 + self.num_views) <= self._offered_views]

    @property
    def images(self) -> NDArray[np.int64]:
        """The image number of each usable row; the first row of an image is its centre view."""
        return self.rows // (1 + self.num_views)

    @property
    def content_hashes(self) -> NDArray[np.uint64]:
        """``[N]``, hashes of the encoded images."""
        return ChunkRows(_chunk_files(self.path, content_hash_array(self._header))).read(0, self.num_rows)

    def tokens(self, level: str, kind: str) -> TokenArray:
        """The tokens of one level and kind.

        Raises:
            MissingArrayError: the store has no such array, or not completely.
            DamagedStoreError: a chunk file is not the one in the journal.
        """
        if (level, kind) not in self.arrays:
            raise MissingArrayError(
                "cache.array_missing",
                store=self.path,
                level=level,
                kind=kind,
                levels=", ".join(self.levels),
                kinds=", ".join(self.kinds),
            )
        if (level, kind) not in self._tokens:
            name = self.arrays[level, kind].name
            array = token_array(self._header, name)
            _require_sound(self.path, list(swapped_chunks(self.path, array, self._journal)))
            rows = map_rows(_chunk_files(self.path, array)) if self._mapped else ZarrRows(self.path / name)
            self._tokens[level, kind] = TokenArray(name, rows, self.spec.dtype_of(kind))
        return self._tokens[level, kind]

    def _static(self, name: str) -> NDArray[Any]:
        array = static_array(self._header, name)
        return map_rows(_chunk_files(self.path, array)).read(0, array.grid.num_rows)


def _chunk_files(store: Path, array: ChunkedArray) -> ChunkFiles:
    shape = (array.grid.num_rows, *array.row_shape)
    return ChunkFiles(tuple(array.files(store)), shape, array.grid.chunk_rows, array.dtype)


def _require_sound(store: Path, damages: list[Damage]) -> None:
    if damages:
        more = f" and {len(damages) - 3} more" if len(damages) > 3 else ""
        raise DamagedStoreError("cache.store_damaged", store=store, damages="; ".join(map(str, damages[:3])) + more)


class SampleIds(Sequence[str]):
    """Sample ids over mapped memory: UTF-8 bytes one after the other, and N + 1 offsets."""

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
        return self._data[self._offsets[row] : self._offsets[row + 1]].tobytes().decode("utf-8", "surrogateescape")
