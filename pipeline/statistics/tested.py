"""The probes of one case on its test images, reduced to what statistics need: hits, accuracies, intervals; images to show.

A case is a model on a data set with a seed. Class scores are read once, one probe at a time, and not kept, so that a study of any
size fits into memory. A probe with missing or damaged predictions, or predictions of other images, is left out and named.

Images are shown by a rule that is stated and seeded, so that nobody chose them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from ..errors import RequestError, WorkError
from ..probing.bootstrap import Interval, intervals
from ..probing.probe_spec import REFERENCE
from .predictions import Accuracies, Predictions, accuracies, read_predictions, require_same_images
from .scores import Case
from .significance import McNemar, mcnemar

PER_RULE = 8
ROWS_AT_ONCE = 4096
CONFIDENT_MISSES, UNSURE_HITS, DISPUTED = "confident misses", "unsure hits", "disputed"


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """The answers of one probe, without its class scores.

    Attributes:
        predicted: [N] int64.
        confidence: [N] softmax probability of the predicted class.
        hits: [N] whether each image was classified correctly.
    """

    predicted: NDArray[np.int64]
    confidence: NDArray[np.float64]
    hits: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Tested:
    """The probes of one case on the same N images.

    Attributes:
        sample_ids: [N] text; empty where no predictions could be read.
        labels: [N] int64.
        hits: probe -> [N] whether each image was classified correctly.
        accuracies: probe -> its accuracies, in [0, 1].
        answers: probe -> its answers, for cases with images on the page; else empty.
    """

    sample_ids: NDArray[np.str_]
    labels: NDArray[np.int64]
    hits: Mapping[str, NDArray[np.bool_]]
    accuracies: Mapping[str, Accuracies]
    answers: Mapping[str, Answers]

    @property
    def intervals(self) -> dict[str, Interval]:
        """Probe -> balanced accuracy in percent with 95 % over test images."""
        return self._resampled[0]

    @property
    def gains(self) -> dict[str, Interval]:
        """Probe -> points over `linear-cls` with 95 % over test images; empty without that reference."""
        return self._resampled[1]

    @cached_property
    def _resampled(self) -> tuple[dict[str, Interval], dict[str, Interval]]:
        """Accuracies and gains on the same resampled images."""
        if not self.hits:
            return {}, {}
        others = [name for name in self.hits if REFERENCE in self.hits and name != REFERENCE]
        hits = {name: of_one.astype(np.float64) for name, of_one in self.hits.items()}
        values = [*hits.values(), *(hits[name] - hits[REFERENCE] for name in others)]
        found = [
            Interval(value=100 * one.value, low=100 * one.low, high=100 * one.high)
            for one in intervals(np.stack(values), self.labels)
        ]
        return dict(zip(hits, found[: len(hits)], strict=True)), dict(zip(others, found[len(hits) :], strict=True))

    @cached_property
    def pairs(self) -> dict[tuple[str, str], McNemar]:
        """Every two probes -> McNemar's test of them."""
        return {(one, two): mcnemar(self.hits[one], self.hits[two]) for one, two in combinations(self.hits, 2)}

    def mcnemar(self, one: str, two: str) -> float:
        """Exact p of two probes, NaN where one has no predictions."""
        if one not in self.hits or two not in self.hits:
            return float("nan")
        return mcnemar(self.hits[one], self.hits[two]).exact


def read_tested(case: Case, folders: Mapping[str, Path], notes: list[str], *, keep_answers: bool = False) -> Tested:
    """Read the predictions of one case.

    Args:
        case: for the notes.
        folders: probe -> folder of its row, of probes that did not diverge.
        notes: list that is extended by what could not be read.
        keep_answers: whether images of this case are shown.
    """
    first: Predictions | None = None
    hits, found, answers = {}, {}, {}
    failed: dict[str, RequestError | WorkError] = {}
    for name, folder in folders.items():
        try:
            predictions = read_predictions(folder)
            require_same_images(first or predictions, predictions)
            found[name] = accuracies(predictions)
        except (RequestError, WorkError) as error:
            failed[name] = error
            continue
        first = first or predictions
        hits[name] = predictions.hits
        if keep_answers:
            answers[name] = answers_of(predictions)
    if failed:
        why = next(iter(failed.values()))
        notes.append(f"No interval for {', '.join(failed)} on {case.dataset} ({case.model}, seed {case.seed}): {why}")
    labels = np.zeros(0, np.int64) if first is None else first.labels
    sample_ids = np.zeros(0, np.str_) if first is None else first.sample_ids
    return Tested(sample_ids=sample_ids, labels=labels, hits=hits, accuracies=found, answers=answers)


def answers_of(predictions: Predictions) -> Answers:
    """The answers of one probe."""
    logits = predictions.logits
    # some rows at a time: a float64 copy of all class scores of ImageNet has 400 MB
    parts = [logits[start : start + ROWS_AT_ONCE] for start in range(0, len(logits), ROWS_AT_ONCE)]
    confidence = [softmax(part.astype(np.float64), axis=1).max(1) for part in parts]
    return Answers(predicted=predictions.predicted, confidence=np.concatenate(confidence), hits=predictions.hits)


def choose_examples(answers: Answers, reference: Answers | None, *, seed: int = 0) -> dict[str, list[int]]:
    """Choose images to show: the most confident misses, the least confident hits, and images on which one of two probes is right.

    An image is chosen once, by the first rule that takes it, and at most 8 images by each rule.

    Args:
        answers: answers of the probe whose hits and misses are shown.
        reference: of `linear-cls` on the same images; without it no images are disputed.
        seed: seed for the draw of disputed images.

    Returns:
        Rule -> rows; misses by falling confidence, hits by rising, disputed ones in the order of the images.
    """
    confidence, hits = answers.confidence, answers.hits
    misses, found = np.flatnonzero(~hits), np.flatnonzero(hits)
    chosen = {
        CONFIDENT_MISSES: misses[np.argsort(-confidence[misses], kind="stable")][:PER_RULE].tolist(),
        UNSURE_HITS: found[np.argsort(confidence[found], kind="stable")][:PER_RULE].tolist(),
    }
    disputed = np.flatnonzero(hits != reference.hits) if reference is not None else np.zeros(0, np.int64)
    left = np.setdiff1d(disputed, [row for rows in chosen.values() for row in rows])
    drawn = np.random.default_rng(seed).choice(left, min(PER_RULE, len(left)), replace=False) if len(left) else left
    return {**chosen, DISPUTED: sorted(drawn.tolist())}
