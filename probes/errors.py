"""What the probes say when they cannot go on.

    ProbeError
    |-- SettingError      (ValueError)         a head, a setting or a protocol that makes no sense
    |-- DataError         (ValueError)         tokens, labels or splits that do not fit the work
    `-- CheckpointError   (ValueError)         a saved probe that is not what it should be
        `-- CheckpointMissing  (FileNotFoundError)

Each message has four parts: where, what was expected, what was there, what to do next. A probe that diverges
is a result, not an error: see `sweep.py`.
"""

from __future__ import annotations


class ProbeError(Exception):
    """A message in four parts.

    Args:
        where: the argument, file or tensor it is about.
        expected: what would have been right.
        got: what was there.
        todo: what to do next, a full sentence.
    """

    def __init__(self, *, where: str, expected: str, got: str, todo: str) -> None:
        super().__init__(where, expected, got, todo)
        self.where, self.expected, self.got, self.todo = where, expected, got, todo

    def __str__(self) -> str:
        return f"{self.where}: expected {self.expected}, got {self.got}. {self.todo}"


class SettingError(ProbeError, ValueError):
    """A head, a setting or a protocol that makes no sense."""


class DataError(ProbeError, ValueError):
    """Tokens, labels or splits that do not fit the work."""


class CheckpointError(ProbeError, ValueError):
    """A saved probe that is not what it should be."""


class CheckpointMissing(CheckpointError, FileNotFoundError):
    """There is no saved probe."""
