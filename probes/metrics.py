"""Accuracies, of one probe or of many at once."""

from __future__ import annotations

import torch
from torch import Tensor


def balanced_accuracy(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Mean recall over the classes that occur.

    Args:
        predictions: [..., N] int64 class numbers.
        labels: [N] int64.
        num_classes: C.

    Returns:
        [...] float64 in [0, 1]; NaN without samples.

    >>> predictions = torch.tensor([[0, 0, 1], [1, 1, 1]])
    >>> balanced_accuracy(predictions, torch.tensor([0, 0, 1]), num_classes=3).tolist()
    [1.0, 0.5]
    """
    counts = torch.bincount(labels, minlength=num_classes)
    hits = (predictions == labels).double()
    class_hits = torch.zeros(*hits.shape[:-1], num_classes, dtype=torch.float64, device=hits.device)
    class_hits.scatter_add_(-1, labels.expand(hits.shape), hits)
    occurs = counts > 0
    return (class_hits[..., occurs] / counts[occurs]).mean(-1)


def top_k_accuracy(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Share of samples whose label is among the k highest scores.

    Args:
        logits: [..., N, C].
        labels: [N] int64.
        k: from 1; more than C counts as C.

    Returns:
        [...] float64 in [0, 1]; NaN without samples.

    >>> top_k_accuracy(torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.2, 0.3]]), torch.tensor([2, 0]), 2).item()
    1.0
    """
    best = logits.topk(min(k, logits.shape[-1]), dim=-1).indices  # [..., N, k]
    return (best == labels.unsqueeze(-1)).any(-1).double().mean(-1)
