"""SimPool."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import layer_norm

from .attention import attend
from .head import HeadModule, HeadType, initial_weights, make_linear

LAYER_NORM_EPS = 1e-6  # as in the code of SimPool


class SimPoolProbe(HeadModule):
    """SimPool, arXiv 2309.06891, without its power mean: the mean token is the query, the tokens are the values.

    q = mean_t(x_t) Wq    K = LN(X) Wk    V = LN(X)          D -> D, no bias, one head
    logits = (softmax(q K^T / sqrt(D)) V) Wc + bc
    """

    kind = "simpool"

    def __init__(self, embed_dim: int, num_classes: int, *, seed: int = 0) -> None:
        super().__init__(embed_dim=embed_dim, num_classes=num_classes)
        generator = initial_weights(seed)
        self.norm = nn.LayerNorm(embed_dim, eps=LAYER_NORM_EPS)
        self.to_q, self.to_k = (make_linear(embed_dim, embed_dim, generator, bias=False) for _ in range(2))
        self.classifier = make_linear(embed_dim, num_classes, generator)

    def pool(self, tokens: Tensor) -> Tensor:
        embed_dim = tokens.shape[2]
        xhat = layer_norm(tokens, (embed_dim,), eps=LAYER_NORM_EPS)
        u = self.to_q(tokens.mean(1)) @ self.to_k.weight * embed_dim**-0.5 * self.norm.weight  # [B, D]
        attention = attend(xhat, u.unsqueeze(1))  # [B, 1, T]
        return (attention @ xhat).squeeze(1) * self.norm.weight + self.norm.bias


HEAD = HeadType(name="simpool", module=SimPoolProbe)
