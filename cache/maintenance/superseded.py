"""Stores that are not needed since another store of the model has all that is in them.

What is compared are rows by their hashes, arrays, tokens that are usable, and the values of targets; names of stores and of
images are not. Rows computed twice may differ in last bits: each store is sound, and either may be kept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np

from ..errors import CacheError
from ..header_values import COMPLETE
from ..reader import StoreFiles
from ..rows import RowSet
from ..targets import LABEL, Target, list_targets, read_target
from .format1_content import label_target
from .merge_sources import committed_rows, shared_rows


def find_superseded(paths: Iterable[Path]) -> dict[Path, Path]:
    """Of some stores those that are superseded, each with a complete store that has all that is in it and is not superseded itself.

    Stores that cannot be read, are not complete or are of another format are left out. Of two that have the same, the one with the
    smaller path is kept: views read that one.
    """
    by_model: dict[str, list[StoreFiles]] = defaultdict(list)
    for path in paths:
        with suppress(CacheError, OSError):
            files = StoreFiles.read(path)
            if files.header.format > 1 and files.header.state == COMPLETE:
                by_model[files.header.spec.model.digest].append(files)
    found = {}
    for stores in by_model.values():
        kept = sorted(stores, key=lambda one: (-one.header.spec.num_rows, one.path))
        for store in reversed(list(kept)):
            with suppress(CacheError):  # a damaged store is repaired first
                if by := next((one for one in kept if one is not store and supersedes(one, store)), None):
                    found[store.path] = by.path
                    kept.remove(store)
    return found


def supersedes(whole: StoreFiles, part: StoreFiles) -> bool:
    """Whether a store has all that is in another store of its model.

    Raises:
        DamagedStoreError: hashes, views or targets of one of them are not as they were written.
    """
    one, other = whole.header.spec, part.header.spec
    if one.hash_rule != other.hash_rule or (other.view_rule and one.view_rule != other.view_rule):
        return False
    return bool(np.isin(part.rows.keys, whole.rows.keys).all()) and not left_out(part, whole)


def left_out(part: StoreFiles, whole: StoreFiles) -> list[str]:
    """What a store has and another one of its model lacks: paths of arrays, names of targets, and tokens of so many rows."""
    return [*arrays_left_out(part, whole), *targets_left_out(part, whole), *_rows_left_out(part, whole)]


def arrays_left_out(part: StoreFiles, whole: StoreFiles) -> list[str]:
    """The paths of the arrays of a store that the other one lacks."""
    return [name for key, name in part.arrays.items() if key not in whole.arrays]


def targets_left_out(part: StoreFiles, whole: StoreFiles) -> list[str]:
    """The names of the targets of a store that the other one lacks, or has with other values."""
    known = targets_of(whole)
    targets = targets_of(part).items()
    return [name for name, one in targets if name not in known or not has_values(known[name], whole.rows, one, part)]


def _rows_left_out(part: StoreFiles, whole: StoreFiles) -> list[str]:
    keys = part.arrays.keys() & whole.arrays.keys()
    usable = []
    for one in (part, whole):
        rows, skipped = committed_rows(one, keys)
        usable.append(one.rows.keys[rows[~skipped]])
    num_lost = int((~np.isin(usable[0], usable[1])).sum())
    return [f"tokens of {num_lost:,} of its rows"] if num_lost else []


def targets_of(part: StoreFiles) -> dict[str, Target]:
    """The targets of a store by name."""
    if part.header.format == 1:
        return {LABEL: label_target(part)}
    num_rows = part.header.spec.num_rows
    return {name: read_target(part.path, name, num_rows=num_rows) for name in list_targets(part.path)}


def has_values(target: Target, rows: RowSet, other: Target, part: StoreFiles) -> bool:
    """Whether a target of some rows says the same as that of a store, for the rows that both have."""
    at, known = shared_rows(rows, part)
    is_same_kind = (target.type, [*target.class_names]) == (other.type, [*other.class_names])
    return is_same_kind and np.array_equal(target.values[at], other.values[known], equal_nan=True)
