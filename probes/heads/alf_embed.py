"""Attentive layer fusion with an embedding of the level and the type of a token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .attention import FusionHead
from .head import HeadType


class AlfEmbedProbe(FusionHead):
    """Attentive layer fusion whose keys have embeddings of their level and of their place in it.

        K = (LN_k(X) + e_level + e_type) Wk

    and all else as in `AttentiveProbe`. Tokens come level by level, T/L of each; a type is a place among them (cls and
    ap: two types). Both embeddings start at zero: the first step is that of `alf`.

    Sizes: H is at most D, L divides T. Initial weights: those of `AttentiveProbe` of the same seed.
    """

    kind = "alf-embed"

    def __init__(
        self, embed_dim: int, num_heads: int, num_levels: int, num_tokens: int, num_classes: int, *, seed: int = 0
    ) -> None:
        super().__init__(
            seed=seed,
            embed_dim=embed_dim,
            num_heads=num_heads,
            num_levels=num_levels,
            num_tokens=num_tokens,
            num_classes=num_classes,
        )
        self.check_divides("num_levels", "num_tokens")
        self.of_level = nn.Parameter(torch.zeros(num_levels, embed_dim))
        self.of_type = nn.Parameter(torch.zeros(num_tokens // num_levels, embed_dim))

    def _offset(self, u: Tensor) -> Tensor:
        of_token = self.of_level.unsqueeze(1) + self.of_type  # [L, T/L, D]
        return of_token.flatten(0, 1) @ u.mT


HEAD = HeadType(
    name="alf-embed",
    module=AlfEmbedProbe,
    layers="all",
    kinds=("cls", "ap"),
    num_heads="one a token",
    has_levels=True,
    bank="folded",
)
