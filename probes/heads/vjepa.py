"""The attentive probe of V-JEPA."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm

from .attention import MLP_RATIO, attend, fold_query, project_heads
from .head import HeadModule, HeadType, initial_weights, make_linear


class VJepaProbe(HeadModule):
    """The attentive probe of V-JEPA, arXiv 2404.08471: one cross-attention block, then the classifier.

        Q = q Wq + bq    K = LN_1(X) Wk + bk    V = LN_1(X) Wv + bv    D -> D, H heads of width D/H
        r = q + concat_heads(softmax(Q K^T / sqrt(D/H)) V)
        logits = (r + W2 gelu(W1 LN_2(r) + b1) + b2) Wc + bc           W1 D -> 4D, W2 4D -> D

    H = 12, 16 where D is 1024. bk falls out of the softmax: its gradient is zero exactly. The attention has no output projection:
    the published module makes one and never calls it (facebookresearch/jepa, issue 94).

    Sizes: H divides D. Initial weights, as in its code: all N(0, 0.02^2) within two deviations, W2 over sqrt(2), biases 0; the
    classifier is PyTorch's default for Linear, as in every head here.
    """

    kind = "vjepa"

    def __init__(self, embed_dim: int, num_heads: int, num_classes: int, *, seed: int = 0) -> None:
        super().__init__(embed_dim=embed_dim, num_heads=num_heads, num_classes=num_classes)
        self.check_divides("num_heads", "embed_dim")
        generator = initial_weights(seed)
        self.query = nn.Parameter(torch.zeros(1, embed_dim))
        self.norm1, self.norm2 = nn.LayerNorm(embed_dim), nn.LayerNorm(embed_dim)
        self.to_q, self.to_k, self.to_v = (make_linear(embed_dim, embed_dim, generator) for _ in range(3))
        self.fc1 = make_linear(embed_dim, MLP_RATIO * embed_dim, generator)
        self.fc2 = make_linear(MLP_RATIO * embed_dim, embed_dim, generator)
        self.classifier = make_linear(embed_dim, num_classes, generator)
        layers = (self.to_q, self.to_k, self.to_v, self.fc1, self.fc2)
        with torch.no_grad():
            for weight in (self.query, *(layer.weight for layer in layers)):
                nn.init.trunc_normal_(weight, std=0.02, a=-0.04, b=0.04, generator=generator)
            for layer in layers:
                layer.bias.zero_()
            self.fc2.weight.div_(2**0.5)

    def pool(self, tokens: Tensor) -> Tensor:
        xhat = layer_norm(tokens, tokens.shape[-1:])
        u = fold_query(self.to_q(self.query)[0], self.to_k.weight, self.sizes["num_heads"]) * self.norm1.weight
        # LN_1's affine part goes into the matrix: on what is pooled it would cost B H D where this costs D^2
        values = project_heads(attend(xhat, u) @ xhat, self.to_v.weight * self.norm1.weight)  # [B, D]
        x: Tensor = self.query + values + self.to_v(self.norm1.bias)
        update: Tensor = self.fc2(gelu(self.fc1(self.norm2(x))))
        return x + update


HEAD = HeadType(name="vjepa", module=VJepaProbe, num_heads=(12, 16), version=2)
