"""What layerbank says when it cannot go on.

    PipelineError
    |-- RequestError   the request was wrong: exit code 2
    `-- WorkError      the work failed: exit code 1

Each message has four parts: where, what was expected, what was there, what to do next. The console shows it without a traceback.
"""

from __future__ import annotations


class PipelineError(Exception):
    """A message in four parts.

    Args:
        where: the option, file, sample or model it is about.
        expected: what would have been right.
        got: what was there.
        todo: what the user can do next, a full sentence.
    """

    def __init__(self, *, where: str, expected: str, got: str, todo: str) -> None:
        super().__init__(where, expected, got, todo)
        self.where, self.expected, self.got, self.todo = where, expected, got, todo

    def __str__(self) -> str:
        return f"{self.where}: expected {self.expected}, got {self.got}. {self.todo}"

    def __reduce__(self) -> tuple[object, ...]:
        """Errors cross from worker processes; without this, unpickling would call `__init__` with positions."""
        return _again, (type(self), self.where, self.expected, self.got, self.todo)


def _again(kind: type[PipelineError], where: str, expected: str, got: str, todo: str) -> PipelineError:
    return kind(where=where, expected=expected, got=got, todo=todo)


class RequestError(PipelineError, ValueError):
    """The request was wrong; nothing was done."""


class WorkError(PipelineError, RuntimeError):
    """The work failed; what was committed before is kept."""
