"""Numbers of an image, one or several: squared loss on standardised targets, and R2."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from ..errors import DataError
from ..metrics import mean_absolute_error, pearson, r2, root_mean_squared_error, spearman
from .task import Task, align, each_probe

METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "r2": r2,
    "mae": mean_absolute_error,
    "rmse": root_mean_squared_error,
    "pearson": pearson,
    "spearman": spearman,
}
MOST_STRATA = 10


@dataclass(frozen=True, kw_only=True)
class Regression(Task):
    """Targets are [N] numbers, or [N, C]; every output has the same weight, whatever its unit, and a metric is their mean.

    Args:
        num_columns: C of targets [N, C]; 0 for targets [N], of which predictions have the shape.

    Attributes:
        mean, std: C numbers each, of the rows that train, set by `fit`; std is 1 where all targets are equal.
    """

    type = "regression"
    metrics = tuple(METRICS)
    target_dtype = torch.float32
    fitted = ("num_columns", "mean", "std")

    num_columns: int = 0
    mean: tuple[float, ...] = field(default=(0.0,), compare=False)
    std: tuple[float, ...] = field(default=(1.0,), compare=False)

    @property
    def num_outputs(self) -> int:
        return self.num_columns or 1

    @property
    def num_strata(self) -> int:
        return MOST_STRATA

    def for_data(self, num_classes: int, num_columns: int) -> Self:
        return replace(self, num_columns=num_columns)

    def check(self, targets: Tensor) -> None:
        expected = (self.num_columns,) if self.num_columns else ()
        if targets.shape[1:] != expected:
            shape = f"[N, {self.num_columns}]" if self.num_columns else "[N]"
            raise DataError("probes.targets_of_other_shape", task=self, expected=shape, got=list(targets.shape))
        if num_wrong := int((~self._columns(targets).isfinite()).any(1).sum()):
            raise DataError("probes.targets_not_finite", num_wrong=num_wrong, num_samples=len(targets))

    def strata(self, targets: Tensor) -> Tensor:
        """Tenths of the images by the first target, of at least 10 images each, so that both sides of a split have all ranges."""
        first = self._columns(targets)[:, 0].double().contiguous()
        num_strata = max(1, min(MOST_STRATA, len(first) // 10))
        limits = first.sort().values[torch.arange(1, num_strata) * len(first) // num_strata]
        return torch.searchsorted(limits, first, right=True)

    def fit(self, targets: Tensor) -> Self:
        columns = self._columns(targets).double()
        std = columns.std(0, correction=0)
        varies = columns.amax(0) > columns.amin(0)  # the deviation of equal numbers can be off 0 by rounding
        return replace(self, mean=tuple(columns.mean(0).tolist()), std=tuple(torch.where(varies, std, 1.0).tolist()))

    def encode(self, targets: Tensor) -> Tensor:
        mean, std = (torch.tensor(one, dtype=torch.float64) for one in (self.mean, self.std))
        return ((self._columns(targets) - mean) / std).to(self.target_dtype)

    def loss_and_grad(
        self, outputs: Tensor, targets: Tensor, weights: Tensor, *, batch_first: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The mean squared error of the outputs, as in `Task.loss_and_grad`.

        >>> loss, gradient = TASK.loss_and_grad(torch.ones(1, 1, 1), torch.tensor([[3.0]]), torch.ones(1))
        >>> loss.item(), gradient.item()
        (4.0, -4.0)
        """
        factors = align(weights, batch_first=batch_first) / outputs.shape[2]
        error = outputs.sub_(targets.unsqueeze(1 if batch_first else 0))
        loss = (error.square() * factors).sum((0 if batch_first else 1, 2))
        return loss, error.mul_(2 * factors)

    def loss_each(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().mean(1)

    def ridge_targets(self, targets: Tensor) -> Tensor:
        return targets.double()

    def predict(self, outputs: Tensor) -> Tensor:
        mean, std = (torch.tensor(one, dtype=torch.float64) for one in (self.mean, self.std))
        found = outputs * std + mean
        return found if self.num_columns else found[..., 0]

    def evaluate(self, metric: str, values: Tensor, targets: Tensor) -> Tensor:
        of_targets = self._columns(targets)
        of_values = values if self.num_columns else values.unsqueeze(-1)
        return each_probe(lambda one: METRICS[metric](one, of_targets), of_values)

    def _columns(self, targets: Tensor) -> Tensor:
        """Targets as [N, C]."""
        return targets if self.num_columns else targets.unsqueeze(1)


TASK = Regression()
