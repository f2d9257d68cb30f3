"""Multihead attention pooling, the head of SigLIP."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from .attention import MLP_RATIO, attend, fold_query, project_heads
from .head import HeadModule, HeadType, initial_weights, make_linear


class MapProbe(HeadModule):
    """Multihead attention pooling, the head of SigLIP and of the Perception Encoder; arXiv 2106.04560, big_vision's code.

        Q = q Wq + bq    K = X Wk + bk    V = X Wv + bv    D -> D, H heads of width D/H
        r = concat_heads(softmax(Q K^T / sqrt(D/H)) V) Wo + bo
        logits = (r + W2 gelu(W1 LN(r) + b1) + b2) Wc + bc           W1 D -> 4D, W2 4D -> D

    H = 12, 16 where D is 1024; gelu by its tanh formula. bk falls out of the softmax: its gradient is zero exactly.

    Sizes: H divides D. Initial weights, as in its code: Xavier uniform, biases 0 except those of the MLP, N(0, 1e-6^2); the
    classifier is PyTorch's default for Linear, as in every head here.
    """

    kind = "map"

    def __init__(self, embed_dim: int, num_heads: int, num_classes: int, *, seed: int = 0) -> None:
        super().__init__(embed_dim=embed_dim, num_heads=num_heads, num_classes=num_classes)
        self.check_divides("num_heads", "embed_dim")
        generator = initial_weights(seed)
        self.query = nn.Parameter(torch.zeros(1, embed_dim))
        self.to_q, self.to_k, self.to_v, self.proj = (make_linear(embed_dim, embed_dim, generator) for _ in range(4))
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.fc1 = make_linear(embed_dim, MLP_RATIO * embed_dim, generator)
        self.fc2 = make_linear(MLP_RATIO * embed_dim, embed_dim, generator)
        self.classifier = make_linear(embed_dim, num_classes, generator)
        attention, mlp = (self.to_q, self.to_k, self.to_v, self.proj), (self.fc1, self.fc2)
        for weight in (self.query, *(layer.weight for layer in (*attention, *mlp))):
            nn.init.xavier_uniform_(weight, generator=generator)
        for layer in attention:
            nn.init.zeros_(layer.bias)
        for layer in mlp:
            nn.init.normal_(layer.bias, std=1e-6, generator=generator)

    def pool(self, tokens: Tensor) -> Tensor:
        u = fold_query(self.to_q(self.query)[0], self.to_k.weight, self.sizes["num_heads"])
        pooled = attend(tokens, u) @ tokens  # [B, H, D]
        x: Tensor = self.proj(project_heads(pooled, self.to_v.weight) + self.to_v.bias)
        update: Tensor = self.fc2(gelu(self.fc1(self.norm(x)), approximate="tanh"))
        return x + update


HEAD = HeadType(name="map", module=MapProbe, num_heads=(12, 16))
