"""The linear probe: for reading, for export, and as the oracle of `LinearBank`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..tasks.task import Task
from .features import Features
from .head import HeadModule, HeadType, Solver, initial_weights, make_linear


class LinearProbe(HeadModule):
    """logits = X W + b on the concatenated tokens of an image."""

    kind = "linear"

    def __init__(self, num_features: int, num_classes: int, *, seed: int = 0) -> None:
        super().__init__(num_features=num_features, num_classes=num_classes)
        self.num_features, self.num_classes = num_features, num_classes
        self.classifier = make_linear(num_features, num_classes, initial_weights(seed))

    def pool(self, tokens: Tensor) -> Tensor:
        return tokens


def linear_solver(
    solve: Callable[[Features, Tensor, Tensor, Task, Sequence[float]], Iterator[tuple[Tensor, Tensor]]],
) -> Solver:
    """A solver of float64 (weight [C, F], bias [C]) as one of probes, which are float32 as saved ones are."""

    @torch.no_grad()
    def solve_probes(
        features: Features, targets: Tensor, weights: Tensor, task: Task, values: Sequence[float]
    ) -> list[HeadModule]:
        probes = [LinearProbe(features.shape[1], task.num_outputs) for _ in values]
        for probe, parts in zip(probes, solve(features, targets, weights, task, values), strict=True):
            for parameter, part in zip((probe.classifier.weight, probe.classifier.bias), parts, strict=True):
                parameter.copy_(part)
        return list(probes)

    return solve_probes


HEAD = HeadType(name="linear", module=LinearProbe, flat=True, removable_levels=True, bank="linear")
