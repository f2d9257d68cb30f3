"""Which banks train in the same pass over the batches: as many as fit the memory, in their own order."""

from __future__ import annotations

from collections.abc import Sequence


def plan_passes(sizes: Sequence[int | None], budget_bytes: int | None) -> list[list[int]]:
    """Passes of banks, by number.

    Args:
        sizes: what training each bank takes at most, in bytes; None where nobody knows.
        budget_bytes: what the banks of a pass may take together; None is no limit. A bank of unknown size, or of one beyond the
            budget, has a pass to itself.

    >>> plan_passes([5, 3, 4, None, 2, 2], 8)
    [[0, 1], [2], [3], [4, 5]]
    >>> plan_passes([5, None], None)
    [[0, 1]]
    """
    if budget_bytes is None:
        return [list(range(len(sizes)))] if sizes else []
    passes: list[list[int]] = []
    left_bytes = -1
    for number, size in enumerate(sizes):
        if size is None or size > left_bytes:
            passes.append([])
            left_bytes = budget_bytes
        passes[-1].append(number)
        left_bytes = left_bytes - size if size is not None else -1
    return passes
