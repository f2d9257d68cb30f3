"""Efficient Probing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import SettingError
from ..seeds import make_generator
from .attention_algebra import BATCH_NORM_EPS, attend, project_heads
from .head_module import HeadModule
from .head_type import HeadType
from .linear import make_linear


class EpProbe(HeadModule):
    """Efficient Probing, arXiv 2506.10178: each of M queries weighs the tokens for its slice of the values.

        A_j = softmax_t(q_j . x_t / sqrt(D))                     no Wq, no Wk
        V = X Wv                                                 D -> D/d_o, no bias, M slices
        Y = concat_j(A_j V_j)
        logits = BatchNorm0(Y) Wc + bc

    A query is a head here: num_heads is M, 32 in the paper; d_o is 1.

    Args:
        embed_dim: D.
        num_heads: M, a divisor of D/d_o.
        num_classes: C.
        reduction: d_o, a divisor of D.
        seed: for the initial weights; q ~ N(0, 0.02^2), the rest is PyTorch's default for Linear.

    Raises:
        SettingError: a size is not positive, d_o does not divide D, or M does not divide D.
    """

    kind = "ep"

    def __init__(self, embed_dim: int, num_heads: int, num_classes: int, *, reduction: int = 1, seed: int = 0) -> None:
        super().__init__(embed_dim=embed_dim, num_heads=num_heads, num_classes=num_classes, reduction=reduction)
        width = embed_dim // reduction
        if width * reduction != embed_dim or width % num_heads:
            raise SettingError("probes.ep_slices", embed_dim=embed_dim, num_heads=num_heads, reduction=reduction)
        generator = make_generator(seed, "initial weights")
        self.queries = nn.Parameter(torch.empty(num_heads, embed_dim).normal_(std=0.02, generator=generator))
        self.to_v = make_linear(embed_dim, width, generator, bias=False)
        self.bn = nn.BatchNorm1d(width, affine=False, eps=BATCH_NORM_EPS)
        self.classifier = make_linear(width, num_classes, generator)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, T, D], L2-normalised and padded -> logits [B, C]."""
        attention = attend(tokens, self.queries * tokens.shape[2] ** -0.5)
        logits: Tensor = self.classifier(self.bn(project_heads(attention @ tokens, self.to_v.weight)))
        return logits


HEAD = HeadType(name="ep", module=EpProbe, num_heads=(32, 32))
