"""Tasks: the outputs, targets, loss and metrics of probes. One file per type of task, and one line in the registry."""

from .registry import TASKS, as_task, restore_task
from .task import Task

__all__ = ["TASKS", "Task", "as_task", "restore_task"]
