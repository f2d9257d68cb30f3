"""Tasks: what is asked of a probe. One file a type of task, and one line in the registry."""

from .registry import TASKS as TASKS
from .registry import as_task as as_task
from .registry import restore_task as restore_task
from .task import Task as Task
