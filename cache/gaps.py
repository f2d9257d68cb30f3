"""The rows that no store of a model holds, and the stores to write them to.

The decision taken here: a row is computed at most once. What an unfinished store still lacks is written to that store, provided
that all of it is among the rows at hand; so an interrupted run goes on where it was, whatever else is in the cache by then. All
other rows go to one new store, which holds them and no others.

Knows nothing of images: the caller says which of its rows are wanted, and in which order they are written.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .header import FORMAT_VERSION
from .model_stores import ModelStores, WantedRows
from .reader import ArrayKey, StoreFiles
from .rows import MISSING, RowSet, find_keys
from .spec import StoreSpec

NOWHERE = -1


@dataclass(frozen=True, kw_only=True, eq=False)
class Gap:
    """A store to make or to go on with.

    Attributes:
        path: the store.
        rows: all its rows, in order.
        wanted: ``[n]`` int64, for each of them the number of the wanted row; -1 for rows that need not be computed.
        files: the store as it is; None for a new one.
    """

    path: Path
    rows: RowSet
    wanted: NDArray[np.int64]
    files: StoreFiles | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Gaps:
    """What is missing of some wanted rows.

    Attributes:
        num_found: wanted rows that are in some store; equal rows count each.
        num_skipped: those of them whose tokens are not usable, since the image could not be decoded.
        num_missing: wanted rows that are in none.
        num_unreadable: wanted rows without a hash.
        gaps: the stores to write them to.
        unfinished: stores that have everything, whose writer ended before it marked them complete.
    """

    num_found: int
    num_skipped: int
    num_missing: int
    num_unreadable: int
    gaps: tuple[Gap, ...]
    unfinished: tuple[Gap, ...] = ()


def find_gaps(
    stores: ModelStores,
    wanted: WantedRows,
    arrays: Collection[ArrayKey],
    *,
    order: NDArray[np.int64],
    name: str,
    leave_out: Collection[Path] = (),
    compute_skipped: bool = False,
) -> Gaps:
    """Find the rows for which some array is missing, and where to write them.

    Args:
        stores: the stores of the model.
        wanted: n rows.
        arrays: (tap, level, kind) of the arrays that each row must have.
        order: ``[n]`` int64, the order in which rows are written to a new store.
        name: name of the data, for the path of a new store.
        leave_out: stores that are taken as not there: they are about to be made anew.
        compute_skipped: whether rows count as missing whose image could not be decoded when they were written.
    """
    keys = wanted.rows.keys
    unreadable = wanted.rows.hashes == MISSING
    found = stores.find(wanted, arrays, leave_out=leave_out)
    missing = (found.store < 0) & ~unreadable
    if compute_skipped:
        missing |= found.skipped
    left = np.unique(keys[missing])
    gaps: list[Gap] = []
    unfinished: list[Gap] = []
    for files in stores.stores:
        if files.path in leave_out:
            continue
        gap, lacking = gap_of(files, wanted, arrays)
        if gap is None:
            continue
        if not len(lacking):
            unfinished += [gap] if (gap.wanted != NOWHERE).any() else []
        elif np.isin(lacking, left).any():
            gaps.append(gap)
            left = np.setdiff1d(left, lacking)
    if len(left):
        taken = {files.path for files in stores.stores} - set(leave_out)
        gaps.append(_new_store(stores, wanted, order[np.isin(keys[order], left)], name, taken))
    return Gaps(
        num_found=int((~missing & ~unreadable).sum()),
        num_skipped=int((found.skipped & ~missing).sum()),
        num_missing=int(missing.sum()),
        num_unreadable=int(unreadable.sum()),
        gaps=tuple(gaps),
        unfinished=tuple(unfinished),
    )


def gap_of(
    files: StoreFiles, wanted: WantedRows, arrays: Collection[ArrayKey]
) -> tuple[Gap | None, NDArray[np.uint64]]:
    """What a store lacks, if all of it is among the wanted rows.

    Returns:
        the gap, None where the store is complete or cannot be completed; and the keys of the rows of the row blocks that lack an
        array: none where only the mark is missing that the store is complete.
    """
    nothing = np.zeros(0, dtype=np.uint64)
    rule1_differs = files.header.spec.hash_rule == 1 and wanted.rule1_hashes is not None
    if files.header.format != FORMAT_VERSION or rule1_differs:
        return None, nothing
    names = [files.arrays[array] for array in arrays if array in files.arrays]
    blocks = files.committed(names) if len(names) == len(arrays) else np.zeros(_num_blocks(files), dtype=np.bool_)
    is_lacking = files.rows_of(~blocks)
    if blocks.all() and all(files.header.arrays[name].complete for name in names):
        return None, nothing
    gap = store_gap(files, wanted)
    if (gap.wanted[is_lacking] == NOWHERE).any():
        return None, nothing
    return gap, files.rows.keys[is_lacking]


def store_gap(files: StoreFiles, wanted: WantedRows) -> Gap:
    """All rows of a store as a gap, also those that are not among the wanted rows."""
    number = find_keys(files.rows.keys, wanted.keys(files.header.spec.hash_rule))
    return Gap(path=files.path, rows=files.rows, wanted=number, files=files)


def _num_blocks(files: StoreFiles) -> int:
    return files.header.block_grid.num_blocks


def _new_store(
    stores: ModelStores, wanted: WantedRows, chosen: NDArray[np.int64], name: str, taken: Collection[Path]
) -> Gap:
    """A store of the chosen rows, each once, at a place of its own: where all rows of a store were skipped, that is taken."""
    _, first = np.unique(wanted.rows.keys[chosen], return_index=True)
    chosen = chosen[np.sort(first)]
    rows = wanted.rows.select(chosen)
    paths = (spec.path(stores.root) for spec in StoreSpec.of_rows(stores.model, rows, name).numbered())
    path = next(path for path in paths if path not in taken)
    return Gap(path=path, rows=rows, wanted=chosen, files=None)


def ids_of(gap: Gap, ids: Sequence[str]) -> Sequence[str]:
    """The names of the rows of a gap's store: those of the wanted rows, or those that the store has.

    Damaged names are not taken, since they would get a checksum that holds: a row that is not wanted is named by its number then.
    """
    are_wanted = (gap.wanted != NOWHERE).all()
    if gap.files is not None and not are_wanted and gap.files.has_sound_ids:
        return gap.files.sample_ids
    return [f"row {row}" if number == NOWHERE else ids[number] for row, number in enumerate(gap.wanted.tolist())]
