"""Saved predictions: `test.npz` in the folder of a row, and the accuracies that follow from it.

Knows nothing of models or stores. The accuracies agree with those that `layerbank probe` wrote into the row (tests compare them).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_fscore_support

from ..data.saved_arrays import UnreadableArrays, load_arrays
from ..errors import RequestError, WorkError


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """Class scores of N images.

    Attributes:
        sample_ids: [N] text.
        labels: [N] int64.
        logits: [N, C] float32.
    """

    sample_ids: NDArray[np.str_]
    labels: NDArray[np.int64]
    logits: NDArray[np.float32]

    @cached_property
    def predicted(self) -> NDArray[np.int64]:
        """[N] the class with the highest score, the first of equals."""
        best: NDArray[np.int64] = self.logits.argmax(1)
        return best

    @property
    def hits(self) -> NDArray[np.bool_]:
        """[N] whether each image was classified correctly."""
        right: NDArray[np.bool_] = self.predicted == self.labels
        return right


@dataclass(frozen=True, kw_only=True, eq=False)
class Accuracies:
    """Accuracies of one set of predictions, in [0, 1].

    Attributes:
        balanced: mean recall of the classes that occur.
        top1, top5: share of images whose class is the best, or among the best five.
        macro_f1: mean F1 score of the classes that have test images, each counted once; a class that is only predicted does not
            count, as for balanced accuracy.
        of_class: [C] recall of each class, NaN where it does not occur.
    """

    balanced: float
    top1: float
    top5: float
    macro_f1: float
    of_class: NDArray[np.float64]


def read_predictions(folder: Path) -> Predictions:
    """Read `test.npz` in the folder of a row.

    Raises:
        WorkError: the file is missing or damaged.
    """
    path = folder / "test.npz"
    try:
        sample_ids, labels, logits = load_arrays(path, ("sample_ids", "labels", "logits"))
        predictions = Predictions(sample_ids=sample_ids, labels=labels, logits=logits)
        _check(predictions)
    except (UnreadableArrays, ValueError) as error:
        raise WorkError("statistics.bad_predictions", path=path, reason=error) from error
    return predictions


def _check(predictions: Predictions) -> None:
    """Raise ValueError unless the arrays are those of N images with at least one class."""
    ids, labels, logits = predictions.sample_ids, predictions.labels, predictions.logits
    kinds = (ids.dtype.kind, labels.dtype.kind, logits.dtype.kind)
    if kinds != ("U", "i", "f"):
        raise ValueError(f"arrays of {ids.dtype}, {labels.dtype} and {logits.dtype}")
    num_images, num_classes = logits.shape if logits.ndim == 2 else (0, 0)
    if not num_images * num_classes or ids.shape != (num_images,) or labels.shape != (num_images,):
        raise ValueError(f"arrays of the shapes {ids.shape}, {labels.shape} and {logits.shape}")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"labels from {labels.min()} to {labels.max()} of {num_classes} classes")
    if not np.isfinite(logits).all():
        raise ValueError("class scores that are not finite")


def accuracies(predictions: Predictions) -> Accuracies:
    """All accuracies of some predictions.

    Raises:
        RequestError: there are no images.
    """
    labels, predicted = predictions.labels, predictions.predicted
    if not len(labels):
        raise RequestError("statistics.no_images")
    occurring = np.unique(labels)
    _, recalls, f1_scores, _ = precision_recall_fscore_support(
        labels, predicted, labels=occurring, average=None, zero_division=0
    )
    of_class = np.full(predictions.logits.shape[1], np.nan)
    of_class[occurring] = recalls
    return Accuracies(
        balanced=float(recalls.mean()),
        top1=float((predicted == labels).mean()),
        top5=_top_k(predictions, 5),
        macro_f1=float(f1_scores.mean()),
        of_class=of_class,
    )


def require_same_images(first: Predictions, other: Predictions) -> None:
    """Refuse predictions of other images, in another order or with other labels.

    Raises:
        RequestError: names the first image that differs.
    """
    if len(first.labels) != len(other.labels):
        raise RequestError("statistics.other_number_of_images", num_images=len(first.labels), got=len(other.labels))
    differing = np.flatnonzero((first.sample_ids != other.sample_ids) | (first.labels != other.labels))
    if len(differing):
        row = int(differing[0])
        raise RequestError(
            "statistics.other_images",
            row=row,
            sample_id=first.sample_ids[row],
            label=first.labels[row],
            other_id=other.sample_ids[row],
            other_label=other.labels[row],
        )


def _top_k(predictions: Predictions, k: int) -> float:
    """By the rank of the true class, which is cheaper than a sort. The first of equals goes first; NaN is last."""
    logits, labels = predictions.logits, predictions.labels
    truth = logits[np.arange(len(labels)), labels][:, None]
    before = np.arange(logits.shape[1]) < labels[:, None]
    rank = ((logits > truth) | ((logits == truth) & before)).sum(1)
    return float(((rank < k) & ~np.isnan(truth[:, 0])).mean())
