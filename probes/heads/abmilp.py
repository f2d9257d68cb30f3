"""Attention-based multiple-instance learning pooling."""

from __future__ import annotations

from torch import Tensor

from .attention import attend
from .head import HeadModule, HeadType, initial_weights, make_linear


class AbmilpProbe(HeadModule):
    """Attention-based multiple-instance learning pooling, arXiv 1802.04712; on masked image models, arXiv 2412.03215.

        s_t = w2 . tanh(W1 x_t + b1) + b2
        logits = (sum_t softmax(s)_t x_t) Wc + bc

    b2 falls out of the softmax: its gradient is zero exactly.
    """

    kind = "abmilp"

    def __init__(self, embed_dim: int, num_classes: int, *, seed: int = 0) -> None:
        super().__init__(embed_dim=embed_dim, num_classes=num_classes)
        generator = initial_weights(seed)
        self.hidden = make_linear(embed_dim, embed_dim, generator)
        self.score = make_linear(embed_dim, 1, generator)
        self.classifier = make_linear(embed_dim, num_classes, generator)

    def pool(self, tokens: Tensor) -> Tensor:
        attention = attend(self.hidden(tokens).tanh(), self.score.weight)  # [B, 1, T]
        return (attention @ tokens).squeeze(1)


HEAD = HeadType(name="abmilp", module=AbmilpProbe)
