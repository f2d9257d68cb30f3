"""Learning curves: the training loss and learning rate of every probe at some hundred steps of its schedule.

Losses stay on the device until the training is over: a curve costs no waiting.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NUM_POINTS = 100


@dataclass(frozen=True, kw_only=True, eq=False)
class LearningCurves:
    """Of P probes at K steps.

    Attributes:
        steps: [K] int64, ascending, from 0 to the last step of the schedule.
        losses: [P, K] float32, of the step's batch, before the step is taken; NaN where a probe has no such point.
        lrs: [P, K] float32, of the step; NaN likewise.
    """

    steps: Tensor
    losses: Tensor
    lrs: Tensor

    def rows(self, places: Sequence[int]) -> LearningCurves:
        """The curves of some of the probes, in the order given."""
        index = torch.tensor(places, dtype=torch.int64)
        return LearningCurves(steps=self.steps, losses=self.losses[index], lrs=self.lrs[index])


def sampled_steps(num_steps: int) -> list[int]:
    """Which steps of a schedule are kept: the first, the last, and evenly between, at most `NUM_POINTS`.

    >>> steps = sampled_steps(1002)
    >>> len(steps), steps[:3], steps[-1]
    (100, [0, 10, 20], 1001)
    >>> sampled_steps(3)
    [0, 1, 2]
    """
    last = num_steps - 1
    return sorted({last * point // (NUM_POINTS - 1) for point in range(NUM_POINTS)})


def join_curves(parts: Iterable[tuple[Sequence[int], LearningCurves]], num_probes: int) -> LearningCurves:
    """Curves of some probes each as the curves of all; of a probe that occurs twice, the later one.

    Args:
        parts: which probes, and their curves. Schedules of different lengths have different steps: the result has all of them.
        num_probes: P of the result; NaN for probes in no part.
    """
    parts = list(parts)
    steps = torch.tensor(sorted({step for _, curves in parts for step in curves.steps.tolist()}), dtype=torch.int64)
    losses, lrs = torch.full((2, num_probes, len(steps)), torch.nan)
    for members, curves in parts:
        columns = torch.searchsorted(steps, curves.steps)
        for row, member in enumerate(members):
            for whole, part in ((losses, curves.losses), (lrs, curves.lrs)):
                whole[member] = torch.nan
                whole[member, columns] = part[row]
    return LearningCurves(steps=steps, losses=losses, lrs=lrs)
