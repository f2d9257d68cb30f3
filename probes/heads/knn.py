"""The nearest-neighbour probe: nothing is learnt, the training tokens are kept and vote.

    votes_c = sum over the k nearest training images of class c of exp(cosine / temperature)
    logits  = log(votes / sum of votes)

and where the targets are numbers, the mean of those of the k nearest images, with the same weights.

DINO's evaluation (arXiv 2104.14294, appendix A): temperature 0.07, k among 10, 20, 50, 100, 200, no class weights.
The softmax of the logits is the shares of the vote.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..errors import SettingError
from ..tasks.multiclass import Multiclass
from ..tasks.task import Task
from .features import Features, features_bytes
from .head import HeadModule, HeadType

TEMPERATURE = 0.07
MOST_NEIGHBORS = 200  # of the protocol's grid
SMALLEST_SHARE = 1e-12  # for a class without votes, whose logarithm must be finite


class KnnProbe(HeadModule):
    """Answer by the targets of the nearest training images.

    Args:
        bank: [N, F] float32, features of the training images, of unit length over F (`l2_normalize`).
        bank_labels: [N] int64 class numbers, which vote; or [N, C] float, of which the mean is taken.
        num_classes: C.
        num_neighbors: k; more than N counts as N.
        temperature: of the weights of the votes.

    Raises:
        SettingError: no images, labels that do not fit them, or a number that is not positive.
        DataError: a label is not a class number.
    """

    kind = "knn"
    bank: Tensor
    bank_labels: Tensor

    def __init__(
        self,
        bank: Tensor,
        bank_labels: Tensor,
        num_classes: int,
        *,
        num_neighbors: int,
        temperature: float = TEMPERATURE,
    ) -> None:
        shape = (len(bank), num_classes)[: bank_labels.dim()]
        fits = bank.dim() == 2 and len(bank) >= 1 and bank_labels.shape == shape
        if not (fits and num_neighbors >= 1 and temperature > 0):
            raise SettingError(
                "probes.knn_bank",
                bank=list(bank.shape),
                labels=list(bank_labels.shape),
                num_neighbors=num_neighbors,
                temperature=temperature,
            )
        if bank_labels.dim() == 1:
            Multiclass(num_classes=num_classes).check(bank_labels)
        super().__init__(
            num_samples=len(bank), num_features=bank.shape[1], num_classes=num_classes, num_neighbors=num_neighbors
        )
        self.num_features, self.num_classes = bank.shape[1], num_classes
        self.num_neighbors, self.temperature = num_neighbors, temperature
        self.register_buffer("bank", bank)
        self.register_buffer("bank_labels", bank_labels)

    @classmethod
    def restore(cls, sizes: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Self:
        others = dict(sizes)
        bank = torch.zeros(others.pop("num_samples"), others.pop("num_features"))
        are_classes = weights["bank_labels"].dim() == 1
        labels = (
            torch.zeros(len(bank), dtype=torch.int64) if are_classes else torch.zeros(len(bank), others["num_classes"])
        )
        return cls(bank, labels, **others)

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "temperature": self.temperature}

    def forward(self, features: Tensor) -> Tensor:
        """[B, F] -> outputs [B, C]: the logarithm of each class's share of the vote, or the mean targets."""
        return self._vote(*self._find_nearest(features))

    @classmethod
    def forward_each(cls, probes: Sequence[Self], features: Tensor) -> list[Tensor]:
        """Outputs [B, C] of probes that share a bank: the neighbours are found once, for the largest k."""
        cosines, neighbors = max(probes, key=lambda probe: probe.num_neighbors)._find_nearest(features)
        return [probe._vote(cosines, neighbors) for probe in probes]

    def _find_nearest(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines [B, k] and bank rows [B, k] of the nearest training images, the nearest first."""
        cosines = normalize(features, dim=-1) @ self.bank.T  # [B, N]
        nearest = cosines.topk(min(self.num_neighbors, len(self.bank)), dim=1)
        return nearest.values, nearest.indices

    def _vote(self, cosines: Tensor, neighbors: Tensor) -> Tensor:
        """Outputs [B, C] by the vote of the first k neighbours."""
        shares = (cosines[:, : self.num_neighbors] / self.temperature).softmax(1)  # [B, k]
        if self.bank_labels.dim() == 2:
            return torch.einsum("bk,bkc->bc", shares, self.bank_labels[neighbors[:, : self.num_neighbors]])
        votes = shares.new_zeros(shares.shape[0], self.num_classes)
        votes.scatter_add_(1, self.bank_labels[neighbors[:, : self.num_neighbors]], shares)
        return votes.clamp_(min=SMALLEST_SHARE).log_()


def _solve(
    features: Features, targets: Tensor, weights: Tensor, task: Task, numbers: Sequence[float]
) -> list[KnnProbe]:
    bank = features.whole()
    normalize(bank, dim=-1, out=bank)
    return [KnnProbe(bank, targets, task.num_outputs, num_neighbors=int(number)) for number in numbers]


def _bytes(num_rows: int, num_features: int, num_outputs: int, num_settings: int) -> int:
    """An upper bound of what `_solve` takes beside the features, and the cosines of a batch of 1,024 images."""
    voted = MOST_NEIGHBORS * (num_outputs + 6)  # of each image: targets, cosines and places of its neighbours
    return 2 * features_bytes(num_rows, num_features) + 4 * 1024 * (2 * num_rows + num_settings * num_outputs + voted)


HEAD = HeadType(
    name="knn",
    module=KnnProbe,
    flat=True,
    solver=_solve,
    solver_bytes=_bytes,
    tasks=("multiclass", "regression"),
    tasks_reason="its neighbours vote for classes, or their numbers are averaged",
    has_parameters=False,
    grid="num_neighbors",
)
