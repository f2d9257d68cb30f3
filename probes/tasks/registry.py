"""The registry of tasks. Adding a task takes one file with a `TASK`, and its name here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from layerbank.registry import Registry

from .multiclass import Multiclass
from .task import Task

_NAMES = ("multiclass", "multilabel", "ordinal", "regression")

TASKS = Registry(
    "layerbank.tasks",
    "task",
    Task,  # type: ignore[type-abstract]  # no instance of it is made
    {name: f"layerbank.probes.tasks.{name}:TASK" for name in _NAMES},
)


def restore_task(saved: Mapping[str, Any] | None, num_classes: int) -> Task:
    """The task of a saved probe.

    Args:
        saved: what `Task.describe` returned; None for a probe that was saved before there was more than multiclass.
        num_classes: C of its data set; 0 without classes.

    Raises:
        RequestError: there is no such task.
    """
    if saved is None:
        return Multiclass(num_classes=num_classes)
    return TASKS.require(saved["type"]).for_data(num_classes, 0).restore(saved)


def as_task(task: Task | int) -> Task:
    """A task as it is; a number C stands for classification into C classes."""
    return task if isinstance(task, Task) else Multiclass(num_classes=int(task))
