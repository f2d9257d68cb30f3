"""Successive halving: which settings are trained for how many steps. An option; the protocol trains all of them in full.

    rung 0    all P settings               ceil(S / 9) steps
    rung 1    the best ceil(P / 3)         ceil(S / 3) steps
    rung 2    the best ceil(P / 9)         S steps, the whole schedule

Every rung starts from the same initial weights and runs a whole cosine of its own length, on the first batches, jitter and
noise of the full training. So a rung ranks finished probes, and the settings of the last rung are trained exactly as the full
grid trains them, up to the order of float32 sums. S is the number of steps of the protocol; `min_steps` holds for the last rung.
The setting is chosen among the last rung, then trained on all images. 63 settings cost a third of the full grid, 21 a little
more, 4 a half. This module knows nothing of banks or tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SHRINK = 3  # each rung trains a third of the settings for three times the steps, at equal cost
NUM_RUNGS = 3


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One round of a sweep: the number of settings, and of optimiser steps for each."""

    num_settings: int
    num_steps: int

    @property
    def probe_steps(self) -> int:
        return self.num_settings * self.num_steps


def plan_rungs(sweep: str, num_settings: int, num_steps: int) -> tuple[Rung, ...]:
    """Plan the rounds of a sweep.

    Args:
        sweep: "full" for one round of all settings, or "halving".
        num_settings: P, size of the grid.
        num_steps: S, length of the full schedule.

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
    """Keep the `count` best candidates, in their order and the first among equals; diverged ones (None) are never kept.

    >>> keep_best([4, 5, 6, 7], [0.5, 0.9, None, 0.5], 2)
    [4, 5]
    """
    finished = [
        (accuracy, index) for index, accuracy in zip(candidates, accuracies, strict=True) if accuracy is not None
    ]
    return sorted(index for _, index in sorted(finished, key=lambda pair: -pair[0])[:count])
