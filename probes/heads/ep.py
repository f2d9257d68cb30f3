"""Efficient Probing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import SettingError
from .attention import BATCH_NORM_EPS, attend, project_heads
from .head import HeadModule, HeadType, initial_weights, make_linear


class EpProbe(HeadModule):
    """Efficient Probing, arXiv 2506.10178: each of M queries weighs the tokens for its slice of the values.

        A_j = softmax_t(q_j . x_t / sqrt(D))                     no Wq, no Wk
        V = X Wv                                                 D -> D/d_o, no bias, M slices
        Y = concat_j(A_j V_j)
        logits = BatchNorm0(Y) Wc + bc

    A query is a head here: num_heads is M, 32 in the paper; `reduction` is d_o.

    Sizes: d_o, 1 by default, divides D; M divides D/d_o. Initial weights: q ~ N(0, 0.02^2).
    """

    kind = "ep"

    def __init__(self, embed_dim: int, num_heads: int, num_classes: int, *, reduction: int = 1, seed: int = 0) -> None:
        super().__init__(embed_dim=embed_dim, num_heads=num_heads, num_classes=num_classes, reduction=reduction)
        width = embed_dim // reduction
        if width * reduction != embed_dim or width % num_heads:
            raise SettingError("probes.ep_slices", embed_dim=embed_dim, num_heads=num_heads, reduction=reduction)
        generator = initial_weights(seed)
        self.queries = nn.Parameter(torch.empty(num_heads, embed_dim).normal_(std=0.02, generator=generator))
        self.to_v = make_linear(embed_dim, width, generator, bias=False)
        self.bn = nn.BatchNorm1d(width, affine=False, eps=BATCH_NORM_EPS)
        self.classifier = make_linear(width, num_classes, generator)

    def pool(self, tokens: Tensor) -> Tensor:
        attention = attend(tokens, self.queries * tokens.shape[2] ** -0.5)
        pooled: Tensor = self.bn(project_heads(attention @ tokens, self.to_v.weight))
        return pooled


HEAD = HeadType(name="ep", module=EpProbe, num_heads=(32, 32))
