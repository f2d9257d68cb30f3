"""Which test images to show of a case: a rule that is stated and seeded, so that nobody chose them.

Of the probe that is looked at: its most confident misses, its least confident hits, and images on which exactly one of it and the
reference is right, drawn at random. An image is shown once, by the first rule that takes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from .predictions import Predictions

PER_RULE = 8
ROWS_AT_ONCE = 4096
SURE_MISSES, UNSURE_HITS, DISPUTED = "sure misses", "unsure hits", "disputed"


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """What a probe said of N images, without its class scores.

    Attributes:
        labels: [N] int64, the truth.
        predicted: [N] int64.
        confidence: [N] probability of the class that was predicted, by softmax of the class scores.
    """

    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    confidence: NDArray[np.float64]

    @property
    def hits(self) -> NDArray[np.bool_]:
        """[N] which images it got right."""
        right: NDArray[np.bool_] = self.predicted == self.labels
        return right


def answers_of(predictions: Predictions) -> Answers:
    """The answers of some predictions."""
    logits = predictions.logits
    # some rows at a time: a float64 copy of all class scores of ImageNet has 400 MB
    parts = [logits[start : start + ROWS_AT_ONCE] for start in range(0, len(logits), ROWS_AT_ONCE)]
    sure = [softmax(part.astype(np.float64), axis=1).max(1) for part in parts]
    return Answers(labels=predictions.labels, predicted=predictions.predicted, confidence=np.concatenate(sure))


def choose_examples(
    looked_at: Answers, reference: Answers | None, *, per_rule: int = PER_RULE, seed: int = 0
) -> Mapping[str, list[int]]:
    """Rows of the images to show.

    Args:
        looked_at: of the probe that is looked at.
        reference: of `linear-cls` on the same images, None without one: then nothing is disputed.
        per_rule: at most so many images a rule.
        seed: of the draw of disputed images.

    Returns:
        Rule -> rows; misses by falling confidence, hits by rising, disputed ones in the order of the images.
    """
    sure, hits = looked_at.confidence, looked_at.hits
    misses, found = np.flatnonzero(~hits), np.flatnonzero(hits)
    chosen = {
        SURE_MISSES: misses[np.argsort(-sure[misses], kind="stable")][:per_rule].tolist(),
        UNSURE_HITS: found[np.argsort(sure[found], kind="stable")][:per_rule].tolist(),
    }
    disputed = np.flatnonzero(hits != reference.hits) if reference is not None else np.zeros(0, np.int64)
    left = np.setdiff1d(disputed, [row for rows in chosen.values() for row in rows])
    drawn = np.random.default_rng(seed).choice(left, min(per_rule, len(left)), replace=False) if len(left) else left
    return {**chosen, DISPUTED: sorted(drawn.tolist())}
