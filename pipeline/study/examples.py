"""Which test images to show of a case: a rule that is stated and seeded, so that nobody chose them.

Of the probe that is looked at: its most confident misses, its least confident hits, and images on which exactly one of it and the
reference is right, drawn at random. An image is shown once, by the first rule that takes it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from .predictions import Predictions

PER_RULE = 8
SURE_MISSES, UNSURE_HITS, DISPUTED = "sure misses", "unsure hits", "disputed"


def confidences(predictions: Predictions) -> NDArray[np.float64]:
    """[N] probability of the class that was predicted, by softmax of the class scores."""
    highest: NDArray[np.float64] = softmax(predictions.logits.astype(np.float64), axis=1).max(1)
    return highest


def choose_examples(
    looked_at: Predictions, reference: Predictions | None, *, per_rule: int = PER_RULE, seed: int = 0
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
    sure, hits = confidences(looked_at), looked_at.hits
    misses, found = np.flatnonzero(~hits), np.flatnonzero(hits)
    chosen = {
        SURE_MISSES: misses[np.argsort(-sure[misses], kind="stable")][:per_rule].tolist(),
        UNSURE_HITS: found[np.argsort(sure[found], kind="stable")][:per_rule].tolist(),
    }
    disputed = np.flatnonzero(hits != reference.hits) if reference is not None else np.zeros(0, np.int64)
    left = np.setdiff1d(disputed, [row for rows in chosen.values() for row in rows])
    drawn = np.random.default_rng(seed).choice(left, min(per_rule, len(left)), replace=False) if len(left) else left
    return {**chosen, DISPUTED: sorted(drawn.tolist())}
