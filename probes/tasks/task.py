"""The interface of a task: targets, loss, predictions and scores.

Everything else - banks, trainer, sweeps, solvers, memory plans - handles outputs [P, B, C] and targets, [N] or [N, K], without
knowing what they mean. A task is a frozen value: `for_data` binds it to a data set, `fit` to the rows that train, and both return a
copy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ..errors import DataError, SettingError

ERRORS = ("log_loss", "mae", "rmse")
"""Metrics of which the lowest value is the best."""

SCORING_FLOATS = 32  # of an output, while a metric of one probe is computed: sorted scores, their order, ranks, sums


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """The outputs, targets, loss and metrics of a probe; abstract.

    A subclass is a frozen dataclass. Two tasks that compare equal have the same outputs, loss and scores; fields that `fit` sets
    are left out of the comparison (`field(compare=False)`).

    Args:
        metric: the metric that settings are chosen by, one of `metrics`; the first of them by default.

    Attributes:
        type: name in the registry, in keys of results, result rows and saved probes.
        metrics: names of the metrics, the default one first.
        metrics_of_outputs: those that need all outputs of an image; the others need its prediction.
        target_dtype: dtype of encoded targets.
        fitted: names of the fields that `fit` and `for_data` set and `predict` needs; JSON values, which a saved probe keeps.

    Raises:
        SettingError: no such metric.
    """

    type: ClassVar[str]
    metrics: ClassVar[tuple[str, ...]]
    metrics_of_outputs: ClassVar[tuple[str, ...]] = ()
    target_dtype: ClassVar[torch.dtype]
    fitted: ClassVar[tuple[str, ...]] = ()

    metric: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "metric", self.metric or self.metrics[0])
        if self.metric not in self.metrics:
            names = ", ".join(self.metrics)
            raise SettingError("probes.unknown_metric", task=self.type, metrics=names, metric=self.metric)

    def __str__(self) -> str:
        return f"{self.type} of {self.num_outputs} outputs"

    @property
    @abstractmethod
    def num_outputs(self) -> int:
        """C, the outputs of a probe for an image."""

    @property
    def target_shape(self) -> tuple[int, ...]:
        """The shape of the encoded target of an image: () for a number, (C,) for one a output."""
        return (self.num_outputs,)

    @property
    def num_strata(self) -> int:
        """The largest number of different values of `strata`."""
        return 1

    def for_data(self, num_classes: int, num_columns: int) -> Self:
        """The task on a data set: so many classes, 0 without; so many columns of its targets [N, K], 0 for targets [N]."""
        return self

    @abstractmethod
    def check(self, targets: Tensor) -> None:
        """Raise DataError unless the targets of a data set, [N] or [N, K], can be used."""

    def strata(self, targets: Tensor) -> Tensor:
        """Targets of a data set -> [N] int64, groups of which the validation split holds out the same fraction each."""
        return torch.zeros(len(targets), dtype=torch.int64)

    def fit(self, targets: Tensor) -> Self:
        """With what it needs to know of the targets of the rows that train, such as their mean."""
        return self

    def encode(self, targets: Tensor) -> Tensor:
        """Targets of a data set -> [B, *target_shape] in `target_dtype`, as the loss takes them."""
        return targets.to(self.target_dtype)

    def sample_weights(self, targets: Tensor) -> Tensor:
        """Weights [B] float64 of the targets of a data set in the loss, up to a common factor."""
        return torch.ones(len(targets), dtype=torch.float64)

    @abstractmethod
    def loss_and_grad(
        self, outputs: Tensor, targets: Tensor, weights: Tensor, *, batch_first: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Weighted loss of P probes on the same samples, and its gradient.

        Args:
            outputs: [P, B, C], or [B, P, C] if batch_first; overwritten.
            targets: [B, *target_shape], encoded.
            weights: [B], or [P, B] where they differ between probes; of a probe they sum to 1.

        Returns:
            loss [P] and its gradient, in the shape and the memory of the outputs.
        """

    @abstractmethod
    def loss_each(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss [B] of each sample, from outputs [B, C] and encoded targets, for autograd under `vmap`."""

    @abstractmethod
    def ridge_targets(self, targets: Tensor) -> Tensor:
        """Encoded targets -> [N, C] float64, which ridge regression approximates by the outputs."""

    @abstractmethod
    def predict(self, outputs: Tensor) -> Tensor:
        """Outputs [..., C] -> predictions [...] or [..., K], in the unit of the data set's targets."""

    def probabilities(self, outputs: Tensor) -> Tensor | None:
        """Outputs [..., C] -> the probability of each class [..., num_classes]; None for a task without classes."""
        return None

    @abstractmethod
    def evaluate(self, metric: str, values: Tensor, targets: Tensor) -> Tensor:
        """One of `metrics`, of one probe or of several.

        Args:
            metric: its name.
            values: outputs [..., N, C] for `metrics_of_outputs`, predictions [..., N] or [..., N, K] for the others.
            targets: of the data set.

        Returns:
            [...] float64, NaN where the targets leave it undefined, else finite where the values are.
        """

    def scored(self, outputs: Tensor) -> Tensor:
        """What `score` needs of outputs [..., N, C]: predictions, or the outputs themselves."""
        return outputs if self.metric in self.metrics_of_outputs else self.predict(outputs)

    def score(self, scored: Tensor, targets: Tensor) -> Tensor:
        """The metric that settings are chosen by, the higher the better: an error has a negative score.

        Args:
            scored: of `scored`.
            targets: of the data set.
        """
        found = self.evaluate(self.metric, scored, targets)
        return -found if self.metric in ERRORS else found

    def scoring_floats(self, num_probes: int) -> int:
        """Upper bound of the memory of `score` for each image, in floats, with what is scored."""
        scored = self.scored(torch.zeros(1, self.num_outputs))
        return num_probes * scored.nbytes // 4 + SCORING_FLOATS * scored.numel()

    def check_scored(self, targets: Tensor) -> None:
        """Raise DataError where targets of a data set leave the metric undefined."""
        outputs = torch.zeros(len(targets), self.num_outputs)
        if len(targets) and self.score(self.scored(outputs), targets).isnan():
            raise DataError("probes.metric_undefined", metric=self.metric, num_images=len(targets))

    @property
    def reported(self) -> tuple[str, ...]:
        """The metrics of `measure`, `metric` among them."""
        return self.metrics

    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """All metrics of outputs [N, C] on targets of the data set, by name, without those that the targets leave undefined."""
        predictions = self.predict(outputs)
        found = {
            name: self.evaluate(name, outputs if name in self.metrics_of_outputs else predictions, targets).item()
            for name in self.reported
        }
        return {name: value for name, value in found.items() if value == value}

    def describe(self) -> dict[str, Any]:
        """The type and the fitted numbers, as a saved probe keeps them."""
        return {"type": self.type} | {name: getattr(self, name) for name in self.fitted}

    def restore(self, saved: Mapping[str, Any]) -> Self:
        """With the fitted numbers that `describe` returned."""
        return replace(self, **{name: saved[name] for name in self.fitted})


def each_probe(function: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """A metric of values [..., N, C] that takes [N, C], for one probe after the other, which saves memory: [...]."""
    if values.dim() == 2:
        return function(values)
    return torch.stack([each_probe(function, one) for one in values])


def align(weights: Tensor, *, batch_first: bool) -> Tensor:
    """Weights [B] or [P, B] in a shape that broadcasts with outputs [P, B, C], or [B, P, C] if batch_first."""
    of_probes = weights if weights.dim() == 2 else weights.unsqueeze(0)
    return (of_probes.mT if batch_first else of_probes).unsqueeze(2)
