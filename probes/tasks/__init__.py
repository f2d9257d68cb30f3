"""Tasks: what is asked of a probe. One file a type of task, and one line in the registry."""

from .registry import TASKS, as_task, restore_task
from .task import Task

__all__ = ["TASKS", "Task", "as_task", "restore_task"]
