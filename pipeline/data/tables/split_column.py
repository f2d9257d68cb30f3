"""The rows of a table that are a split: those that a column names, all of a file of that split, or a fraction held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...errors import RequestError
from ...quantities import few, whole_number
from ..classes import folded
from ..patterns import no_such_split
from ..table import Table
from .holdout import SPLITS, hold_out

USUAL = ("split", "subset", "partition")
WHOLE = "all"
"""The only split of data that have none: every image."""


class HeldOut(NamedTuple):
    """The share of each class that is held out as `test`, and the seed that chooses the images."""

    fraction: float
    seed: int


def parse_held_out(
    options: Mapping[str, str], data: str, *, has_splits: bool, has_columns: bool = True
) -> HeldOut | None:
    """What `?split=` and `?seed=` hold out; None where they hold nothing out.

    Args:
        options: those of the address.
        data: URI, for messages.
        has_splits: whether the data have splits already, which cannot be divided again.
        has_columns: whether `?split=` may be the name of a column instead.

    Raises:
        RequestError: a fraction of data that have splits, no fraction where there are no columns, a seed without a fraction, or one
            that is no whole number.
    """
    text = options.get("split", "")
    try:
        fraction = float(text)
    except ValueError:
        fraction = 0
    if not 0 < fraction < 1:
        if text and not has_columns:
            raise RequestError("data.bad_fraction", data=data, split=text)
        if "seed" in options:
            raise RequestError("data.seed_without_fraction", data=data)
        return None
    if has_splits:
        raise RequestError("data.fraction_of_a_split", data=data, split=text)
    seed = whole_number(options.get("seed", "0"))
    if seed is None:
        raise RequestError("data.bad_seed", data=data, seed=repr(options["seed"]))
    return HeldOut(fraction, seed)


def rows_of_split(
    table: Table, split: str, *, data: str, column: str | None, group: str | None, is_whole: bool = False
) -> NDArray[np.int64]:
    """The rows of a split, by the column that names it.

    Args:
        table: N rows.
        split: its name.
        data: URI, for messages.
        column: the column of the names of splits; None takes a column with a usual name, if there is one.
        group: the column of groups, which must not have rows of one group in this split and in another; None without groups.
        is_whole: whether the file has this split alone, where no column is named.

    Raises:
        RequestError: no such column or split, rows of no split, or a group with rows in several.
    """
    if column is None:
        column = None if is_whole else table.usual_column(USUAL)
    if column is None:
        if not is_whole and split != WHOLE:
            raise RequestError("data.no_split_column", data=data, split=split, columns=", ".join(table.columns))
        return np.arange(len(table))
    names = [str(value) for value in table.filled_column(column)]
    if alike := {name for name in set(names) if name != split and folded(name) == folded(split)}:
        count = sum(name in alike for name in names)
        values = {"column": column, "data": data, "split": split, "count": count}
        raise RequestError("data.split_look_alikes", **values, names=few([repr(name) for name in sorted(alike)]))
    is_asked = np.array([name == split for name in names], dtype=bool)
    if not is_asked.any():
        raise no_such_split(data, split, f"rows with {split} in column {column}", sorted(set(names)))
    if group is not None:
        _require_apart(table, group, is_asked)
    return np.flatnonzero(is_asked)


def rows_held_out(
    ids: Sequence[str],
    classes: Sequence[Any],
    split: str,
    held_out: HeldOut,
    *,
    data: str,
    groups: Sequence[Any] | None = None,
) -> NDArray[np.int64]:
    """The rows of `train` or `test` where a fraction is held out; the other arguments are those of `hold_out`.

    Raises:
        RequestError: another split, or one of the two would be empty.
    """
    fraction, seed = held_out
    if split not in SPLITS:
        raise no_such_split(data, split, f"a fraction of {fraction:g} held out as test", list(SPLITS))
    is_test = hold_out(ids, classes, fraction, seed=seed, groups=groups)
    if is_test.all() or not is_test.any():
        parts = len(set(groups)) if groups is not None else len(ids)
        kind = "groups" if groups is not None else "images"
        raise RequestError("data.cannot_hold_out", data=data, fraction=fraction, count=parts, kind=kind)
    return np.flatnonzero(is_test == (split == "test"))


def _require_apart(table: Table, group: str, is_asked: NDArray[np.bool_]) -> None:
    inside: set[str] = set()
    outside: set[str] = set()
    for value, asked in zip(table.group_names(group), is_asked.tolist(), strict=True):
        (inside if asked else outside).add(value)
    if both := sorted(inside & outside):
        raise RequestError(
            "data.group_in_two_splits", table=table.place, column=group, count=len(both), names=few(both)
        )
