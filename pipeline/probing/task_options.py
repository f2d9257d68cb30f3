"""The task of a split with what a user chooses of it: its type, the metric that settings are chosen by, weights of classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from layerbank.probes import TASKS, Multiclass, Task

from ..data.task_of_values import AUTO
from ..errors import RequestError, advice

BALANCED = "balanced"


def check_task_options(task: str, metric: str | None) -> None:
    """Refuse an unknown task, and a metric that it does not have, before data are opened.

    Raises:
        RequestError: names the nearest.
    """
    if task not in (AUTO, *TASKS):
        names = [AUTO, *TASKS]
        raise RequestError("probing.unknown_task", task=task, names=", ".join(names), advice=advice(task, names))
    types = TASKS if task == AUTO else [task]
    known = list(dict.fromkeys(name for one in types for name in TASKS[one].metrics))
    if metric is not None and metric not in known:
        raise RequestError(
            "probing.unknown_metric", metric=metric, names=", ".join(known), advice=advice(metric, known)
        )


def with_options(task: Task, metric: str | None, class_weights: str | None, class_names: Sequence[str]) -> Task:
    """A task with these options; None leaves the default.

    Raises:
        RequestError: a metric or weights that the task does not have.
    """
    if metric is not None:
        if metric not in task.metrics:
            names = ", ".join(task.metrics)
            raise RequestError("probing.metric_not_of_task", metric=metric, task=task.type, names=names)
        task = replace(task, metric=metric)
    if class_weights in (None, BALANCED):
        return task
    if not isinstance(task, Multiclass):
        raise RequestError("probing.no_class_weights", task=task.type)
    return replace(task, weighting=parse_class_weights(class_weights or "", class_names))


def parse_class_weights(text: str, class_names: Sequence[str]) -> str | tuple[float, ...]:
    """The weight of each class, 1 where a text such as `cat=2,dog=0.5` does not name it; or `balanced` or `none`.

    Raises:
        RequestError: a class that there is not, one that is named twice, or a weight that is no number from 0.

    >>> parse_class_weights("dog=2.5", ["cat", "dog"])
    (1.0, 2.5)
    """
    if text in (BALANCED, "none"):
        return text
    given: dict[str, float] = {}
    for part in text.split(","):
        name, _, weight = part.rpartition("=")
        try:
            number = float(weight)
        except ValueError:
            number = math.nan
        if not 0 <= number < math.inf or name not in class_names or name in given:
            raise RequestError("probing.bad_class_weights", part=part, names=", ".join(class_names[:8]))
        given[name] = number
    weights = tuple(given.get(name, 1.0) for name in class_names)
    if not any(weights):
        raise RequestError("probing.bad_class_weights", part=text, names=", ".join(class_names[:8]))
    return weights
