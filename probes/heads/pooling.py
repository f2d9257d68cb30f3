"""Heads that pool tokens by attention and go straight to the classifier: AIM, Efficient Probing, ABMILP, SimPool."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from ..errors import SettingError
from ..seeds import make_generator
from .attend import attend, fold_query, project_heads
from .linear import make_linear
from .zoo_probe import ZooProbe

BATCH_NORM_EPS = 1e-6  # as in the code of AIM and of Efficient Probing
LAYER_NORM_EPS = 1e-6  # as in the code of SimPool


class AimProbe(ZooProbe):
    """The attention pooling of AIM, arXiv 2401.08541.

        Xn = BatchNorm0(X)                                       a channel's statistics over images and tokens
        K = Xn Wk    V = Xn Wv                                   D -> D, no bias, H heads of width D/H
        Y = mean over the M queries of concat_heads(softmax(q K^T / sqrt(D/H)) V)
        logits = Y Wc + bc

    The queries are parameters, without Wq. H = 12 (16 where D is 1024, which 12 does not divide), M = 1.

    Args:
        embed_dim: D.
        num_heads: H, a divisor of D.
        num_classes: C.
        num_queries: M.
        seed: of the initial weights; q ~ N(0, 0.02^2), the rest is PyTorch's default for Linear.

    Raises:
        SettingError: a size is not positive, or H does not divide D.
    """

    kind: ClassVar[str] = "aim"

    def __init__(
        self, embed_dim: int, num_heads: int, num_classes: int, *, num_queries: int = 1, seed: int = 0
    ) -> None:
        super().__init__(embed_dim=embed_dim, num_heads=num_heads, num_classes=num_classes, num_queries=num_queries)
        self.check_divides("num_heads", "embed_dim")
        generator = make_generator(seed, "initial weights")
        self.queries = nn.Parameter(torch.empty(num_queries, embed_dim).normal_(std=0.02, generator=generator))
        self.bn = nn.BatchNorm1d(embed_dim, affine=False, eps=BATCH_NORM_EPS)
        self.to_k, self.to_v = (make_linear(embed_dim, embed_dim, generator, bias=False) for _ in range(2))
        self.classifier = make_linear(embed_dim, num_classes, generator)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, T, D], L2-normalised and padded -> logits [B, C]."""
        num_heads = self.sizes["num_heads"]
        tokens = self.bn(tokens.flatten(0, 1)).view(tokens.shape)
        u = [fold_query(query, self.to_k.weight, num_heads) for query in self.queries]
        attention = attend(tokens, torch.cat(u))  # [B, M H, T]
        attention = attention.reshape(len(tokens), -1, num_heads, tokens.shape[1]).mean(1)  # values do not know M
        logits: Tensor = self.classifier(project_heads(attention @ tokens, self.to_v.weight))
        return logits


class EpProbe(ZooProbe):
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
        seed: of the initial weights; q ~ N(0, 0.02^2), the rest is PyTorch's default for Linear.

    Raises:
        SettingError: a size is not positive, d_o does not divide D, or M does not divide D.
    """

    kind: ClassVar[str] = "ep"

    def __init__(self, embed_dim: int, num_heads: int, num_classes: int, *, reduction: int = 1, seed: int = 0) -> None:
        super().__init__(embed_dim=embed_dim, num_heads=num_heads, num_classes=num_classes, reduction=reduction)
        width = embed_dim // reduction
        if width * reduction != embed_dim or width % num_heads:
            raise SettingError(
                where="EpProbe",
                expected="a reduction that divides embed_dim, and num_heads that divides the quotient",
                got=f"embed_dim {embed_dim}, num_heads {num_heads}, reduction {reduction}",
                todo="Choose another number of heads, which are the queries here.",
            )
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


class AbmilpProbe(ZooProbe):
    """Attention-based multiple-instance learning pooling, arXiv 1802.04712; on masked image models, arXiv 2412.03215.

        s_t = w2 . tanh(W1 x_t + b1) + b2
        logits = (sum_t softmax(s)_t x_t) Wc + bc

    b2 falls out of the softmax: its gradient is zero exactly.

    Args:
        embed_dim: D, also the width of the hidden layer.
        num_classes: C.
        seed: of the initial weights, PyTorch's default for Linear.

    Raises:
        SettingError: a size is not positive.
    """

    kind: ClassVar[str] = "abmilp"

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


class SimPoolProbe(ZooProbe):
    """SimPool, arXiv 2309.06891, without its power mean: the mean token asks, the tokens themselves are the values.

        q = mean_t(x_t) Wq    K = LN(X) Wk    V = LN(X)          D -> D, no bias, one head
        logits = (softmax(q K^T / sqrt(D)) V) Wc + bc

    Args:
        embed_dim: D.
        num_classes: C.
        seed: of the initial weights, PyTorch's default for Linear.

    Raises:
        SettingError: a size is not positive.
    """

    kind: ClassVar[str] = "simpool"

    def __init__(self, embed_dim: int, num_classes: int, *, seed: int = 0) -> None:
        super().__init__(embed_dim=embed_dim, num_classes=num_classes)
        generator = make_generator(seed, "initial weights")
        self.norm = nn.LayerNorm(embed_dim, eps=LAYER_NORM_EPS)
        self.to_q, self.to_k = (make_linear(embed_dim, embed_dim, generator, bias=False) for _ in range(2))
        self.classifier = make_linear(embed_dim, num_classes, generator)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, T, D], L2-normalised and padded -> logits [B, C]."""
        embed_dim = tokens.shape[2]
        xhat = layer_norm(tokens, (embed_dim,), eps=LAYER_NORM_EPS)
        u = self.to_q(tokens.mean(1)) @ self.to_k.weight * embed_dim**-0.5 * self.norm.weight  # [B, D]
        attention = attend(xhat, u.unsqueeze(1))  # [B, 1, T]
        pooled = (attention @ xhat).squeeze(1) * self.norm.weight + self.norm.bias
        logits: Tensor = self.classifier(pooled)
        return logits
