"""Batch size, order of the images, and number of steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..errors import DataError
from ..seeds import make_generator

MIN_BATCHES = 5
SMALLEST_BATCH = 17
EVALUATION_BATCH = 256  # rows at once in an evaluation


def choose_batch_size(num_samples: int, wish: int = 2048) -> int:
    """The batch size of the reference code: close to the wish, at least five batches, no small remainder.

    The wish is taken if it gives five full batches and a last one that is empty or at least half full. Otherwise
    candidates go down from num_samples // max(5, num_samples // wish) + 1 to 17, and the first that gives as
    many full batches with such a remainder is taken; 17 if there is none.

    Args:
        num_samples: N, images to train on.
        wish: wanted batch size.

    >>> [choose_batch_size(n) for n in (45000, 1020, 262144, 1600)]
    [2048, 204, 2048, 320]
    """

    def fits(size: int, num_batches: int) -> bool:
        remainder = num_samples % size
        return num_samples // size >= num_batches and (remainder == 0 or 2 * remainder >= size)

    if fits(wish, MIN_BATCHES):
        return wish
    num_batches = max(MIN_BATCHES, num_samples // wish)
    largest = num_samples // num_batches + 1
    candidates = range(largest, SMALLEST_BATCH - 1, -1)
    return next((size for size in candidates if fits(size, num_batches)), SMALLEST_BATCH)


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """The batches of a training: `num_epochs` passes over `num_samples`, each in its own order.

    Raises:
        DataError: there are fewer than two samples, which BatchNorm cannot train on.
    """

    num_samples: int
    batch_size: int
    num_epochs: int

    def __post_init__(self) -> None:
        if self.num_samples < 2:
            raise DataError("probes.too_few_images", num_images=self.num_samples)

    @property
    def steps_per_epoch(self) -> int:
        return len(self._borders()) - 1

    @property
    def num_steps(self) -> int:
        return self.num_epochs * self.steps_per_epoch

    def batches(self, seed: int) -> Iterator[Tensor]:
        """The samples of each step, [B] int64 positions below num_samples, in a random order for each epoch."""
        return self.cut(lambda epoch: torch.randperm(self.num_samples, generator=make_generator(seed, "order", epoch)))

    def cut(self, order: Callable[[int], Tensor]) -> Iterator[Tensor]:
        """The samples of each step, given a function from the epoch to its order [N]."""
        borders = self._borders()
        for epoch in range(self.num_epochs):
            samples = order(epoch)
            for start, stop in pairwise(borders):
                yield samples[start:stop]

    def _borders(self) -> list[int]:
        borders = [*range(0, self.num_samples, self.batch_size), self.num_samples]
        if len(borders) > 2 and borders[-1] - borders[-2] == 1:
            del borders[-2]  # BatchNorm cannot train on a last batch of one: it joins the batch before
        return borders


def plan_batches(num_samples: int, *, wish: int, epochs: int, min_steps: int) -> BatchPlan:
    """Plan batches of the size of `choose_batch_size`, and epochs for at least min_steps steps.

    >>> plan = plan_batches(1020, wish=2048, epochs=40, min_steps=1000)
    >>> plan.batch_size, plan.num_epochs, plan.num_steps
    (204, 200, 1000)
    """
    one_epoch = BatchPlan(num_samples=num_samples, batch_size=choose_batch_size(num_samples, wish), num_epochs=1)
    num_epochs = max(epochs, -(-min_steps // one_epoch.steps_per_epoch))
    return BatchPlan(num_samples=num_samples, batch_size=one_epoch.batch_size, num_epochs=num_epochs)
