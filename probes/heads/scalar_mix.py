"""A weighted mean of the levels: the cheapest fusion there is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .head import HeadModule, HeadType, initial_weights, make_linear


class ScalarMixProbe(HeadModule):
    """The scalar mix of ELMo, arXiv 1802.05365, equation 1.

        logits = (g sum_l softmax(w)_l x_l) Wc + bc

    x_l [T/L D] are the tokens of level l side by side (cls and ap: 2D); tokens come level by level.

    Sizes: L divides T. Initial weights: w = 0 and g = 1, the mean.
    """

    kind = "scalar-mix"

    def __init__(self, embed_dim: int, num_levels: int, num_tokens: int, num_classes: int, *, seed: int = 0) -> None:
        super().__init__(embed_dim=embed_dim, num_levels=num_levels, num_tokens=num_tokens, num_classes=num_classes)
        self.check_divides("num_levels", "num_tokens")
        self.weights = nn.Parameter(torch.zeros(num_levels))
        self.scale = nn.Parameter(torch.ones(1))
        num_features = num_tokens // num_levels * embed_dim
        self.classifier = make_linear(num_features, num_classes, initial_weights(seed))

    def pool(self, tokens: Tensor) -> Tensor:
        levels = tokens.reshape(tokens.shape[0], self.sizes["num_levels"], -1)  # [B, L, T/L D]
        return (self.weights.softmax(0) @ levels) * self.scale  # [B, T/L D]


HEAD = HeadType(name="scalar-mix", module=ScalarMixProbe, layers="all", kinds=("cls", "ap"), has_levels=True)
