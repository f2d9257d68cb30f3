"""The attentive classifier of context autoencoders."""

from __future__ import annotations

from .attention import FusionHead
from .head import HeadType


class CaeProbe(FusionHead):
    """The attentive classifier of context autoencoders, arXiv 2202.03026.

        Q = LN_q(q) Wq    K = LN_k(X) Wk    V = LN_v(X) Wv      D -> D, no bias, H heads of width D/H
        Y = concat_heads(softmax(Q K^T / sqrt(D/H)) V) Wo + bo
        logits = BatchNorm0(Y) Wc + bc                           BatchNorm without affine part

    with H = 8 and q = 0 at first, so that it starts as the mean. Attention dropout as in `AttentiveProbe`.

    Sizes: H divides D.
    """

    kind = "cae"
    head_width = 1
    affine = False
    query_std = 0.0

    def __init__(self, embed_dim: int, num_heads: int, num_classes: int, *, seed: int = 0) -> None:
        super().__init__(seed=seed, embed_dim=embed_dim, num_heads=num_heads, num_classes=num_classes)
        self.check_divides("num_heads", "embed_dim")


HEAD = HeadType(name="cae", module=CaeProbe, num_heads=(8, 8), bank="folded")
