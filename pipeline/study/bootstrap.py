"""Confidence intervals by resampling: over the images of a test set, and over seeds.

Over images, the bootstrap is stratified (each class keeps its number of images, so balanced accuracy keeps all its classes) and
paired (all probes see the same resampled images). Only how often each pattern of hits occurs matters, so an image is not drawn by
its index: the counts of the patterns within a class are drawn at once from a multinomial, which is the same distribution,
and memory does not grow with images times resamples. Intervals are percentile intervals.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pipeline.errors import RequestError

LEVEL = 0.95
NUM_RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value, and where it lies with the stated confidence.

    Attributes:
        value: as measured.
        low, high: ends of the interval, NaN where it cannot be had.
    """

    value: float
    low: float
    high: float

    @property
    def holds_zero(self) -> bool:
        """Whether zero lies within; so it does if there is no interval."""
        return not (self.low > 0 or self.high < 0)


def resampled_accuracies(
    hits: NDArray[np.bool_], labels: NDArray[np.int64], *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> NDArray[np.float64]:
    """Balanced accuracy of P probes on resampled test sets.

    Args:
        hits: [P, N] which images each probe got right.
        labels: [N] int64.
        num_resamples: R.
        seed: of the draws.

    Returns:
        [R, P] in [0, 1].

    Raises:
        RequestError: there are no images.
    """
    if not len(labels):
        raise RequestError(
            where="bootstrap", expected="at least one image", got="none", todo="Test the probes on images."
        )
    generator = np.random.default_rng(seed)
    classes = np.unique(labels)
    total = np.zeros((num_resamples, len(hits)))
    for label in classes:
        patterns, counts = np.unique(hits[:, labels == label], axis=1, return_counts=True)  # [P, patterns]
        size = int(counts.sum())
        drawn = generator.multinomial(size, counts / size, size=num_resamples)  # [R, patterns]
        total += drawn @ patterns.T.astype(np.float64) / size
    return total / len(classes)


def accuracy_interval(
    hits: NDArray[np.bool_],
    labels: NDArray[np.int64],
    *,
    level: float = LEVEL,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Balanced accuracy of one probe ([N] hits), in [0, 1], and its interval over test images."""
    draws = resampled_accuracies(hits[None], labels, num_resamples=num_resamples, seed=seed)[:, 0]
    return _interval(_balanced(hits, labels), draws, level)


def difference_interval(
    first: NDArray[np.bool_],
    second: NDArray[np.bool_],
    labels: NDArray[np.int64],
    *,
    level: float = LEVEL,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Balanced accuracy of the first probe less that of the second, paired over test images."""
    draws = resampled_accuracies(np.stack([first, second]), labels, num_resamples=num_resamples, seed=seed)
    return _interval(_balanced(first, labels) - _balanced(second, labels), draws[:, 0] - draws[:, 1], level)


def seed_interval(
    values: NDArray[np.float64], *, level: float = LEVEL, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Interval:
    """Mean over S seeds and its interval; it says how training varies, not how test sets do.

    With few seeds a percentile interval is too narrow (for 3 there are only 10 different resamples): read it as a spread.

    Args:
        values: [S]; those that are not finite (diverged) are left out, one alone has no interval.
    """
    finite = values[np.isfinite(values)]
    nan = float("nan")
    if len(finite) < 2:
        return Interval(value=float(finite[0]) if len(finite) else nan, low=nan, high=nan)
    result = stats.bootstrap(
        (finite,),
        np.mean,
        confidence_level=level,
        n_resamples=num_resamples,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = result.confidence_interval
    return Interval(value=float(finite.mean()), low=float(low), high=float(high))


def _balanced(hits: NDArray[np.bool_], labels: NDArray[np.int64]) -> float:
    return float(np.mean([hits[labels == label].mean() for label in np.unique(labels)]))


def _interval(value: float, draws: NDArray[np.float64], level: float) -> Interval:
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value=value, low=float(low), high=float(high))
