"""Class numbers from a column of labels, or numbers where these are decimals. Mixed types and missing values are refused.

Labels that are whole numbers, or texts of such, are in rising order; other texts are in sorted order.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import RequestError
from ..table import is_missing

_WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,17})")  # as Python writes it: 007 is a name
_KINDS = {bool: "truth values", int: "whole numbers", float: "decimal numbers", str: "texts"}


def classes_of(values: Sequence[Any], ids: Sequence[str], place: str) -> tuple[NDArray[Any], list[str]]:
    """Number the classes of N labels; decimal numbers stay as they are.

    Args:
        values: N labels: texts, numbers or truth values, all of one type.
        ids: N sample ids, for messages.
        place: table and column, for messages.

    Returns:
        [N] class indices in 0..C-1, and C names; or [N] float64, and no names.

    Raises:
        RequestError: labels that are missing, mixed, negative, or of another type.

    >>> classes_of(["10", "9", "10"], ["a", "b", "c"], "table, column label")
    (array([1, 0, 1]), ['9', '10'])
    """
    count = len(values)
    if missing := [id for id, value in zip(ids, values, strict=True) if is_missing(value)]:
        raise RequestError("data.missing_labels", place=place, missing=len(missing), count=count, first=missing[0])
    kinds = Counter(_KINDS.get(type(value), type(value).__name__) for value in values)
    if len(kinds) > 1:
        found = ", ".join(f"{number:,} {kind}" for kind, number in kinds.most_common())
        raise RequestError("data.mixed_labels", place=place, found=found)
    if not all(kind in _KINDS.values() for kind in kinds):
        raise RequestError("data.labels_of_type", place=place, type=next(iter(kinds)))
    distinct = set(values)
    if _are_decimal(distinct):
        return np.array([float(value) for value in values]), []
    are_numbers = all(_WHOLE.fullmatch(str(value)) for value in distinct)
    if are_numbers and (least := min(map(int, distinct))) < 0:
        raise RequestError("data.label_below_zero", place=place, label=least)
    ordered = sorted(distinct, key=int if are_numbers else str)
    number_of = {value: number for number, value in enumerate(ordered)}
    return np.array([number_of[value] for value in values], dtype=np.int64), [str(value) for value in ordered]


def text_of(value: object) -> str:
    """A value as text. Bytes that are not UTF-8 stay apart from each other; `ImageSource` refuses them as names of classes.

    >>> text_of(b"owl"), text_of(7), text_of(b"caf\\xe9") == text_of(b"caf\\xe8")
    ('owl', '7', False)
    """
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else str(value)


def _are_decimal(values: set[Any]) -> bool:
    """Whether the values are floats, or texts that are numbers and not all written as whole ones."""
    if not all(isinstance(value, str) for value in values):
        return any(isinstance(value, float) for value in values)
    try:
        for value in values:
            float(value)
    except ValueError:
        return False
    return any(re.search(r"[.eE]", value) for value in values)
