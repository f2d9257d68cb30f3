"""Several probes of one head that answer as one: the mean of their probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .heads import ZooProbe
from .heads.attentive import AttentiveProbe
from .heads.linear import LinearProbe

Member = AttentiveProbe | LinearProbe | ZooProbe


class Ensemble(nn.Module):
    """The log of the mean of the members' probabilities, as class scores.

    Args:
        members: k probes of the same tokens and classes, k >= 1.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, tokens: Tensor) -> Tensor:
        """Class scores [B, C] of what each member takes."""
        return mean_of_members(torch.stack([member(tokens) for member in self.members]))


def mean_of_members(logits: Tensor) -> Tensor:
    """[k, N, C] class scores of the members -> [N, C] float32, whose exp sums to 1 over the classes.

    >>> mean_of_members(torch.tensor([[[0.0, 0.0]], [[1000.0, 0.0]]])).exp().tolist()
    [[0.75, 0.25]]
    """
    of_members = logits.double().log_softmax(-1)
    return (of_members.logsumexp(0) - math.log(len(logits))).float()
