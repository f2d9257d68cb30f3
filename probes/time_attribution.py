"""Wall time of banks that work together, as the part of each.

A pass over the batches serves several banks. Each bank's own work, copying its blocks out of the rows and its arithmetic, is
timed on the host; what is shared, gathering rows and jitter, falls to each in proportion to its own. So parts add up to
the wall time of the pass, whoever took part. On a GPU the host only queues work and waits nowhere for one bank, so there the
parts are in proportion to the time it took to queue.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class Stopwatch:
    """Adds up the wall time of the blocks that it is entered for.

    Attributes:
        spent_s: so far.
    """

    def __init__(self) -> None:
        self.spent_s = self._start_s = 0.0

    def __enter__(self) -> None:
        self._start_s = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.spent_s += time.perf_counter() - self._start_s


@contextmanager
def shared_out(phase: str, parties: Sequence[tuple[dict[str, float], Stopwatch]]) -> Iterator[None]:
    """Add each party's part of the wall time of the block to its seconds[phase], and set its watch back to zero.

    Args:
        phase: key in the dictionaries.
        parties: the seconds and the watch of each; may still grow inside the block.
    """
    start_s = time.perf_counter()
    yield
    parts = share(time.perf_counter() - start_s, [watch.spent_s for _, watch in parties])
    for (seconds, watch), part in zip(parties, parts, strict=True):
        seconds[phase] = seconds.get(phase, 0.0) + part
        watch.spent_s = 0.0


def share(whole: float, own: Sequence[float]) -> list[float]:
    """Parts of a whole in proportion to what each did by itself; equal parts where nobody did anything.

    >>> share(12.0, [1.0, 3.0])
    [3.0, 9.0]
    >>> share(12.0, [0.0, 0.0])
    [6.0, 6.0]
    """
    total = sum(own)
    return [whole * part / total if total > 0 else whole / len(own) for part in own]
