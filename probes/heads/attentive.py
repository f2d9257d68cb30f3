"""The attentive probe as its equation: for reading, for export, and as the oracle of the tests.

`banks/bank.py` trains it and computes the same function some twenty times cheaper. This module knows nothing of sweeps, optimisers
or random numbers: attention dropout comes in as a mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor

from ..errors import SettingError
from .attention import FusionHead
from .head import Form, HeadType


class AttentiveProbe(FusionHead):
    """One learned query attends over the tokens of an image; a linear classifier reads the result.

        Q = LN_q(q) Wq    K = LN_k(X) Wk    V = LN_v(X) Wv      D -> I, no bias, H heads of width h
        A = softmax(Q K^T / sqrt(h))                             one row a head, over the T tokens
        Y = concat_heads(A V) Wo + bo                            I -> D
        logits = BatchNorm(Y) Wc + bc

    with h = 2 floor(D/H) and I = H h: attentive layer fusion, arXiv 2601.09322, section 3. No residual, no
    MLP, no layer or position embedding.

    Sizes: H is at most D. Initial weights: q ~ N(0, 0.02^2).

    Args:
        token_mask: [T] bool, the tokens that the probe may attend to; None for all.

    Raises:
        SettingError: the mask is not a bool vector with at least one True.
    """

    kind = "attentive"

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_classes: int,
        *,
        seed: int = 0,
        token_mask: Tensor | None = None,
    ) -> None:
        super().__init__(seed=seed, embed_dim=embed_dim, num_heads=num_heads, num_classes=num_classes)
        if token_mask is not None and not (
            token_mask.dim() == 1 and token_mask.dtype == torch.bool and bool(token_mask.any())
        ):
            raise SettingError(
                "probes.token_mask",
                dtype=token_mask.dtype,
                shape=list(token_mask.shape),
                num_tokens=int(token_mask.sum()),
            )
        self.token_mask = token_mask

    @classmethod
    def restore(cls, sizes: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Self:
        mask = weights.get("token_mask")
        return cls(**sizes, token_mask=None if mask is None else torch.ones_like(mask))

    def attention(self, tokens: Tensor) -> Tensor:
        query = self._split_heads(self.to_q(self.norm_q(self.query)))[0]  # [H, h]
        keys = self._split_heads(self.to_k(self.norm_k(tokens)))  # [B, T, H, h]
        logits = torch.einsum("hi,bthi->bht", query, keys) * self.head_dim**-0.5
        if self.token_mask is not None:
            logits = logits.masked_fill(~self.token_mask, -torch.inf)
        attention: Tensor = logits.softmax(-1)
        return attention

    def _pool(self, tokens: Tensor, attention: Tensor) -> Tensor:
        values = self._split_heads(self.to_v(self.norm_v(tokens)))  # [B, T, H, h]
        return torch.einsum("bht,bthi->bhi", attention, values).flatten(1)

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.num_heads, self.head_dim)


MANY_HEADS = (24, 48)  # the paper's number for two kinds of all levels

HEAD = HeadType(
    name="attentive",
    module=AttentiveProbe,
    layers="all",
    kinds=("cls", "ap"),
    num_heads="one a token",
    removable_levels=True,
    bank="folded",
    own_forms=(
        Form(text="attn-{layers}", kinds=("cls", "ap")),
        Form(text="attn-{layers}-{kind}"),
        Form(text="alf", layers="all", kinds=("cls", "ap")),
        Form(text="alf-{kind}", layers="all"),
        Form(text="alf-{grid}", layers="all", kinds=("cls",), num_heads=MANY_HEADS),
        Form(text="alf-{grid}-{layers}", kinds=("cls",), num_heads=MANY_HEADS),
        Form(text="aat", kinds=("cls", "patch"), num_heads=(8, 8)),
        Form(text="aat@{level}", kinds=("cls", "patch"), num_heads=(8, 8)),
        Form(
            text="aat-quarterly",
            layers="quarterly",
            kinds=("cls", "patch"),
            num_heads=MANY_HEADS,
            protocol={"dropouts": (0.5,), "weight_decays": (1.0,), "jitter_probability": 0.9},
        ),
    ),
)
