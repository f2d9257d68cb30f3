"""The choices of post-hoc probes: the smallest set of levels that is good enough, the best k settings.

Pure arithmetic on predictions of the validation images; the test images are not used. How probes of a subset of levels are trained
is left to the caller (`post_hoc.py`): `train` gets all candidates of a round at once, so that they can train in one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError
from .bootstrap import Interval, class_mean, difference_interval

Levels = tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Validated:
    """A probe of some levels on the validation images.

    Attributes:
        levels: shallow to deep.
        hits: [N] which images it got right; all False where it diverged.
        labels: [N] int64, the same for all that are compared.
    """

    levels: Levels
    hits: NDArray[np.bool_]
    labels: NDArray[np.int64]

    @property
    def accuracy(self) -> float:
        """Balanced, in [0, 1]."""
        return class_mean(self.hits, self.labels)


TrainSubsets = Callable[[Sequence[Levels]], Sequence[Validated]]  # candidates of a round -> one each, in the same order


@dataclass(frozen=True, kw_only=True, eq=False)
class LevelChoice:
    """The smallest set of levels that is within the confidence interval of the best.

    Attributes:
        chosen: the smallest set.
        best: the best set on the path from one level to all.
        gap: balanced accuracy of the best less that of the chosen, with its interval over validation images.
        path: the best set found of each size, from one level upwards.
        num_trained: probes that were trained to find it.
    """

    chosen: Validated
    best: Validated
    gap: Interval
    path: tuple[Validated, ...]
    num_trained: int


def smallest_levels(levels: Sequence[str], train: TrainSubsets) -> LevelChoice:
    """Find few levels that are as good as the best many, by greedy forward selection on the validation images.

    The level that helps most is added until all are in; chosen is the smallest set on the way whose gap to the
    best one is not above zero with a confidence of 95 % (paired bootstrap over validation images). Greedy is not exhaustive: a
    pair of levels that only helps together is found late. L levels take L (L + 1) / 2 probes, in L rounds. The deeper of equals is
    taken.

    Args:
        levels: L names, shallow to deep, L >= 1.
        train: trains one probe a set of levels.

    Raises:
        RequestError: no levels.
    """
    if not levels:
        raise RequestError("probing.no_levels")
    path: list[Validated] = []
    num_trained = 0
    for size in range(1, len(levels) + 1):
        held = set(path[-1].levels) if path else set()
        candidates = [tuple(n for n in levels if n in held | {new}) for new in reversed(levels) if new not in held]
        found = train(candidates)
        num_trained += len(candidates)
        path.append(max(found, key=lambda one: one.accuracy))
        assert len(path[-1].levels) == size, "train() returned other levels"
    best = max(path, key=lambda one: one.accuracy)  # the smallest of equals
    for one in path:
        gap = difference_interval(best.hits, one.hits, best.labels)
        if gap.holds_zero:
            return LevelChoice(chosen=one, best=best, gap=gap, path=tuple(path), num_trained=num_trained)
    raise AssertionError("the best set has no gap to itself")


def best_members(validation: Sequence[float | None], k: int) -> list[int]:
    """Indices of the k settings of a bank that did best on validation, best first; the first of equals, as the protocol chooses.

    Args:
        validation: balanced accuracy of every setting, None where it diverged (`settings` of a row of results.jsonl).
        k: how many, from 1; fewer come back if fewer finished.

    Raises:
        RequestError: k below 1, or every setting diverged.

    >>> best_members([0.5, None, 0.7, 0.7], 2)
    [2, 3]
    """
    finished = [index for index, accuracy in enumerate(validation) if accuracy is not None]
    if k < 1:
        raise RequestError("probing.too_few_members", k=k)
    if not finished:
        raise RequestError("probing.no_finished_setting", num_settings=len(validation))
    return sorted(finished, key=lambda index: -(validation[index] or 0.0))[:k]
