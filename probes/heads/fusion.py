"""Attentive fusion (`probes/heads/attentive.py`) with one thing changed: CAE's head, and a layer and type embedding."""

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


class _Fusion(ZooProbe):
    """The equations of `AttentiveProbe`; abstract."""

    still: ClassVar[tuple[str, ...]] = ("proj.bias",)  # BatchNorm takes it away
    still_without_dropout: ClassVar[tuple[str, ...]] = ("norm_v.bias",)  # then each row of A sums to 1: the same
    token_mask: ClassVar[None] = None  # it looks at every token

    def _make(self, head_dim: int, generator: torch.Generator, *, affine: bool) -> None:
        self.embed_dim, self.num_heads, self.num_classes = (
            self.sizes[name] for name in ("embed_dim", "num_heads", "num_classes")
        )
        embed_dim = self.embed_dim
        inner_dim = self.num_heads * head_dim
        self.query = nn.Parameter(torch.zeros(1, embed_dim))
        self.norm_q, self.norm_k, self.norm_v = (nn.LayerNorm(embed_dim) for _ in range(3))
        self.to_q, self.to_k, self.to_v = (make_linear(embed_dim, inner_dim, generator, bias=False) for _ in range(3))
        self.proj = make_linear(inner_dim, embed_dim, generator)
        self.bn = nn.BatchNorm1d(embed_dim, affine=affine)
        self.classifier = make_linear(embed_dim, self.sizes["num_classes"], generator)

    def forward(self, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
        """Class scores.

        Args:
            tokens: [B, T, D], L2-normalised and padded.
            keep: [B, H, T] the dropout mask of the attention, 0 or 1/(1-p); None drops nothing.

        Returns:
            logits [B, C].
        """
        attention = self.attention(tokens)
        if keep is not None:
            attention = attention * keep
        pooled = attention @ layer_norm(tokens, tokens.shape[-1:])  # [B, H, D]
        # LN_v's affine part goes into the matrix: on z it would cost B H D where this costs I D
        values = project_heads(pooled, self.to_v.weight * self.norm_v.weight)  # [B, I]
        shift = self.to_v(self.norm_v.bias).view(self.num_heads, -1)  # [H, h]
        values = values + (attention.sum(2, keepdim=True) * shift).flatten(1)
        logits: Tensor = self.classifier(self.bn(self.proj(values)))
        return logits

    def attention(self, tokens: Tensor) -> Tensor:
        """Where each head looks: [B, T, D] -> [B, H, T], summing to 1 over T."""
        u = fold_query(self.to_q(self.norm_q(self.query))[0], self.to_k.weight, self.num_heads)
        return attend(layer_norm(tokens, tokens.shape[-1:]), u * self.norm_k.weight, self._offset(u))

    def _offset(self, u: Tensor) -> Tensor | None:
        """What the position of a token adds to its scores, from u [H, D]: [T, H]."""
        return None


class CaeProbe(_Fusion):
    """The attentive classifier of context autoencoders, arXiv 2202.03026.

        Q = LN_q(q) Wq    K = LN_k(X) Wk    V = LN_v(X) Wv      D -> D, no bias, H heads of width D/H
        Y = concat_heads(softmax(Q K^T / sqrt(D/H)) V) Wo + bo
        logits = BatchNorm0(Y) Wc + bc                           BatchNorm without affine part

    with H = 8 and q = 0 at first, so that it starts as the mean. Attention dropout as in the fusion head.

    Args:
        embed_dim: D.
        num_heads: H, a divisor of D.
        num_classes: C.
        seed: of the initial weights, PyTorch's default for Linear.

    Raises:
        SettingError: a size is not positive, or H does not divide D.
    """

    kind: ClassVar[str] = "cae"

    def __init__(self, embed_dim: int, num_heads: int, num_classes: int, *, seed: int = 0) -> None:
        super().__init__(embed_dim=embed_dim, num_heads=num_heads, num_classes=num_classes)
        self.check_divides("num_heads", "embed_dim")
        self._make(embed_dim // num_heads, make_generator(seed, "initial weights"), affine=False)


class AlfEmbedProbe(_Fusion):
    """Attentive layer fusion whose keys know their level and their place in it.

        K = (LN_k(X) + e_level + e_type) Wk

    and all else as in `AttentiveProbe`. Tokens come level by level, T/L of each; a type is a place among them (cls and
    ap: two types). Both embeddings start at zero: the first step is that of `alf`.

    Args:
        embed_dim: D.
        num_heads: H, from 1 to D.
        num_levels: L.
        num_tokens: T, a multiple of L.
        num_classes: C.
        seed: of the initial weights, which are those of `AttentiveProbe`.

    Raises:
        SettingError: a size is not positive, there are more heads than channels, or L does not divide T.
    """

    kind: ClassVar[str] = "alf-embed"

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_levels: int,
        num_tokens: int,
        num_classes: int,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__(
            embed_dim=embed_dim,
            num_heads=num_heads,
            num_levels=num_levels,
            num_tokens=num_tokens,
            num_classes=num_classes,
        )
        self.check_divides("num_levels", "num_tokens")
        if num_heads > embed_dim:
            raise SettingError(
                where="AlfEmbedProbe",
                expected="num_heads <= embed_dim",
                got=f"embed_dim {embed_dim}, num_heads {num_heads}",
                todo="Choose fewer heads or wider tokens.",
            )
        generator = make_generator(seed, "initial weights")
        query = torch.empty(1, embed_dim).normal_(std=0.02, generator=generator)
        self._make(2 * (embed_dim // num_heads), generator, affine=True)
        self.query = nn.Parameter(query)
        self.of_level = nn.Parameter(torch.zeros(num_levels, embed_dim))
        self.of_type = nn.Parameter(torch.zeros(num_tokens // num_levels, embed_dim))

    def _offset(self, u: Tensor) -> Tensor:
        of_token = self.of_level.unsqueeze(1) + self.of_type  # [L, T/L, D]
        return of_token.flatten(0, 1) @ u.mT
