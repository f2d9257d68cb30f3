"""The tokens of some rows of a model, wherever they lie: in one store or in several.

The decision taken here: nothing is copied. The chunk files of an array in all stores that hold a row are mapped into one range of
addresses, so that a row has one position in it, whatever its store, and gathering costs what it costs for one store. Positions
are neither ascending nor distinct: two equal images share one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .damage import quick_damage, require_sound, swapped_chunks
from .errors import MissingArrayError, MissingRowsError
from .format import token_array
from .mapping import join_rows, part_starts
from .model_stores import Location, ModelStores, WantedRows, array_key, array_names
from .reader import StoreFiles, chunk_files
from .spec import ArraySpec, ModelSpec
from .token_array import TokenArray

UNREADABLE = "the image could not be read"


class TokenView:
    """Rows of one model; made by `TokenView.open`.

    Attributes:
        model: what computed the tokens.
        tap: the tap of the arrays.
        arrays: (level, kind) -> spec of the arrays that every row has.
        positions: ``[N]`` int64, place of each row in the arrays that `tokens` gives; -1 for skipped rows.
        skipped: row -> reason, rows without usable tokens.
        stores: the stores that are read, by path.
    """

    def __init__(
        self, found: ModelStores, tap: str, arrays: Sequence[tuple[str, str]], wanted: WantedRows, name: str
    ) -> None:
        self.model, self.tap = found.model, tap
        keys = [array_key(tap, *array) for array in arrays]
        location = found.find(wanted, keys)
        unreadable = wanted.rows.hashes == 0
        if num_missing := int(((location.store < 0) & ~unreadable).sum()):
            listed = ", ".join("/".join(array) for array in arrays[:6]) + (", ..." if len(arrays) > 6 else "")
            values = {"num_missing": num_missing, "num_rows": len(wanted), "arrays": listed, "model": found.model.name}
            raise MissingRowsError("cache.rows_missing", name=name, root=found.root, **values)
        self._keys = dict(zip(arrays, keys, strict=True))
        self._parts = [
            part
            for number in np.unique(location.store[location.store >= 0]).tolist()
            for part in _parts_of(found.stores[number], keys, number)
        ]
        self.stores = tuple(dict.fromkeys(part.files.path for part in self._parts))
        self.positions = _positions(self._parts, location)
        self.skipped = dict.fromkeys(np.flatnonzero(unreadable).tolist(), UNREADABLE)
        for row in np.flatnonzero(location.skipped).tolist():
            self.skipped[row] = found.stores[location.store[row]].skipped[int(location.row[row])]
        self.positions[[*self.skipped]] = -1
        self.arrays: dict[tuple[str, str], ArraySpec] = {}
        if self._parts:
            first = self._parts[0].files
            self.arrays = {a: first.header.arrays[first.arrays[key]].spec for a, key in self._keys.items()}
        self._tokens: dict[tuple[str, str], TokenArray] = {}

    @classmethod
    def open(
        cls,
        root: str | Path,
        model: ModelSpec,
        wanted: WantedRows,
        arrays: Sequence[tuple[str, str]],
        *,
        tap: str = "norm2",
        name: str = "the images",
        stores: ModelStores | None = None,
    ) -> TokenView:
        """Find rows in the stores of a model.

        Args:
            root: the cache folder.
            model: what computed the tokens.
            wanted: N rows.
            arrays: (level, kind) of the arrays that each row must have.
            tap: the tap of these arrays.
            name: name of the data, for messages.
            stores: the stores of the model, if they were read already.

        Raises:
            MissingRowsError: some rows are in no store with all of these arrays.
            DamagedStoreError: a file of a store that is read is missing or of another size.
        """
        view = cls(stores or ModelStores(root, model), tap, list(dict.fromkeys(arrays)), wanted, name)
        for files in {part.files.path: part.files for part in view._parts}.values():
            names = array_names(files, list(view._keys.values())) or []
            require_sound(files.path, list(quick_damage(files.path, files.header, files.journal, names)))
        return view

    @property
    def num_rows(self) -> int:
        return len(self.positions)

    def tokens(self, level: str, kind: str) -> TokenArray:
        """The tokens of one level and kind, by position.

        Raises:
            MissingArrayError: the view has no such array.
            DamagedStoreError: a chunk file is not the one in the journal.
        """
        if (level, kind) not in self.arrays:
            levels, kinds = (", ".join(dict.fromkeys(array[i] for array in self.arrays)) or "none" for i in (0, 1))
            stores = ", ".join(map(str, self.stores)) or "a view without one readable image"
            raise MissingArrayError(
                "cache.array_missing", store=stores, level=level, kind=kind, levels=levels, kinds=kinds
            )
        if (level, kind) not in self._tokens:
            files = []
            for part in self._parts:
                array = token_array(part.files.header, part.files.arrays[self._keys[level, kind]])
                chunks = range(part.rows.start // array.grid.chunk_rows, -(-part.rows.stop // array.grid.chunk_rows))
                path, journal = part.files.path, part.files.journal
                require_sound(path, list(swapped_chunks(path, array, chunks, journal)))
                files.append(chunk_files(path, array, chunks))
            self._tokens[level, kind] = TokenArray(f"{level}/{kind}", join_rows(files), self.model.dtype_of(kind))
        return self._tokens[level, kind]

    def __getitem__(self, array: tuple[str, str]) -> TokenArray:
        return self.tokens(*array)


class _Part:
    """Neighbouring committed row blocks of one store."""

    def __init__(self, files: StoreFiles, number: int, rows: range) -> None:
        self.files, self.number, self.rows = files, number, rows


def _positions(parts: Sequence[_Part], location: Location) -> NDArray[np.int64]:
    """``[N]`` the position of each row, -1 for rows that no store has."""
    starts = part_starts([len(part.rows) for part in parts])
    positions = np.full(len(location.store), -1, dtype=np.int64)
    by_store: dict[int, list[tuple[_Part, int]]] = {}
    for part, start in zip(parts, starts, strict=False):  # no part has one start too
        by_store.setdefault(part.number, []).append((part, start))
    for number, of_store in by_store.items():
        here = np.flatnonzero(location.store == number)
        rows = location.row[here]
        shifts = np.array([start - part.rows.start for part, start in of_store])
        firsts = np.array([part.rows.start for part, _ in of_store])
        positions[here] = rows + shifts[np.searchsorted(firsts, rows, side="right") - 1]
    return positions


def _parts_of(files: StoreFiles, keys: Sequence[tuple[str, str, str]], number: int) -> list[_Part]:
    """The runs of row blocks in which all arrays are committed."""
    blocks, grid = files.committed(array_names(files, keys) or []), files.header.block_grid
    borders = np.flatnonzero(np.diff(np.concatenate([[False], blocks, [False]]).astype(np.int8)))
    runs = borders.reshape(-1, 2).tolist()
    return [_Part(files, number, range(grid.block(first).start, grid.block(stop - 1).stop)) for first, stop in runs]
