"""The attentive probe as its equation: the reading copy, the export format, the oracle of the tests.

It is trained by `bank.py`, which computes the same function some twenty times cheaper. It knows nothing of
sweeps, optimisers or random numbers: attention dropout comes in as a ready mask.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import SettingError
from ..seeds import make_generator
from .linear import make_linear


class AttentiveProbe(nn.Module):
    """One learned query attends over the tokens of an image; a linear classifier reads what it gathered.

        Q = LN_q(q) Wq    K = LN_k(X) Wk    V = LN_v(X) Wv      D -> I, no bias, H heads of width h
        A = softmax(Q K^T / sqrt(h))                             one row a head, over the T tokens
        Y = concat_heads(A V) Wo + bo                            I -> D
        logits = BatchNorm(Y) Wc + bc

    with h = 2 floor(D/H) and I = H h: attentive layer fusion, arXiv 2601.09322, section 3. No residual, no
    MLP, no layer or position embedding.

    Args:
        embed_dim: D, the width of a token.
        num_heads: H, from 1 to D.
        num_classes: C.
        seed: of the initial weights; q ~ N(0, 0.02^2), the rest is PyTorch's default for Linear.
        token_mask: [T] bool, the tokens the probe may look at; None for all.

    Raises:
        SettingError: a size is not positive, there are more heads than channels, or the mask is empty.
    """

    token_mask: Tensor | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_classes: int,
        *,
        seed: int = 0,
        token_mask: Tensor | None = None,
    ) -> None:
        super().__init__()
        if not (1 <= num_heads <= embed_dim and num_classes >= 1):
            raise SettingError(
                where="AttentiveProbe",
                expected="1 <= num_heads <= embed_dim and num_classes >= 1",
                got=f"embed_dim {embed_dim}, num_heads {num_heads}, num_classes {num_classes}",
                todo="Choose fewer heads or wider tokens.",
            )
        if token_mask is not None and not (
            token_mask.dim() == 1 and token_mask.dtype == torch.bool and bool(token_mask.any())
        ):
            raise SettingError(
                where="AttentiveProbe token_mask",
                expected="a bool vector with at least one True",
                got=f"{token_mask.dtype} {list(token_mask.shape)} with {int(token_mask.sum())} set",
                todo="Leave the probe at least one token to look at.",
            )
        self.embed_dim, self.num_heads, self.num_classes = embed_dim, num_heads, num_classes
        self.head_dim = 2 * (embed_dim // num_heads)
        inner_dim = num_heads * self.head_dim

        generator = make_generator(seed, "initial weights")
        self.query = nn.Parameter(torch.empty(1, embed_dim).normal_(std=0.02, generator=generator))
        self.norm_q, self.norm_k, self.norm_v = (nn.LayerNorm(embed_dim) for _ in range(3))
        self.to_q, self.to_k, self.to_v = (make_linear(embed_dim, inner_dim, generator, bias=False) for _ in range(3))
        self.proj = make_linear(inner_dim, embed_dim, generator)
        self.bn = nn.BatchNorm1d(embed_dim)
        self.classifier = make_linear(embed_dim, num_classes, generator)
        self.register_buffer("token_mask", token_mask)

    def forward(self, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
        """Class scores.

        Args:
            tokens: [B, T, D], L2-normalised and padded.
            keep: [B, H, T] the dropout mask of the attention, 0 or 1/(1-p); None drops nothing.

        Returns:
            logits [B, C].
        """
        attention = self.attention(tokens)  # [B, H, T]
        if keep is not None:
            attention = attention * keep
        values = self._split_heads(self.to_v(self.norm_v(tokens)))  # [B, T, H, h]
        pooled = torch.einsum("bht,bthi->bhi", attention, values).flatten(1)  # [B, I]
        logits: Tensor = self.classifier(self.bn(self.proj(pooled)))
        return logits

    def attention(self, tokens: Tensor) -> Tensor:
        """Where each head looks: [B, T, D] -> [B, H, T], summing to 1 over T."""
        query = self._split_heads(self.to_q(self.norm_q(self.query)))[0]  # [H, h]
        keys = self._split_heads(self.to_k(self.norm_k(tokens)))  # [B, T, H, h]
        logits = torch.einsum("hi,bthi->bht", query, keys) * self.head_dim**-0.5
        if self.token_mask is not None:
            logits = logits.masked_fill(~self.token_mask, -torch.inf)
        attention: Tensor = logits.softmax(-1)
        return attention

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.num_heads, self.head_dim)
