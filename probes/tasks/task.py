"""The interface of a task: targets, loss, predictions and scores.

Everything else - banks, trainer, sweeps, solvers, memory plans - handles outputs [P, B, C] and targets [B] without knowing what
they mean. A task is a frozen value: `for_classes` binds it to a data set, `fit` to the rows that train, and both return a copy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """The outputs, targets, loss and metrics of a probe; abstract.

    A subclass is a frozen dataclass. Two tasks that compare equal have the same outputs, loss and scores; fields that `fit` sets
    are left out of the comparison (`field(compare=False)`).

    Attributes:
        type: name in the registry, in keys of results, result rows and saved probes.
        metric: the metric that settings are chosen by; higher is better. A key of what `measure` returns.
        target_dtype: dtype of encoded targets and of predictions.
        fitted: names of the fields that `fit` sets and `predict` needs; numbers, which a saved probe keeps.
    """

    type: ClassVar[str]
    metric: ClassVar[str]
    target_dtype: ClassVar[torch.dtype]
    fitted: ClassVar[tuple[str, ...]] = ()

    def __str__(self) -> str:
        return f"{self.type} of {self.num_outputs} outputs"

    @property
    @abstractmethod
    def num_outputs(self) -> int:
        """C, the outputs of a probe for an image."""

    @property
    def num_strata(self) -> int:
        """The largest number of different values of `strata`."""
        return 1

    def for_classes(self, num_classes: int) -> Self:
        """The task on a data set with so many classes; a task without classes ignores them."""
        return self

    @abstractmethod
    def check(self, targets: Tensor) -> None:
        """Raise DataError unless the targets [N] of a data set can be used."""

    def strata(self, targets: Tensor) -> Tensor:
        """Targets [N] -> [N] int64, groups of which the validation split holds out the same fraction each."""
        return torch.zeros(len(targets), dtype=torch.int64)

    def fit(self, targets: Tensor) -> Self:
        """With what it needs to know of the targets [n] of the rows that train, such as their mean."""
        return self

    def encode(self, targets: Tensor) -> Tensor:
        """Targets [B] of a data set -> [B] in `target_dtype`, as the loss takes them."""
        return targets.to(self.target_dtype)

    def sample_weights(self, targets: Tensor) -> Tensor:
        """Weights [B] float64 of encoded targets [B] in the loss, up to a common factor."""
        return torch.ones(len(targets), dtype=torch.float64)

    @abstractmethod
    def loss_and_grad(
        self, outputs: Tensor, targets: Tensor, weights: Tensor, *, batch_first: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Weighted loss of P probes on the same samples, and its gradient.

        Args:
            outputs: [P, B, C], or [B, P, C] if batch_first; overwritten.
            targets: [B], encoded.
            weights: [B], or [P, B] where they differ between probes; of a probe they sum to 1.

        Returns:
            loss [P] and its gradient, in the shape and the memory of the outputs.
        """

    @abstractmethod
    def loss_each(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss [B] of each sample, from outputs [B, C] and encoded targets [B], for autograd under `vmap`."""

    @abstractmethod
    def ridge_targets(self, targets: Tensor) -> Tensor:
        """Encoded targets [N] -> [N, C] float64, which ridge regression approximates by the outputs."""

    @abstractmethod
    def predict(self, outputs: Tensor) -> Tensor:
        """Outputs [..., C] -> predictions [...] in `target_dtype` and in the unit of the data set's targets."""

    def confidence(self, outputs: Tensor) -> Tensor | None:
        """Outputs [..., C] -> probability [...] of each prediction; None for a task that has none."""
        return None

    @abstractmethod
    def score(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """The metric that settings are chosen by: predictions [..., N], targets [N] of the data set -> [...] float64.

        Finite where the predictions are.
        """

    @abstractmethod
    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """All metrics of outputs [N, C] on targets [N] of the data set, by name; finite where the outputs are."""

    def describe(self) -> dict[str, Any]:
        """The type and the fitted numbers, as a saved probe keeps them."""
        return {"type": self.type} | {name: getattr(self, name) for name in self.fitted}

    def restore(self, saved: Mapping[str, Any]) -> Self:
        """With the fitted numbers that `describe` returned."""
        return replace(self, **{name: saved[name] for name in self.fitted})


def align(weights: Tensor, *, batch_first: bool) -> Tensor:
    """Weights [B] or [P, B] in a shape that broadcasts with outputs [P, B, C], or [B, P, C] if batch_first."""
    of_probes = weights if weights.dim() == 2 else weights.unsqueeze(0)
    return (of_probes.mT if batch_first else of_probes).unsqueeze(2)
