"""Attention with one query a head, without ever making keys or values, and the modules that several heads share.

The query of a head is one vector, so by associativity

    q . (Wk x_t) = (Wk^T q) . x_t = u . x_t           a row of scores costs T D instead of T D h
    sum_t A_t (Wv x_t) = Wv (sum_t A_t x_t) = Wv z    D h a head instead of T D h

and whatever adds the same number to the scores of all tokens (a key's bias, the bias of a LayerNorm before it) falls
out of the softmax: it is left out, so its gradient is zero exactly. In a bank the tokens stay common to all probes.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from ..errors import SettingError
from .head import HeadModule, initial_weights, make_linear

BATCH_NORM_EPS = 1e-6  # as in the code of AIM and of Efficient Probing
MLP_RATIO = 4  # width of the hidden layer of an MLP, in units of D


def fold_query(query: Tensor, weight: Tensor, num_heads: int) -> Tensor:
    """u_h = Wk_h^T q_h / sqrt(h).

    Args:
        query: [I], the heads side by side.
        weight: [I, D] of the keys.
        num_heads: H, a divisor of I.

    Returns:
        [H, D].
    """
    by_head = query.view(num_heads, 1, -1)
    u = torch.bmm(by_head, weight.view(num_heads, -1, weight.shape[1])).squeeze(1)
    return u * float(by_head.shape[2] ** -0.5)


def attend(tokens: Tensor, u: Tensor, offset: Tensor | None = None) -> Tensor:
    """softmax over T of x_t . u_h (+ offset_th): [B, T, D], [H, D], [T, H] -> [B, H, T]."""
    scores = tokens @ u.mT  # [B, T, H]
    if offset is not None:
        scores = scores + offset
    return scores.softmax(1).mT


def project_heads(pooled: Tensor, weight: Tensor) -> Tensor:
    """Wv_h z_h of every head, side by side: [B, H, D], [I, D] -> [B, I]."""
    num_heads = pooled.shape[1]
    values = pooled.transpose(0, 1) @ weight.view(num_heads, -1, weight.shape[1]).mT  # [H, B, h]
    return values.transpose(0, 1).flatten(1)


class FusionHead(HeadModule):
    """The equations of `AttentiveProbe` without keys and values; abstract.

    Args:
        seed: for the initial weights; the query is N(0, query_std^2), the rest is PyTorch's default for Linear.
        sizes: embed_dim, num_heads, num_classes, and those of the subclass.

    Attributes:
        head_width: h in units of floor(D/H).
        affine: BatchNorm has an affine part.
        query_std: standard deviation of the initial query.

    Raises:
        SettingError: a size is not positive, or there are more heads than channels.
    """

    has_dropout = True
    zero_gradient = ("proj.bias",)  # BatchNorm takes it away
    zero_gradient_without_dropout = ("norm_v.bias",)  # each row of A sums to 1, so it is a constant before BatchNorm
    head_width: ClassVar[int] = 2
    affine: ClassVar[bool] = True
    query_std: ClassVar[float] = 0.02
    token_mask: Tensor | None

    def __init__(self, *, seed: int, **sizes: int) -> None:
        super().__init__(**sizes)
        embed_dim, num_heads, num_classes = (sizes[name] for name in ("embed_dim", "num_heads", "num_classes"))
        if num_heads > embed_dim:
            raise SettingError(
                "probes.more_heads_than_channels", head=type(self).__name__, num_heads=num_heads, embed_dim=embed_dim
            )
        self.embed_dim, self.num_heads, self.num_classes = embed_dim, num_heads, num_classes
        self.head_dim = self.head_width * (embed_dim // num_heads)
        inner_dim = num_heads * self.head_dim
        generator = initial_weights(seed)
        query = torch.zeros(1, embed_dim)
        self.query = nn.Parameter(query.normal_(std=self.query_std, generator=generator) if self.query_std else query)
        self.norm_q, self.norm_k, self.norm_v = (nn.LayerNorm(embed_dim) for _ in range(3))
        self.to_q, self.to_k, self.to_v = (make_linear(embed_dim, inner_dim, generator, bias=False) for _ in range(3))
        self.proj = make_linear(inner_dim, embed_dim, generator)
        self.bn = nn.BatchNorm1d(embed_dim, affine=self.affine)
        self.classifier = make_linear(embed_dim, num_classes, generator)
        self.register_buffer("token_mask", None)

    def forward(self, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
        """Class scores.

        Args:
            tokens: [B, T, D], L2-normalised and padded.
            keep: [B, H, T] dropout mask of the attention, 0 or 1/(1-p); None drops nothing.

        Returns:
            logits [B, C].
        """
        attention = self.attention(tokens)
        if keep is not None:
            attention = attention * keep
        logits: Tensor = self.classifier(self.bn(self.proj(self._pool(tokens, attention))))
        return logits

    def attention(self, tokens: Tensor) -> Tensor:
        """The attention of each head, summing to 1 over T: [B, T, D] -> [B, H, T]."""
        u = fold_query(self.to_q(self.norm_q(self.query))[0], self.to_k.weight, self.num_heads)
        return attend(layer_norm(tokens, tokens.shape[-1:]), u * self.norm_k.weight, self._offset(u))

    def _pool(self, tokens: Tensor, attention: Tensor) -> Tensor:
        """concat_heads(A V): [B, T, D], [B, H, T] -> [B, I]."""
        z = attention @ layer_norm(tokens, tokens.shape[-1:])  # [B, H, D]
        # LN_v's affine part goes into the matrix: on z it would cost B H D instead of I D
        values = project_heads(z, self.to_v.weight * self.norm_v.weight)  # [B, I]
        shift = self.to_v(self.norm_v.bias).view(self.num_heads, -1)  # [H, h]
        pooled: Tensor = values + (attention.sum(2, keepdim=True) * shift).flatten(1)
        return pooled

    def _offset(self, u: Tensor) -> Tensor | None:
        """The scores [T, H] that the position of a token adds, from u [H, D]."""
        return None
