"""Attention-based multiple-instance learning pooling."""

from __future__ import annotations

from torch import Tensor

from ..seeds import make_generator
from .attention_algebra import attend
from .head_module import HeadModule
from .head_type import HeadType
from .linear import make_linear


class AbmilpProbe(HeadModule):
    """Attention-based multiple-instance learning pooling, arXiv 1802.04712; on masked image models, arXiv 2412.03215.

        s_t = w2 . tanh(W1 x_t + b1) + b2
        logits = (sum_t softmax(s)_t x_t) Wc + bc

    b2 falls out of the softmax: its gradient is zero exactly.

    Args:
        embed_dim: D, also the width of the hidden layer.
        num_classes: C.
        seed: for the initial weights, PyTorch's default for Linear.

    Raises:
        SettingError: a size is not positive.
    """

    kind = "abmilp"

    def __init__(self, embed_dim: int, num_classes: int, *, seed: int = 0) -> None:
        super().__init__(embed_dim=embed_dim, num_classes=num_classes)
        generator = make_generator(seed, "initial weights")
        self.hidden = make_linear(embed_dim, embed_dim, generator)
        self.score = make_linear(embed_dim, 1, generator)
        self.classifier = make_linear(embed_dim, num_classes, generator)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, T, D], L2-normalised and padded -> logits [B, C]."""
        attention = attend(self.hidden(tokens).tanh(), self.score.weight)  # [B, 1, T]
        logits: Tensor = self.classifier((attention @ tokens).squeeze(1))
        return logits


HEAD = HeadType(name="abmilp", module=AbmilpProbe)
