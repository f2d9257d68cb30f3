"""One of C classes in an order: for each but the last, whether the class lies above it, and quadratic weighted kappa.

The reduction to binary answers of Frank and Hall (ECML 2001) and of Li and Lin (NIPS 2006): output k answers class > k, by binary
cross entropy; the class is the number of answers that are yes. An error of two classes so costs about twice one of a single class.
Unlike in CORAL (arXiv 1901.07884) the outputs do not share their weights, so that every head and ridge can answer. Answers may then
contradict each other in rare cases; the probabilities of the classes are those of the answers made to fall.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..metrics import balanced_accuracy, cohen_kappa
from .multiclass import Multiclass
from .multilabel import Multilabel


@dataclass(frozen=True, kw_only=True)
class Ordinal(Multiclass):
    """Targets are class numbers from 0 to C - 1 in order, outputs C - 1 logits.

    Metrics: quadratic weighted kappa, accuracy, balanced accuracy, and the mean absolute difference of class numbers.
    """

    type = "ordinal"
    metrics = ("quadratic_kappa", "accuracy", "balanced_accuracy", "mae")
    metrics_of_outputs = ()
    target_dtype = torch.float32

    @property
    def num_outputs(self) -> int:
        return max(self.num_classes - 1, 0)

    @property
    def target_shape(self) -> tuple[int, ...]:
        return (self.num_outputs,)

    @property
    def _answers(self) -> Multilabel:
        return Multilabel(num_labels=self.num_outputs)

    def encode(self, targets: Tensor) -> Tensor:
        """Class numbers [B] -> [B, C - 1]: whether the class lies above each of the first C - 1.

        >>> Ordinal(num_classes=3).encode(torch.tensor([0, 1, 2])).tolist()
        [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]
        """
        return (targets.unsqueeze(1) > torch.arange(self.num_outputs)).to(self.target_dtype)

    def loss_and_grad(
        self, outputs: Tensor, targets: Tensor, weights: Tensor, *, batch_first: bool = False
    ) -> tuple[Tensor, Tensor]:
        return self._answers.loss_and_grad(outputs, targets, weights, batch_first=batch_first)

    def loss_each(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._answers.loss_each(outputs, targets)

    def ridge_targets(self, targets: Tensor) -> Tensor:
        return self._answers.ridge_targets(targets)

    def predict(self, outputs: Tensor) -> Tensor:
        return (outputs > 0).sum(-1)

    def probabilities(self, outputs: Tensor) -> Tensor | None:
        """The differences of the probabilities to lie above each class, each at most the one before.

        >>> Ordinal(num_classes=3).probabilities(torch.tensor([0.0, 9.0])).tolist()
        [0.5, 0.0, 0.5]
        """
        above = outputs.sigmoid().cummin(-1).values
        edge = torch.ones_like(above[..., :1])
        return torch.cat([edge, above], -1) - torch.cat([above, 0 * edge], -1)

    def evaluate(self, metric: str, values: Tensor, targets: Tensor) -> Tensor:
        if metric == "quadratic_kappa":
            return cohen_kappa(values, targets, self.num_classes, quadratic=True)
        if metric == "mae":
            return (values - targets).abs().double().mean(-1)
        if metric == "balanced_accuracy":
            return balanced_accuracy(values, targets, self.num_classes)
        return (values == targets).double().mean(-1)

    @property
    def reported(self) -> tuple[str, ...]:
        return self.metrics


TASK = Ordinal()
