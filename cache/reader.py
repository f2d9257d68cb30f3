"""Reading one store: what it holds, and its tokens as arrays.

The decision taken here: the journal counts, not the absence of errors. zarr reads a missing chunk as zeros without a
warning; here a store opens only if every chunk of every complete array is in the journal and on the disk with its right
size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from .damage import Damage, chunk_damage, quick_damage, require_sound, static_damage, swapped_chunks
from .errors import IncompleteStoreError, MissingArrayError, OldFormatError, SpecMismatchError
from .format import (
    CONTENT_HASHES,
    SAMPLE_ID_BYTES,
    SAMPLE_ID_OFFSETS,
    SIZES,
    VIEWS,
    ChunkedArray,
    block_arrays,
    static_array,
    token_array,
)
from .header import FORMAT_VERSION, Header, read_header
from .journal import BatchNotes, Journal, read_journal
from .mapping import ChunkFiles, ZarrRows, map_rows
from .rows import RowSet
from .spec import ArraySpec, StoreSpec, natural_order
from .token_array import TokenArray

# the static arrays that say which rows there are; in format 1 the ids, which at least are as many as the rows
ROW_ARRAYS = {1: (SAMPLE_ID_OFFSETS,), FORMAT_VERSION: (CONTENT_HASHES, VIEWS)}
NUM_VIEWS = "num_views"  # attribute of a store of format 1 with several rows per image
ArrayKey = tuple[str, str, str]  # tap ("" for final), level, kind


@dataclass(frozen=True)
class StoreFiles:
    """The files of a store of any format: header, journal, and the arrays that are not tokens."""

    path: Path
    header: Header
    journal: Journal

    @classmethod
    def read(cls, path: str | Path) -> StoreFiles:
        """Read header and journal.

        Raises:
            StoreMissingError, NotAStoreError, NewerStoreError, DamagedStoreError: as `read_header`.
        """
        return cls.with_header(Path(path), read_header(Path(path)))

    @classmethod
    def with_header(cls, path: Path, header: Header) -> StoreFiles:
        """Read the journal; what it says of row blocks, arrays and rows that do not exist is left out."""
        names = [array.name for array in block_arrays(header)]
        return cls(path, header, read_journal(path).of_store(names, header.block_grid))

    @cached_property
    def arrays(self) -> dict[ArrayKey, str]:
        """(tap, level, kind) -> path of every token array, complete or not."""
        return {(entry.spec.tap, entry.spec.level, entry.spec.kind): name for name, entry in self.header.arrays.items()}

    @cached_property
    def rows(self) -> RowSet:
        """The rows in order; a row of format 1 whose row block is not committed has hash 0.

        Raises:
            DamagedStoreError: hashes or views are not as they were written.
        """
        require_sound(self.path, list(static_damage(self.path, self.header, names=ROW_ARRAYS[self.header.format])))
        spec = self.header.spec
        if self.header.format > 1:
            views = self.static(VIEWS) if VIEWS in self.header.static else None
            hashes = self.static(CONTENT_HASHES)
            return RowSet(hashes=hashes, views=views, view_rule=spec.view_rule, hash_rule=spec.hash_rule)
        rows, damages = rows_of_format1(self)
        require_sound(self.path, damages)
        return rows

    @cached_property
    def skipped(self) -> dict[int, str]:
        """Row -> reason, rows without usable tokens."""
        return dict(self.journal.notes(()).skipped)

    @property
    def sample_ids(self) -> Sequence[str]:
        return SampleIds(self.static(SAMPLE_ID_BYTES), self.static(SAMPLE_ID_OFFSETS))

    @property
    def has_sound_ids(self) -> bool:
        """Whether the sample ids are as they were written; reads them."""
        return not any(static_damage(self.path, self.header, names=(SAMPLE_ID_BYTES, SAMPLE_ID_OFFSETS)))

    @property
    def sizes(self) -> NDArray[np.int64] | None:
        """``[N]`` bytes of the encoded images; None where they were not recorded."""
        return self.static(SIZES) if SIZES in self.header.static else None

    def static(self, name: str) -> NDArray[Any]:
        """An array that was written once."""
        array = static_array(self.header, name)
        return map_rows(chunk_files(self.path, array)).read(0, array.grid.num_rows)

    def committed(self, names: Sequence[str]) -> NDArray[np.bool_]:
        """``[num_blocks]``, whether all of these arrays are committed in a row block."""
        return self.journal.blocks_with(names, self.header.block_grid.num_blocks)

    def rows_of(self, blocks: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """``[N]``, whether each row lies in one of the chosen row blocks (``[num_blocks]``)."""
        rows: NDArray[np.bool_] = np.repeat(blocks, self.header.block_rows)[: self.header.spec.num_rows]
        return rows


class TokenStore:
    """A store whose completeness was checked; made by `TokenStore.open`.

    Attributes:
        path: the store.
        spec: its identity and names.
        tap: the tap whose arrays are shown, beside those of `final`.
        taps: every tap of the store.
        arrays: (level, kind) -> its complete token arrays, by depth of level, then kind.
        num_rows: N, skipped rows included.
        block_rows: rows per row block.
        batch_size: rows per batch when the tokens were computed.
        attributes: what the caller of the writer recorded at creation.
        versions: library -> version, at creation.
        notes: notes on all rows.
        skipped: row -> reason, rows without usable tokens.
        sample_ids: N texts, the names that the images had when the store was made.
    """

    def __init__(self, files: StoreFiles, tap: str | None, *, mapped: bool) -> None:
        header = files.header
        self.path = files.path
        self.spec = header.spec
        self.taps = sorted({array.tap for array in header.complete_arrays} - {""})
        self.tap = tap or ("norm2" if "norm2" in self.taps or not self.taps else self.taps[0])
        self.arrays: dict[tuple[str, str], ArraySpec] = {
            (a.level, a.kind): a for a in header.complete_arrays if a.tap in ("", self.tap)
        }
        self.num_rows = header.spec.num_rows
        self.block_rows = header.block_rows
        self.batch_size = header.batch_size
        self.attributes: dict[str, Any] = dict(header.attributes)
        self.versions = dict(header.versions)
        self.notes: BatchNotes = files.journal.notes(array.name for array in header.complete_arrays)
        self.skipped: dict[int, str] = dict(self.notes.skipped)
        self.sample_ids = files.sample_ids
        self._files, self._mapped = files, mapped
        self._tokens: dict[tuple[str, str], TokenArray] = {}

    @classmethod
    def open(
        cls, path: str | Path, spec: StoreSpec | None = None, *, tap: str | None = None, mapped: bool = True
    ) -> TokenStore:
        """Open a store for reading. Arrays that are still being added are not shown.

        Args:
            path: the store.
            spec: its expected identity; None accepts any.
            tap: whose arrays to show; None is norm2, or another where the store has no norm2.
            mapped: False reads through zarr, for comparison.

        Raises:
            StoreMissingError, NotAStoreError, NewerStoreError: there is no store that this version can read.
            SpecMismatchError: the store has another identity.
            IncompleteStoreError: no array of it is complete yet.
            DamagedStoreError: a file is missing or of another size, or hashes or ids were altered.
        """
        files = StoreFiles.read(path)
        header = files.header
        if spec is not None and (differences := spec.difference(header.spec)):
            raise SpecMismatchError("cache.other_identity_to_read", store=files.path, differences=differences)
        require_any_complete(files)
        hashes = [CONTENT_HASHES] if header.format == 1 else []
        require_sound(files.path, list(static_damage(files.path, header)))
        require_complete(files, [*hashes, *(array.name for array in header.complete_arrays)])
        return cls(files, tap, mapped=mapped)

    @property
    def rows(self) -> RowSet:
        """The image and view of each row."""
        return self._files.rows

    @property
    def parity(self) -> dict[str, dict[str, Any]]:
        """Path of an array -> how far its first rows are from a float32 run; empty where it was not measured."""
        complete = {array.name for array in self.arrays.values()}
        return {name: dict(one) for name, one in self._files.header.parity.items() if name in complete}

    @property
    def levels(self) -> list[str]:
        return list(dict.fromkeys(level for level, _ in self.arrays))

    @property
    def kinds(self) -> list[str]:
        return sorted({kind for _, kind in self.arrays}, key=natural_order)

    def tokens(self, level: str, kind: str) -> TokenArray:
        """The tokens of one level and kind, ``[N, D]`` or ``[N, T, D]``.

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
            files, name = self._files, self.arrays[level, kind].name
            array = token_array(files.header, name)
            chunks = range(array.grid.num_chunks)
            require_sound(self.path, list(swapped_chunks(self.path, array, chunks, files.journal)))
            rows = map_rows(chunk_files(self.path, array)) if self._mapped else ZarrRows(self.path / name)
            self._tokens[level, kind] = TokenArray(name, rows, self.spec.model.dtype_of(kind))
        return self._tokens[level, kind]

    def __getitem__(self, array: tuple[str, str]) -> TokenArray:
        return self.tokens(*array)


def rows_of_format1(files: StoreFiles) -> tuple[RowSet, list[Damage]]:
    """The rows of a store of format 1, and the damage of its hashes; a row without committed and sound hashes has hash 0."""
    spec, array, damages = files.header.spec, block_arrays(files.header)[0], []
    hashes = np.zeros(spec.num_rows, dtype=np.uint64)
    for block in range(array.grid.num_blocks):
        checksum = files.journal.checksum(CONTENT_HASHES, block, array.grid)
        if checksum is None and not files.header.complete_arrays:
            continue
        if problem := array.problem(files.path, block, checksum):
            damages.append(chunk_damage(array, block, problem))
            continue
        rows = array.grid.block(block)
        hashes[rows.start : rows.stop] = np.fromfile(array.file(files.path, block), "<u8", len(rows))
    num_views = files.header.attributes.get(NUM_VIEWS, 0)
    has_views = type(num_views) is int and 0 < num_views < spec.num_rows
    views = (np.arange(spec.num_rows) % (1 + num_views)).astype(np.uint16) if has_views else None
    return RowSet(hashes=hashes, views=views, view_rule=spec.view_rule, hash_rule=spec.hash_rule), damages


def require_current(store: Path, header: Header) -> Header:
    """The header, unless it has an older format, which is read and not written.

    Raises:
        OldFormatError: it has.
    """
    if header.format != FORMAT_VERSION:
        raise OldFormatError("cache.old_format", store=store, expected=FORMAT_VERSION, got=header.format)
    return header


def require_any_complete(files: StoreFiles) -> None:
    """Check that at least one array is complete.

    Raises:
        IncompleteStoreError: none is.
    """
    if not files.header.complete_arrays:
        num_blocks, num_done = files.header.block_grid.num_blocks, len(files.journal.entries)
        raise IncompleteStoreError("cache.store_incomplete", store=files.path, num_blocks=num_blocks, num_done=num_done)


def require_complete(files: StoreFiles, names: Sequence[str]) -> None:
    """Check that every chunk of these arrays is in the journal and on the disk, by name and size.

    Raises:
        DamagedStoreError: it is not.
    """
    damages = list(quick_damage(files.path, files.header, files.journal, names))
    num_blocks = files.header.block_grid.num_blocks
    for name in [] if damages else names:
        missing = np.flatnonzero(~files.journal.blocks_with([name], num_blocks)).tolist()
        if missing:
            array = next(array for array in block_arrays(files.header) if array.name == name)
            chunk = array.grid.chunks_of(missing[0]).start
            damages.append(chunk_damage(array, chunk, "not in the journal"))
    require_sound(files.path, damages)


def chunk_files(store: Path, array: ChunkedArray, chunks: range | None = None) -> ChunkFiles:
    """The chunk files of an array, or of some neighbouring chunks of it."""
    chunks = range(array.grid.num_chunks) if chunks is None else chunks
    num_rows = array.grid.chunk(chunks[-1]).stop - array.grid.chunk(chunks[0]).start
    files = tuple(array.file(store, chunk) for chunk in chunks)
    return ChunkFiles(files, (num_rows, *array.row_shape), array.grid.chunk_rows, array.dtype)


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
