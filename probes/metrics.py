"""Metrics, of one probe or of many at once, as scikit-learn and SciPy define them (the tests compare the two).

Metrics of scores rank each column by itself: equal scores share a rank. A column whose metric the targets leave undefined is not
part of a mean; without any column that defines it the mean is NaN.
"""

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


def class_macro_f1(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Mean F1 score of the classes that occur in the labels; arguments and result as in `balanced_accuracy`.

    >>> class_macro_f1(torch.tensor([[0, 0, 1], [1, 1, 1]]), torch.tensor([0, 0, 1]), num_classes=3).tolist()
    [1.0, 0.25]
    """
    if predictions.dim() > 1:  # one probe after the other, which saves memory
        return torch.stack([class_macro_f1(one, labels, num_classes) for one in predictions])
    counts, predicted, both = (
        torch.bincount(of, minlength=num_classes).double()
        for of in (labels, predictions, labels[predictions == labels])
    )
    occurs = counts > 0
    return (2 * both[occurs] / (predicted[occurs] + counts[occurs])).mean()


def cohen_kappa(predictions: Tensor, labels: Tensor, num_classes: int, *, quadratic: bool = False) -> Tensor:
    """Cohen's kappa; arguments as in `balanced_accuracy`.

    Args:
        quadratic: weigh a confusion of classes i and j by (i - j)^2.

    Returns:
        [...] float64 up to 1; 0, as for chance, where labels and predictions are all one class.

    >>> labels = torch.tensor([0, 1, 2, 2])
    >>> cohen_kappa(torch.tensor([0, 1, 2, 1]), labels, 3, quadratic=True).item()
    0.8
    """
    if predictions.dim() > 1:  # one probe after the other: a table of C x C numbers each
        return torch.stack([cohen_kappa(one, labels, num_classes, quadratic=quadratic) for one in predictions])
    classes = torch.arange(num_classes, dtype=torch.float64)
    costs = (classes[:, None] - classes).square() if quadratic else (classes[:, None] != classes).double()
    confusion = torch.bincount(labels * num_classes + predictions, minlength=num_classes**2).double()
    confusion = confusion.view(num_classes, num_classes)
    expected = torch.outer(confusion.sum(1), confusion.sum(0)) / len(labels)
    observed, by_chance = ((costs * one).sum() for one in (confusion, expected))
    return torch.where(by_chance > 0, 1 - observed / by_chance, 0)


def log_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of the softmax of logits [..., N, C], every sample with the same weight: [...] float64."""
    log_probs = logits.double().log_softmax(-1)
    of_label = log_probs.gather(-1, labels.view(-1, 1).expand(*logits.shape[:-1], 1))
    return -of_label.mean((-2, -1))


def macro_auroc(scores: Tensor, positive: Tensor, known: Tensor) -> Tensor:
    """Mean area under the ROC curve of the columns that have positives and negatives.

    Args:
        scores: [N, C].
        positive: [N, C] bool.
        known: [N, C] bool; what is not known does not count.

    >>> positive = torch.tensor([[True], [True], [False], [False]])
    >>> macro_auroc(torch.tensor([[0.9], [0.4], [0.4], [0.1]]), positive, torch.ones_like(positive)).item()
    0.875
    """
    hits, counted, first, last = _ranked(scores, positive, known)
    negatives = counted - hits
    wrong = negatives.cumsum(0)
    up_to, before = (
        wrong.gather(0, last),
        (wrong - negatives).gather(0, first),
    )  # negatives in front, with and without equals
    num_positive, num_negative = hits.sum(0), negatives.sum(0)
    above = (hits * (num_negative - (up_to + before) / 2)).sum(0)
    return _mean_of(above / (num_positive * num_negative), (num_positive > 0) & (num_negative > 0))


def mean_average_precision(scores: Tensor, positive: Tensor, known: Tensor) -> Tensor:
    """Mean average precision of the columns that have positives; arguments as in `macro_auroc`.

    >>> positive = torch.tensor([[True], [False], [True]])
    >>> round(mean_average_precision(torch.tensor([[3.0], [2.0], [1.0]]), positive, torch.ones_like(positive)).item(), 4)
    0.8333
    """
    hits, counted, _, last = _ranked(scores, positive, known)
    precision = (hits.cumsum(0) / counted.cumsum(0)).gather(0, last)
    num_positive = hits.sum(0)
    return _mean_of((hits * precision.nan_to_num()).sum(0) / num_positive, num_positive > 0)


def label_macro_f1(predictions: Tensor, positive: Tensor, known: Tensor) -> Tensor:
    """Mean F1 score of the columns that have positives, of predictions [..., N, C] bool: [...] float64."""
    both, predicted = ((predictions & one).sum(-2).double() for one in (positive & known, known))
    num_positive = (positive & known).sum(0)
    occurs = num_positive > 0
    return (2 * both[..., occurs] / (predicted[..., occurs] + num_positive[occurs])).mean(-1)


def r2(predictions: Tensor, targets: Tensor) -> Tensor:
    """Share of the variance of targets [N, K] that predictions [..., N, K] explain, the mean over outputs: [...] float64.

    Of an output whose targets are all equal it is 1 for a perfect prediction and else 0, as in scikit-learn.

    >>> r2(torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([[1.0], [2.0], [3.0]])).item()
    0.5
    """
    predictions, targets = predictions.double(), targets.double()
    unexplained = (predictions - targets).square().sum(-2)
    variance = (targets - targets.mean(0)).square().sum(0)
    constant = (unexplained == 0).double()
    return torch.where(variance > 0, 1 - unexplained / variance, constant).mean(-1)


def mean_absolute_error(predictions: Tensor, targets: Tensor) -> Tensor:
    """Of predictions [..., N, K] and targets [N, K], the mean over outputs: [...] float64."""
    return (predictions.double() - targets.double()).abs().mean((-2, -1))


def root_mean_squared_error(predictions: Tensor, targets: Tensor) -> Tensor:
    """The root of each output's error, the mean over outputs; arguments and result as in `mean_absolute_error`."""
    return (predictions.double() - targets.double()).square().mean(-2).sqrt().mean(-1)


def pearson(predictions: Tensor, targets: Tensor) -> Tensor:
    """Correlation of predictions [..., N, K] and targets [N, K], the mean over outputs: [...] float64.

    0 for an output whose predictions or targets are all equal.
    """
    centred = [one - one.mean(-2, keepdim=True) for one in (predictions.double(), targets.double())]
    first, second = (one / torch.linalg.vector_norm(one, dim=-2, keepdim=True) for one in centred)
    varies = [one.amax(-2) > one.amin(-2) for one in (predictions, targets)]
    return torch.where(varies[0] & varies[1], (first * second).sum(-2), 0).mean(-1)


def spearman(predictions: Tensor, targets: Tensor) -> Tensor:
    """Correlation of the ranks, as `pearson`; equal values share a rank.

    >>> round(spearman(torch.tensor([[1.0], [20.0], [300.0]]), torch.tensor([[1.0], [2.0], [3.0]])).item(), 6)
    1.0
    """
    return pearson(average_ranks(predictions), average_ranks(targets))


def average_ranks(values: Tensor) -> Tensor:
    """The rank of each value of [..., N, K] along N from 0, the mean rank for equal ones: [..., N, K] float64.

    >>> average_ranks(torch.tensor([[7.0], [5.0], [7.0]])).flatten().tolist()
    [1.5, 0.0, 1.5]
    """
    ordered, order = values.sort(-2)
    first, last = _ties(ordered)
    return torch.zeros_like(values, dtype=torch.float64).scatter_(-2, order, (first + last).double() / 2)


def _ranked(scores: Tensor, positive: Tensor, known: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """By falling score of each column: positives and known ones, float64; first and last place of equals; [N, C] each."""
    ordered, order = scores.sort(0, descending=True)
    counted = known.gather(0, order)
    return (positive.gather(0, order) & counted).double(), counted.double(), *_ties(ordered)


def _ties(ordered: Tensor) -> tuple[Tensor, Tensor]:
    """The first and the last place of the values that equal each value of a sorted [..., N, K], along N."""
    num_values = ordered.shape[-2]
    places = torch.arange(num_values).unsqueeze(1).expand(ordered.shape)
    differs = torch.ones(ordered.shape, dtype=torch.bool)
    differs[..., 1:, :] = ordered[..., 1:, :] != ordered[..., :-1, :]
    first = torch.where(differs, places, 0).cummax(-2).values
    ends = torch.ones_like(differs)
    ends[..., :-1, :] = differs[..., 1:, :]
    last = torch.where(ends, places, num_values).flip(-2).cummin(-2).values.flip(-2)
    return first, last


def _mean_of(values: Tensor, defined: Tensor) -> Tensor:
    return values[defined].mean()
