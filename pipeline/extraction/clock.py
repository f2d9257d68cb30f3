"""Where a loop's time goes, by name: what the meter shows and `ExtractionFinished` reports."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Seconds since it was made, and how many of them were spent on what.

    Args:
        names: of what time is spent on.
    """

    def __init__(self, *names: str) -> None:
        self.started = time.perf_counter()
        self.spent = dict.fromkeys(names, 0.0)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        since = time.perf_counter()
        try:
            yield
        finally:
            self.spent[name] += time.perf_counter() - since

    def move(self, seconds: float, source: str, target: str) -> None:
        """Some of the time counted for one name belongs to another."""
        self.spent[source] -= seconds
        self.spent[target] += seconds

    def elapsed(self) -> float:
        """Seconds since it was made."""
        return time.perf_counter() - self.started
