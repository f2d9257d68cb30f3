"""Class labels: their check, and the weighted cross entropy with its gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import DataError


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Raise DataError unless the labels are int64 class numbers."""
    if labels.dtype != torch.int64:
        raise DataError("probes.labels_not_int64", dtype=labels.dtype)
    if labels.numel() and not (int(labels.min()) >= 0 and int(labels.max()) < num_classes):
        raise DataError(
            "probes.labels_out_of_range", last=num_classes - 1, least=int(labels.min()), largest=int(labels.max())
        )


def cross_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor, *, batch_first: bool = False
) -> tuple[Tensor, Tensor]:
    """Weighted cross entropy of P probes on the same samples, and its gradient.

    Args:
        logits: [P, B, C], or [B, P, C] if batch_first; overwritten.
        labels: [B].
        weights: [B], summing to 1.

    Returns:
        loss [P] and its gradient, in the shape and the memory of the logits.

    >>> loss, gradient = cross_entropy(torch.zeros(1, 2, 2), torch.tensor([0, 1]), torch.tensor([0.75, 0.25]))
    >>> round(loss.item(), 4), gradient.tolist()
    (0.6931, [[[-0.375, 0.375], [0.125, -0.125]]])
    """
    batch = 0 if batch_first else 1
    along = (-1, 1, 1) if batch_first else (1, -1, 1)
    of_label, of_sample = labels.view(along).expand(*logits.shape[:2], 1), weights.view(along)
    log_probs = torch.log_softmax(logits, 2, out=logits)
    loss = -(log_probs.gather(2, of_label) * of_sample).sum((batch, 2))
    gradient = log_probs.exp_().mul_(of_sample)
    return loss, gradient.scatter_add_(2, of_label, -of_sample.expand_as(of_label))
