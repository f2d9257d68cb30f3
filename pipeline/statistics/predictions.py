"""What a probe said of the test images: `test.npz` of a row's folder, and every accuracy that follows from it.

Knows nothing of models or stores. Accuracies agree with those that `layerbank probe` wrote into the row (tests hold them together).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_fscore_support

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
        """[N] the class of the highest score, the first of equals."""
        best: NDArray[np.int64] = self.logits.argmax(1)
        return best

    @property
    def hits(self) -> NDArray[np.bool_]:
        """[N] which images it got right."""
        right: NDArray[np.bool_] = self.predicted == self.labels
        return right


@dataclass(frozen=True, kw_only=True, eq=False)
class Accuracies:
    """Of one set of predictions, in [0, 1].

    Attributes:
        balanced: mean over the classes that occur of the share of their images that were recognised.
        top1, top5: share of images whose class is the best, or among the best five.
        macro_f1: mean over the classes that occur of the harmonic mean of precision and recall.
        of_class: [C] share of each class that was recognised, NaN where it does not occur.
    """

    balanced: float
    top1: float
    top5: float
    macro_f1: float
    of_class: NDArray[np.float64]


def read_predictions(folder: Path) -> Predictions:
    """Read `test.npz` of a row's folder.

    Raises:
        WorkError: there is none, or it is damaged.
    """
    path = folder / "test.npz"
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return Predictions(sample_ids=file["sample_ids"], labels=file["labels"], logits=file["logits"])
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise WorkError(
            where=str(path),
            expected="the predictions that `layerbank probe` saved",
            got=str(error) or type(error).__name__,
            todo="Train this probe again: layerbank probe ... --retrain.",
        ) from error


def accuracies(predictions: Predictions) -> Accuracies:
    """Every accuracy of some predictions.

    Raises:
        RequestError: there are no images.
    """
    labels, predicted = predictions.labels, predictions.predicted
    if not len(labels):
        raise RequestError(
            where="predictions", expected="at least one image", got="none", todo="Test the probe on images."
        )
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


def require_same_images(*several: Predictions) -> None:
    """Refuse predictions that are not of the same images in the same order with the same labels.

    Raises:
        RequestError: names the first image that differs.
    """
    first = several[0]
    for other in several[1:]:
        same = len(first.labels) == len(other.labels) and bool(
            (first.sample_ids == other.sample_ids).all() and (first.labels == other.labels).all()
        )
        if not same:
            raise RequestError(
                where="paired predictions",
                expected=f"the same {len(first.labels)} images with the same labels, in the same order",
                got=_first_difference(first, other),
                todo="Compare probes that were tested on one store.",
            )


def _top_k(predictions: Predictions, k: int) -> float:
    """By the place of the true class among the scores: cheaper than to sort them. The first of equals goes first; NaN is last."""
    logits, labels = predictions.logits, predictions.labels
    truth = logits[np.arange(len(labels)), labels][:, None]
    before = np.arange(logits.shape[1]) < labels[:, None]
    place = ((logits > truth) | ((logits == truth) & before)).sum(1)
    return float(((place < k) & ~np.isnan(truth[:, 0])).mean())


def _first_difference(first: Predictions, other: Predictions) -> str:
    if len(first.labels) != len(other.labels):
        return f"{len(other.labels)} images"
    row = int(np.flatnonzero((first.sample_ids != other.sample_ids) | (first.labels != other.labels))[0])
    return f"{other.sample_ids[row]} of class {other.labels[row]} in place of {first.sample_ids[row]} of class {first.labels[row]}"
