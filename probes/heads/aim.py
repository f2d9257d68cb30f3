"""The attention pooling of AIM."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .attention import BATCH_NORM_EPS, attend, fold_query, project_heads
from .head import HeadModule, HeadType, initial_weights, make_linear


class AimProbe(HeadModule):
    """The attention pooling of AIM, arXiv 2401.08541.

        Xn = BatchNorm0(X)                                       a channel's statistics over images and tokens
        K = Xn Wk    V = Xn Wv                                   D -> D, no bias, H heads of width D/H
        Y = mean over the M queries of concat_heads(softmax(q K^T / sqrt(D/H)) V)
        logits = Y Wc + bc

    The queries are parameters, without Wq. H = 12 (16 where D is 1024, which 12 does not divide), M = 1.

    Sizes: H divides D. Initial weights: q ~ N(0, 0.02^2).
    """

    kind = "aim"

    def __init__(
        self, embed_dim: int, num_heads: int, num_classes: int, *, num_queries: int = 1, seed: int = 0
    ) -> None:
        super().__init__(embed_dim=embed_dim, num_heads=num_heads, num_classes=num_classes, num_queries=num_queries)
        self.check_divides("num_heads", "embed_dim")
        generator = initial_weights(seed)
        self.queries = nn.Parameter(torch.empty(num_queries, embed_dim).normal_(std=0.02, generator=generator))
        self.bn = nn.BatchNorm1d(embed_dim, affine=False, eps=BATCH_NORM_EPS)
        self.to_k, self.to_v = (make_linear(embed_dim, embed_dim, generator, bias=False) for _ in range(2))
        self.classifier = make_linear(embed_dim, num_classes, generator)

    def pool(self, tokens: Tensor) -> Tensor:
        num_heads = self.sizes["num_heads"]
        tokens = self.bn(tokens.flatten(0, 1)).view(tokens.shape)
        u = [fold_query(query, self.to_k.weight, num_heads) for query in self.queries]
        attention = attend(tokens, torch.cat(u))  # [B, M H, T]
        attention = attention.reshape(tokens.shape[0], -1, num_heads, tokens.shape[1]).mean(1)  # values do not know M
        return project_heads(attention @ tokens, self.to_v.weight)


HEAD = HeadType(name="aim", module=AimProbe, num_heads=(12, 16))
