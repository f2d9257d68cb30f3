"""Successive halving: which settings are trained for how many steps. An option; the protocol trains all of them in full.

    rung 0    all P settings               ceil(S / 9) steps
    rung 1    the best ceil(P / 3)         ceil(S / 3) steps
    rung 2    the best ceil(P / 9)         S steps, the whole schedule

A rung starts again from the same initial weights and goes down a whole cosine of its own length, on the first batches,
jitter and noise of the full training. So every rung is an ordinary training, only shorter; what it ranks are finished
probes, not probes in the middle of a schedule; and the settings of the last rung are trained exactly as the full grid
trains them (float32 sums in another order apart). S is the protocol's number of steps, min_steps included: the minimum
holds for the last rung only. The choice is made among the last rung, then trained on all images as ever. 63 settings
cost a third of the grid, 21 a little more, 4 a half.
It knows nothing of banks or tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SHRINK = 3  # each rung trains a third of the settings for three times the steps: every rung costs the same
NUM_RUNGS = 3


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One round of a sweep: so many settings, each trained for so many optimiser steps."""

    num_settings: int
    num_steps: int

    @property
    def probe_steps(self) -> int:
        return self.num_settings * self.num_steps


def plan_rungs(sweep: str, num_settings: int, num_steps: int) -> tuple[Rung, ...]:
    """The rounds of a sweep.

    Args:
        sweep: "full", one round of everything, or "halving".
        num_settings: P of the grid.
        num_steps: S of the whole schedule.

    >>> [(rung.num_settings, rung.num_steps) for rung in plan_rungs("halving", 63, 1000)]
    [(63, 112), (21, 334), (7, 1000)]
    >>> plan_rungs("full", 63, 1000)
    (Rung(num_settings=63, num_steps=1000),)
    """
    if sweep == "full":
        return (Rung(num_settings=num_settings, num_steps=num_steps),)
    shares = [SHRINK**rung for rung in range(NUM_RUNGS)]
    return tuple(
        Rung(num_settings=-(-num_settings // share), num_steps=-(-num_steps // rest))
        for share, rest in zip(shares, reversed(shares), strict=True)
    )


def keep_best(candidates: Sequence[int], accuracies: Sequence[float | None], count: int) -> list[int]:
    """The best of the candidates in their own order, the first of equals; those that diverged (None) never go on.

    >>> keep_best([4, 5, 6, 7], [0.5, 0.9, None, 0.5], 2)
    [4, 5]
    """
    finished = [
        (accuracy, index) for index, accuracy in zip(candidates, accuracies, strict=True) if accuracy is not None
    ]
    return sorted(index for _, index in sorted(finished, key=lambda pair: -pair[0])[:count])
