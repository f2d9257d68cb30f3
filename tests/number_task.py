"""A task that layerbank does not have, in one file, as a package of the user would add it: regression of a number."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from layerbank.errors import Message
from layerbank.probes import DataError, Task
from layerbank.probes.tasks.task import align


@dataclass(frozen=True, kw_only=True)
class Number(Task):
    """Squared loss on targets that are standardised on the rows that train; R2 as metric."""

    type = "toy-number"
    metrics = ("r2", "mean_absolute_error")
    target_dtype = torch.float32
    fitted = ("mean", "std")

    mean: float = field(default=0.0, compare=False)
    std: float = field(default=1.0, compare=False)

    @property
    def num_outputs(self) -> int:
        return 1

    @property
    def target_shape(self) -> tuple[int, ...]:
        return ()

    def check(self, targets: Tensor) -> None:
        num_wrong = int((~targets.isfinite()).sum())
        if num_wrong:
            what = {"where": "targets", "expected": "finite numbers", "got": f"{num_wrong} that are not"}
            raise DataError(Message(**what, todo="Leave those images out."))

    def fit(self, targets: Tensor) -> Self:
        return replace(self, mean=targets.mean().item(), std=targets.std(correction=0).item() or 1.0)

    def encode(self, targets: Tensor) -> Tensor:
        return ((targets - self.mean) / self.std).to(self.target_dtype)

    def loss_and_grad(
        self, outputs: Tensor, targets: Tensor, weights: Tensor, *, batch_first: bool = False
    ) -> tuple[Tensor, Tensor]:
        of_samples = align(weights, batch_first=batch_first)
        error = outputs.sub_(targets.view((-1, 1, 1) if batch_first else (1, -1, 1)))
        loss = (error.square() * of_samples).sum((0 if batch_first else 1, 2))
        return loss, error.mul_(2 * of_samples)

    def loss_each(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs[:, 0] - targets).square()

    def ridge_targets(self, targets: Tensor) -> Tensor:
        return targets.double().unsqueeze(1)

    def predict(self, outputs: Tensor) -> Tensor:
        return outputs[..., 0] * self.std + self.mean

    def evaluate(self, metric: str, values: Tensor, targets: Tensor) -> Tensor:
        predictions, targets = values.double(), targets.double()
        if metric == "mean_absolute_error":
            return (predictions - targets).abs().mean(-1)
        unexplained = (predictions - targets).square().sum(-1)
        return 1 - unexplained / (targets - targets.mean()).square().sum().clamp(min=1e-12)  # finite for equal targets


TASK = Number()
