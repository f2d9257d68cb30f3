"""The stores of a merge seen as one: which rows and arrays the new store gets, and where each of its rows is read.

Opens files for reading only.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..format import token_array
from ..journal import BatchNotes
from ..mapping import join_rows, part_starts
from ..model_stores import array_names
from ..reader import NUM_VIEWS, ArrayKey, StoreFiles, chunk_files
from ..rows import MISSING, RowSet, find_keys
from ..spec import ArraySpec
from ..token_array import TokenArray
from ..writing.staging import Batch
from .format1_content import FINGERPRINT

MERGED_FROM = "merged_from"  # attribute of a merged store: the stores, by `names_of`


class Sources:
    """The stores to merge, and where each row of the new one comes from.

    Attributes:
        parts: the stores, in the order given.
        arrays: (tap, level, kind) -> spec of the arrays that all of them have.
        rows: the rows of the new store.
        part, row: ``[N]`` int64, the store that each row is read from and the row there.
        num_found: rows of all stores together.
    """

    def __init__(self, parts: Sequence[StoreFiles]) -> None:
        self.parts = parts
        self.arrays = _common_arrays(parts)
        found = [_usable_rows(part, self.arrays) for part in parts] if self.arrays else []
        columns = [np.concatenate(column) for column in zip(*found, strict=True)] or [np.zeros(0, np.int64)] * 4
        hashes, views, skipped, row = columns
        part = np.repeat(np.arange(len(found)), [len(rows) for *_, rows in found])
        order = np.lexsort((part, skipped, views, hashes))  # of equal rows a usable one, then the first store's
        hashes, views, part, row = hashes[order], views[order], part[order], row[order]
        is_first = np.ones(len(order), dtype=np.bool_)
        is_first[1:] = (hashes[1:] != hashes[:-1]) | (views[1:] != views[:-1])
        specs = [part.header.spec for part in parts]
        view_rule = max(spec.view_rule for spec in specs)
        self.rows = RowSet(
            hashes=hashes[is_first], views=views[is_first], view_rule=view_rule, hash_rule=specs[0].hash_rule
        )
        self.part, self.row, self.num_found = part[is_first], row[is_first], len(order)

    @property
    def names(self) -> list[str]:
        """The paths of the arrays in the new store."""
        return [array.name for array in self.arrays.values()]

    @cached_property
    def positions(self) -> NDArray[np.int64]:
        """``[N]`` int64, place of each row in the arrays that `tokens` gives."""
        starts = part_starts([part.header.spec.num_rows for part in self.parts])
        positions: NDArray[np.int64] = np.array(starts)[self.part] + self.row
        return positions

    @cached_property
    def skipped(self) -> dict[int, str]:
        """Row -> reason."""
        found: dict[int, str] = {}
        for number, part in enumerate(self.parts):
            for row in np.flatnonzero((self.part == number) & np.isin(self.row, [*part.skipped])).tolist():
                found[row] = part.skipped[int(self.row[row])]
        return dict(sorted(found.items()))

    def tokens(self, key: ArrayKey) -> TokenArray:
        """An array over all stores, by position; row blocks that are not committed are holes."""
        files = []
        for part in self.parts:
            array = token_array(part.header, part.arrays[key])
            known = chunk_files(part.path, array)
            has = [part.journal.checksum(array.name, chunk, array.grid) for chunk in range(array.grid.num_chunks)]
            files.append(
                replace(known, files=tuple(file if one else None for file, one in zip(known.files, has, strict=True)))
            )
        logical_dtype = self.parts[0].header.spec.model.dtype_of(key[-1])
        return TokenArray("/".join(filter(None, key)), join_rows(files), logical_dtype)

    def column(self, values: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """The values of the rows of the new store, from those of each merged store."""
        out = np.empty((len(self.rows), *values[0].shape[1:]), dtype=values[0].dtype)
        for number, one in enumerate(values):
            out[self.part == number] = one[self.row[self.part == number]]
        return out

    def sample_ids(self) -> list[str]:
        known = [part.sample_ids for part in self.parts]
        return [known[part][row] for part, row in zip(self.part.tolist(), self.row.tolist(), strict=True)]

    def sizes(self) -> NDArray[np.int64] | None:
        """None unless all stores recorded them and are of the same data: equal names in other data are other images."""
        sizes = [part.sizes for part in self.parts]
        num_names = len({part.header.spec.name for part in self.parts})
        return (
            None
            if num_names > 1 or any(one is None for one in sizes)
            else self.column([one for one in sizes if one is not None])
        )

    def notes(self, batch: Batch) -> BatchNotes:
        """Reasons of skipped rows; counts of values are known by store only, and their sums stand in the first batch."""
        skipped = {row: self.skipped[row] for row in range(batch.start, batch.stop) if row in self.skipped}
        counts: dict[str, Counter[str]] = {"saturated": Counter(), "nonfinite": Counter()}
        for part in self.parts if batch.start == 0 else ():
            notes = part.journal.notes(part.header.arrays)
            for field, known in (("saturated", notes.saturated), ("nonfinite", notes.nonfinite)):
                counts[field].update({a.name: known.get(part.arrays[key], 0) for key, a in self.arrays.items()})
        positive = {field: {name: n for name, n in count.items() if n} for field, count in counts.items()}
        return BatchNotes(skipped=skipped, **positive).of_arrays(array.name for array in batch.arrays)

    def parity(self) -> dict[str, Mapping[str, Any]]:
        """What the first store that has it says of each array."""
        known: dict[str, Mapping[str, Any]] = {}
        for part in self.parts:
            for key, array in self.arrays.items():
                if parity := part.header.parity.get(part.arrays[key]):
                    known.setdefault(array.name, parity)
        return known

    def attributes(self) -> dict[str, Any]:
        """What all stores recorded alike, and their fingerprints."""
        first, *others = [part.header.attributes for part in self.parts]
        own = (NUM_VIEWS, FINGERPRINT, MERGED_FROM)
        same = {
            name: value
            for name, value in first.items()
            if name not in own and all(other.get(name) == value for other in others)
        }
        return {**same, MERGED_FROM: names_of([part.path for part in self.parts])}


def names_of(stores: Sequence[Path]) -> list[str]:
    """Name and folder of each store, sorted: the digests of rows and model are in them."""
    return sorted("/".join(Path(os.path.abspath(store)).parts[-2:]) for store in stores)


def _common_arrays(parts: Sequence[StoreFiles]) -> dict[ArrayKey, ArraySpec]:
    """The arrays that each store has in all of its row blocks in which it has any."""
    common: dict[ArrayKey, ArraySpec] = {}
    for number, part in enumerate(parts):
        blocks = {key: part.committed(array_names(part, [key]) or []) for key in part.arrays}
        any_block = np.logical_or.reduce([*blocks.values()]) if blocks else np.zeros(0, np.bool_)
        has = {}
        for key, committed in blocks.items():
            spec = part.header.arrays[part.arrays[key]].spec
            if (committed | ~any_block).all():
                has[key] = ArraySpec(level=spec.level, kind=spec.kind, row_shape=spec.row_shape, tap=spec.tap)
        common = has if number == 0 else {key: spec for key, spec in common.items() if has.get(key) == spec}
    return common


def _usable_rows(part: StoreFiles, keys: Collection[ArrayKey]) -> tuple[NDArray[Any], ...]:
    """Hash, view, whether it was skipped, and number, of the committed rows of a store."""
    rows, skipped = committed_rows(part, keys)
    views = np.zeros(len(part.rows), np.uint16) if part.rows.views is None else part.rows.views
    return part.rows.hashes[rows], views[rows], skipped, rows


def committed_rows(part: StoreFiles, keys: Collection[ArrayKey]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """``[n]`` the rows of a store whose row blocks are committed for all these arrays, and whether each was skipped."""
    blocks = part.committed(array_names(part, keys) or [])
    rows = np.flatnonzero(part.rows_of(blocks) & (part.rows.hashes != MISSING))
    return rows, np.isin(rows, [*part.skipped])


def shared_rows(rows: RowSet, part: StoreFiles) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows of a store that show the same as one of `rows`: ``[n]`` places in `rows`, ``[n]`` rows of the store."""
    places = find_keys(part.rows.keys, rows.keys)
    known = np.flatnonzero(places >= 0)
    return places[known], known
