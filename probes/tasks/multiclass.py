"""One class an image: cross entropy in which every class has the same total weight, and balanced accuracy."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from ..errors import DataError
from ..metrics import balanced_accuracy, top_k_accuracy
from .task import Task, align


@dataclass(frozen=True, kw_only=True)
class Multiclass(Task):
    """Targets are class numbers from 0 to C - 1, outputs class scores.

    Attributes:
        num_classes: C; not every class need occur.
        class_weights: [C] float64, set by `fit`.
    """

    type = "multiclass"
    metric = "balanced_accuracy"
    target_dtype = torch.int64

    num_classes: int = 0
    class_weights: Tensor | None = field(default=None, compare=False, repr=False)

    @property
    def num_outputs(self) -> int:
        return self.num_classes

    @property
    def num_strata(self) -> int:
        return self.num_classes

    def for_classes(self, num_classes: int) -> Self:
        return replace(self, num_classes=num_classes)

    def check(self, targets: Tensor) -> None:
        if targets.dtype != torch.int64:
            raise DataError("probes.labels_not_int64", dtype=targets.dtype)
        if targets.numel() and not (int(targets.min()) >= 0 and int(targets.max()) < self.num_classes):
            raise DataError(
                "probes.labels_out_of_range",
                last=self.num_classes - 1,
                least=int(targets.min()),
                largest=int(targets.max()),
            )

    def strata(self, targets: Tensor) -> Tensor:
        return targets

    def fit(self, targets: Tensor) -> Self:
        return replace(self, class_weights=class_weights(targets, self.num_classes))

    def sample_weights(self, targets: Tensor) -> Tensor:
        assert self.class_weights is not None, "fit() comes first"
        return self.class_weights[targets]

    def loss_and_grad(
        self, outputs: Tensor, targets: Tensor, weights: Tensor, *, batch_first: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Cross entropy, as in `Task.loss_and_grad`.

        >>> loss, gradient = TASK.loss_and_grad(torch.zeros(1, 2, 2), torch.tensor([0, 1]), torch.tensor([0.75, 0.25]))
        >>> round(loss.item(), 4), gradient.tolist()
        (0.6931, [[[-0.375, 0.375], [0.125, -0.125]]])
        """
        along = (-1, 1, 1) if batch_first else (1, -1, 1)
        of_target = targets.view(along).expand(*outputs.shape[:2], 1)
        of_sample = align(weights, batch_first=batch_first)
        log_probs = torch.log_softmax(outputs, 2, out=outputs)
        loss = -(log_probs.gather(2, of_target) * of_sample).sum((0 if batch_first else 1, 2))
        gradient = log_probs.exp_().mul_(of_sample)
        return loss, gradient.scatter_add_(2, of_target, -of_sample.expand_as(of_target))

    def loss_each(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(outputs, targets, reduction="none")

    def ridge_targets(self, targets: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(targets, self.num_classes).double()

    def predict(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(-1)

    def confidence(self, outputs: Tensor) -> Tensor:
        return outputs.softmax(-1).amax(-1)

    def score(self, predictions: Tensor, targets: Tensor) -> Tensor:
        return balanced_accuracy(predictions, targets, self.num_classes)

    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        return {
            "balanced_accuracy": self.score(self.predict(outputs), targets).item(),
            "top1": top_k_accuracy(outputs, targets, 1).item(),
            "top5": top_k_accuracy(outputs, targets, 5).item(),
        }


def class_weights(labels: Tensor, num_classes: int) -> Tensor:
    """Weights N / (C n_c) that give every class the same total; 0 for a class that does not occur. [C] float64.

    >>> class_weights(torch.tensor([0, 0, 0, 1]), num_classes=3).tolist()
    [0.4444444444444444, 1.3333333333333333, 0.0]
    """
    counts = torch.bincount(labels, minlength=num_classes).double()
    weights = len(labels) / (num_classes * counts)
    return weights.masked_fill_(counts == 0, 0.0)


TASK = Multiclass()
