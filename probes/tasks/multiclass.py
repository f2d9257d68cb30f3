"""One class an image: cross entropy, in which every class has the same total weight by default, and balanced accuracy."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from ..errors import DataError
from ..metrics import (
    balanced_accuracy,
    class_macro_f1,
    cohen_kappa,
    log_loss,
    macro_auroc,
    mean_average_precision,
    top_k_accuracy,
)
from .task import Task, align, each_probe

TOP_K = {"top1": 1, "top5": 5}


@dataclass(frozen=True, kw_only=True)
class Multiclass(Task):
    """Targets are class numbers from 0 to C - 1, outputs class scores.

    Args:
        num_classes: C; not every class need occur.
        weighting: of the loss: "balanced" gives every class the same total weight, "none" every sample the same; or the weight of a
            sample of each class, C numbers.

    Attributes:
        class_weights: [C] float64, set by `fit`.
    """

    type = "multiclass"
    metrics: ClassVar[tuple[str, ...]] = (
        *("balanced_accuracy", "accuracy", "macro_f1", "kappa"),
        *("auroc", "average_precision", "log_loss"),
    )
    metrics_of_outputs: ClassVar[tuple[str, ...]] = ("auroc", "average_precision", "log_loss", *TOP_K)
    target_dtype = torch.int64

    num_classes: int = 0
    weighting: str | tuple[float, ...] = "balanced"
    class_weights: Tensor | None = field(default=None, compare=False, repr=False)

    @property
    def num_outputs(self) -> int:
        return self.num_classes

    @property
    def target_shape(self) -> tuple[int, ...]:
        return ()

    @property
    def num_strata(self) -> int:
        return self.num_classes

    def for_data(self, num_classes: int, num_columns: int) -> Self:
        return replace(self, num_classes=num_classes)

    def check(self, targets: Tensor) -> None:
        if targets.dim() != 1:
            raise DataError("probes.targets_of_other_shape", task=self, expected="[N]", got=list(targets.shape))
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
        if self.weighting == "balanced":
            return replace(self, class_weights=class_weights(targets, self.num_classes))
        given = (1.0,) * self.num_classes if self.weighting == "none" else self.weighting
        return replace(self, class_weights=torch.tensor(given, dtype=torch.float64))

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

    def probabilities(self, outputs: Tensor) -> Tensor | None:
        return outputs.softmax(-1)

    def evaluate(self, metric: str, values: Tensor, targets: Tensor) -> Tensor:
        if metric in TOP_K:
            return top_k_accuracy(values, targets, TOP_K[metric])
        if metric == "log_loss":
            return each_probe(lambda one: log_loss(one, targets), values)
        if metric in self.metrics_of_outputs:
            positive = torch.nn.functional.one_hot(targets, self.num_classes).bool()
            mean = macro_auroc if metric == "auroc" else mean_average_precision
            return each_probe(lambda one: mean(one.double().softmax(1), positive, torch.ones_like(positive)), values)
        if metric == "accuracy":
            return (values == targets).double().mean(-1)
        by_class = {"balanced_accuracy": balanced_accuracy, "macro_f1": class_macro_f1, "kappa": cohen_kappa}
        return by_class[metric](values, targets, self.num_classes)

    def scoring_floats(self, num_probes: int) -> int:
        if self.metric in self.metrics_of_outputs:
            return super().scoring_floats(num_probes)
        # class numbers int64, whether each is right, and that as float64; or class numbers, and the counts of one probe
        return max(5 * num_probes, 2 * num_probes + 6)

    @property
    def reported(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(("balanced_accuracy", *TOP_K, self.metric)))


def class_weights(labels: Tensor, num_classes: int) -> Tensor:
    """Weights N / (C n_c) that give every class the same total; 0 for a class that does not occur. [C] float64.

    >>> class_weights(torch.tensor([0, 0, 0, 1]), num_classes=3).tolist()
    [0.4444444444444444, 1.3333333333333333, 0.0]
    """
    counts = torch.bincount(labels, minlength=num_classes).double()
    weights = len(labels) / (num_classes * counts)
    return weights.masked_fill_(counts == 0, 0.0)


TASK = Multiclass()
