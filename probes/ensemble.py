"""Several probes of one head whose probabilities are averaged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .heads import HeadModule


class Ensemble(nn.Module):
    """The log of the mean of the members' probabilities, as class scores.

    Args:
        members: k probes of the same tokens and classes, k >= 1.
    """

    kind: ClassVar[str] = "ensemble"

    def __init__(self, members: Sequence[HeadModule]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, tokens: Tensor) -> Tensor:
        """Class scores [B, C] of the tokens that each member takes."""
        return mean_of_members(torch.stack([member(tokens) for member in self.members]))

    def describe(self) -> dict[str, Any]:
        """The descriptions of the members, as in `HeadModule.describe`."""
        members: list[Any] = list(self.members)
        return {"kind": self.kind, "members": [member.describe() for member in members]}


def mean_of_members(logits: Tensor) -> Tensor:
    """Class scores [k, N, C] of the members -> [N, C] float32, whose exp sums to 1 over the classes.

    >>> mean_of_members(torch.tensor([[[0.0, 0.0]], [[1000.0, 0.0]]])).exp().tolist()
    [[0.75, 0.25]]
    """
    log_probabilities = logits.double().log_softmax(-1)
    return (log_probabilities.logsumexp(0) - math.log(len(logits))).float()
