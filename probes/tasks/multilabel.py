"""Several labels an image, each present, absent or unknown: binary cross entropy of what is known, and mean average precision."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from ..errors import DataError
from ..metrics import label_macro_f1, macro_auroc, mean_average_precision
from .task import Task, align, each_probe

UNKNOWN = -1


@dataclass(frozen=True, kw_only=True)
class Multilabel(Task):
    """Targets are [N, C] of 1 (present), 0 (absent), and -1 or NaN (unknown); outputs are logits.

    The loss of an image is the sum over its known labels, divided by C: every known label has the same weight. An unknown label is
    part of no loss and no metric. A label without positives among the images of a metric is not part of its mean.

    Args:
        num_labels: C.
    """

    type = "multilabel"
    metrics = ("map", "auroc", "macro_f1")
    metrics_of_outputs = ("map", "auroc")
    target_dtype = torch.float32
    fitted = ("num_labels",)

    num_labels: int = 0

    @property
    def num_outputs(self) -> int:
        return self.num_labels

    @property
    def num_strata(self) -> int:
        return self.num_labels + 1

    def for_data(self, num_classes: int, num_columns: int) -> Self:
        return replace(self, num_labels=num_columns or num_classes)

    def check(self, targets: Tensor) -> None:
        shape = tuple(targets.shape)
        if shape[1:] != (self.num_labels,):
            raise DataError(
                "probes.targets_of_other_shape", task=self, expected=f"[N, {self.num_labels}]", got=list(shape)
            )
        values = targets.nan_to_num(UNKNOWN) if targets.is_floating_point() else targets
        wrong = ((values != 0) & (values != 1) & (values != UNKNOWN)).any(1)
        if wrong.any():
            value = values[wrong][0]
            raise DataError("probes.labels_not_binary", num_wrong=int(wrong.sum()), first=value.tolist())

    def strata(self, targets: Tensor) -> Tensor:
        """The rarest label that is present in each image, so that rare labels lie on both sides of a split; C where none is."""
        present = targets == 1
        counts = present.sum(0).expand(present.shape).masked_fill(~present, len(targets) + 1)
        rarest = counts.argmin(1)
        return torch.where(present.any(1), rarest, self.num_labels)

    def encode(self, targets: Tensor) -> Tensor:
        return torch.where(targets >= 0, targets, UNKNOWN).to(self.target_dtype)

    def loss_and_grad(
        self, outputs: Tensor, targets: Tensor, weights: Tensor, *, batch_first: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Binary cross entropy, as in `Task.loss_and_grad`.

        >>> loss, gradient = Multilabel(num_labels=2).loss_and_grad(
        ...     torch.zeros(1, 1, 2), torch.tensor([[1.0, -1.0]]), torch.ones(1)
        ... )
        >>> round(loss.item(), 4), gradient.tolist()
        (0.3466, [[[-0.25, 0.0]]])
        """
        of_labels, known = _labels_and_known(targets.to(outputs.dtype).unsqueeze(1 if batch_first else 0))
        factors = known * align(weights, batch_first=batch_first) / outputs.shape[2]
        of_labels = of_labels.expand_as(outputs)
        each = binary_cross_entropy_with_logits(outputs, of_labels, reduction="none").mul_(factors)
        return each.sum((0 if batch_first else 1, 2)), outputs.sigmoid_().sub_(of_labels).mul_(factors)

    def loss_each(self, outputs: Tensor, targets: Tensor) -> Tensor:
        of_labels, known = _labels_and_known(targets.to(outputs.dtype))
        return (binary_cross_entropy_with_logits(outputs, of_labels, reduction="none") * known).mean(1)

    def ridge_targets(self, targets: Tensor) -> Tensor:
        """1, -1, and 0 for unknown labels, which pull the output to where neither answer lies."""
        return torch.where(targets >= 0, 2 * targets - 1, 0).double()

    def predict(self, outputs: Tensor) -> Tensor:
        """[..., C] int64, 1 for a label whose probability is above a half."""
        return (outputs > 0).long()

    def probabilities(self, outputs: Tensor) -> Tensor | None:
        return outputs.sigmoid()

    def evaluate(self, metric: str, values: Tensor, targets: Tensor) -> Tensor:
        positive, known = targets == 1, targets >= 0
        if metric == "macro_f1":
            return each_probe(lambda one: label_macro_f1(one == 1, positive, known), values)
        mean = macro_auroc if metric == "auroc" else mean_average_precision
        return each_probe(lambda one: mean(one, positive, known), values)


def _labels_and_known(targets: Tensor) -> tuple[Tensor, Tensor]:
    """Encoded targets as labels, 0 for unknown ones, and 1 where they are known, else 0."""
    return targets.clamp(min=0), (targets >= 0).to(targets.dtype)


TASK = Multilabel()
