"""Attention with one query a head, without ever making keys or values.

The query of a head is one vector, so by associativity

    q . (Wk x_t) = (Wk^T q) . x_t = u . x_t           a row of scores costs T D instead of T D h
    sum_t A_t (Wv x_t) = Wv (sum_t A_t x_t) = Wv z    D h a head instead of T D h

and whatever adds the same number to the scores of all tokens (a key's bias, the bias of a LayerNorm before it) falls
out of the softmax: it is left out, so its gradient is zero exactly. In a bank the tokens stay common to all probes.
"""

from __future__ import annotations

import torch
from torch import Tensor

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
