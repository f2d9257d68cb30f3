"""A weighted mean of the levels: the cheapest fusion there is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..seeds import make_generator
from .head_module import HeadModule
from .head_type import HeadType
from .linear import make_linear


class ScalarMixProbe(HeadModule):
    """The scalar mix of ELMo, arXiv 1802.05365, equation 1.

        logits = (g sum_l softmax(w)_l x_l) Wc + bc

    x_l [T/L D] are the tokens of level l side by side (cls and ap: 2D); tokens come level by level.

    Args:
        embed_dim: D.
        num_levels: L.
        num_tokens: T, a multiple of L.
        num_classes: C.
        seed: for the classifier, PyTorch's default for Linear; w = 0 and g = 1 at first: the mean.

    Raises:
        SettingError: a size is not positive, or L does not divide T.
    """

    kind = "scalar-mix"

    def __init__(self, embed_dim: int, num_levels: int, num_tokens: int, num_classes: int, *, seed: int = 0) -> None:
        super().__init__(embed_dim=embed_dim, num_levels=num_levels, num_tokens=num_tokens, num_classes=num_classes)
        self.check_divides("num_levels", "num_tokens")
        self.weights = nn.Parameter(torch.zeros(num_levels))
        self.scale = nn.Parameter(torch.ones(1))
        num_features = num_tokens // num_levels * embed_dim
        self.classifier = make_linear(num_features, num_classes, make_generator(seed, "initial weights"))

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, T, D], L2-normalised and padded -> logits [B, C]."""
        levels = tokens.reshape(len(tokens), self.sizes["num_levels"], -1)  # [B, L, T/L D]
        mixed = (self.weights.softmax(0) @ levels) * self.scale  # [B, T/L D]
        logits: Tensor = self.classifier(mixed)
        return logits


HEAD = HeadType(name="scalar-mix", module=ScalarMixProbe, layers="all", kinds=("cls", "ap"), has_levels=True)
