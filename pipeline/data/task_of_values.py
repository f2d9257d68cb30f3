"""The type of task that values ask for, and values as another type takes them.

A source reads its labels as classes where they are texts or whole numbers (multiclass), and as numbers where they are decimals
(regression). A matrix with a single 1 in each row is one-hot, a class an image; one of 0, 1 and unknown is a label a column
(multilabel), another one a number a column. Classes are in no order unless `--task ordinal` says so: whole numbers are often names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError
from ..quantities import few
from .task_names import MULTICLASS, MULTILABEL, ORDINAL, REGRESSION

AUTO = "auto"
NO_LABEL = -1
"""The label of images that have none."""


class Labelled(Protocol):
    """Images with labels: an image source, or what is known of a split."""

    @property
    def name(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def labels(self) -> NDArray[Any]: ...
    @property
    def class_names(self) -> Sequence[str]: ...


class Asked(Protocol):
    """Images with labels that can be set."""

    name: str
    split: str
    labels: NDArray[Any]
    class_names: Any
    task: str


def task_of_values(values: NDArray[Any], class_names: Sequence[str]) -> str:
    """The type of task that the labels of a source ask for: [N] class numbers or decimals, [N, K] with or without names.

    >>> [task_of_values(np.array(one), []) for one in ([0, 1], [0.5, 1.5], [[1, 0], [1, -1]])]
    ['multiclass', 'regression', 'multilabel']
    """
    if values.ndim > 1:
        return MULTILABEL if values.dtype.kind in "iu" else REGRESSION
    return REGRESSION if values.dtype.kind == "f" else MULTICLASS


def matrix_of(values: NDArray[Any], names: Sequence[str]) -> tuple[NDArray[Any], list[str]]:
    """Labels of a matrix [N, K] of numbers, and names of its columns.

    Returns:
        class numbers [N] if the matrix is one-hot; int64 1, 0 and -1 for unknown if it holds 0, 1, -1 and NaN alone; both with the
        names, or numbers as names; else float64 without names.

    >>> matrix_of(np.array([[1.0, np.nan], [0.0, 1.0]]), [])
    (array([[ 1, -1],
           [ 0,  1]]), ['0', '1'])
    """
    known = np.where(np.isnan(numbers := values.astype(np.float64)), NO_LABEL, numbers)
    if not np.isin(known, (0, 1, NO_LABEL)).all():
        return numbers, []
    names = list(names) or [str(column) for column in range(values.shape[1])]
    if ((known == 1).sum(1) == 1).all() and (known >= 0).all():
        return known.argmax(1), names
    return known.astype(np.int64), names


def set_task(asked: Asked, task: str) -> None:
    """Let images be asked for another type of task than their labels show, in place; arguments and errors as in `targets_for`."""
    asked.labels, asked.class_names, asked.task = targets_for(asked, task)


def targets_for(asked: Labelled, task: str) -> tuple[NDArray[Any], Sequence[str], str]:
    """Labels, class names and type of the task, where images are asked for another one than their labels show.

    Args:
        asked: N images with labels.
        task: a type; `auto` is what the labels show.

    Raises:
        RequestError: labels of which this type cannot be made.
    """
    labels, names = asked.labels, asked.class_names
    found = task_of_values(labels, names)
    if task in (AUTO, found) or task not in (MULTICLASS, MULTILABEL, ORDINAL, REGRESSION):
        return labels, names, found if task == AUTO else task
    values = {"data": f"{asked.name}/{asked.split}", "task": task, "found": found}
    has_classes = found == MULTICLASS and len(names) > 0
    if has_classes and task == MULTILABEL:
        each = (labels[:, None] == np.arange(len(names))).astype(np.int64)
        return np.where(labels[:, None] == NO_LABEL, NO_LABEL, each), names, task
    numbers = _numbers_of(labels, names) if has_classes else labels
    if numbers is None:
        raise RequestError("data.classes_are_no_numbers", names=few(list(names)), **values)
    if numbers.ndim > 1 or numbers.dtype.kind != "f" or task == MULTILABEL:
        raise RequestError("data.labels_not_for_task", **values)
    if task == REGRESSION:
        return numbers, [], task
    # of classes all, also those that no image of this split has
    distinct = np.unique(np.array([*map(float, names)]) if has_classes else numbers[~np.isnan(numbers)])
    if task == MULTICLASS and (distinct != distinct.round()).any():
        raise RequestError("data.labels_not_for_task", **values)
    classes = np.where(np.isnan(numbers), NO_LABEL, np.searchsorted(distinct, numbers))
    return classes, [str(int(one)) if one.is_integer() else repr(one) for one in distinct.tolist()], task


def _numbers_of(labels: NDArray[np.int64], names: Sequence[str]) -> NDArray[np.float64] | None:
    """[N] the class names as numbers, NaN without a class; None if they are no numbers."""
    try:
        numbers = np.array([*map(float, names), np.nan])
    except ValueError:
        return None
    of_labels: NDArray[np.float64] = numbers[labels]  # the last one stands for NO_LABEL, -1
    return of_labels
