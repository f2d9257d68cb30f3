"""Confidence intervals by resampling: over the images of a test set, and over seeds.

Over images, the bootstrap is stratified (each class keeps its number of images, so balanced accuracy keeps all its classes) and
paired (all probes see the same resampled images). Images are drawn for some resamples at a time and counted, and one product of
counts and hits answers for every probe: memory does not grow with the number of resamples, nor time by much with that of probes.
Intervals are percentile intervals.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError

LEVEL = 0.95
NUM_RESAMPLES = 2000
DRAWN_AT_ONCE = 1 << 18  # images: what is counted then stays in the cache of a processor


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A measured value and its confidence interval, NaN where none is available."""

    value: float
    low: float
    high: float

    @property
    def holds_zero(self) -> bool:
        """Whether zero lies within; so it does if there is no interval."""
        return not (self.low > 0 or self.high < 0)


def intervals(
    values: NDArray[np.float64],
    labels: NDArray[np.int64],
    *,
    level: float = LEVEL,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> list[Interval]:
    """Class means of M values per image, and their intervals over test images, all on the same resamples.

    Args:
        values: [M, N]; hits as 0 and 1 give balanced accuracies, differences of hits give differences of them.
        labels: [N] int64.
        level: confidence level, in (0, 1).
        num_resamples: R.
        seed: seed for the draws.

    Raises:
        RequestError: there are no images.
    """
    draws = resampled_means(values, labels, num_resamples=num_resamples, seed=seed)
    lows, highs = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    means = [class_mean(one, labels) for one in values]
    return [
        Interval(value=value, low=float(low), high=float(high))
        for value, low, high in zip(means, lows, highs, strict=True)
    ]


def difference_interval(first: NDArray[np.bool_], second: NDArray[np.bool_], labels: NDArray[np.int64]) -> Interval:
    """Balanced accuracy of the first probe less that of the second, paired over test images."""
    difference = first.astype(np.float64) - second  # before the product: a probe less itself is zero to the last bit
    (found,) = intervals(difference[None], labels)
    return found


def seed_interval(values: NDArray[np.float64]) -> Interval:
    """Mean over S seeds and its interval: the variation of the training, not of the test set.

    With few seeds a percentile interval is too narrow (for 3 there are only 10 different resamples): read it as a spread.

    Args:
        values: [S]; those that are not finite (diverged) are left out, one alone has no interval.
    """
    finite = values[np.isfinite(values)]
    nan = float("nan")
    if len(finite) < 2:
        return Interval(value=float(finite[0]) if len(finite) else nan, low=nan, high=nan)
    # scipy.stats.bootstrap, to the last bits; importing that takes each probe a second
    drawn = np.random.default_rng(0).integers(len(finite), size=(NUM_RESAMPLES, len(finite)))
    low, high = np.quantile(finite[drawn].mean(axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value=float(finite.mean()), low=float(low), high=float(high))


def class_mean(values: NDArray[Any], labels: NDArray[np.int64]) -> float:
    """Mean over the classes that occur of the mean over their images; for hits, the balanced accuracy.

    Args:
        values, labels: [N], N >= 1.
    """
    counts = np.bincount(labels)
    occurring = counts > 0
    return float((np.bincount(labels, values)[occurring] / counts[occurring]).mean())


def resampled_means(
    values: NDArray[np.float64], labels: NDArray[np.int64], *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> NDArray[np.float64]:
    """Class means of values per image, on images resampled within each class.

    Args:
        values: [M, N].
        labels: [N] int64.
        num_resamples: R.
        seed: seed for the draws.

    Returns:
        [R, M].

    Raises:
        RequestError: there are no images.
    """
    generator, num_images = np.random.default_rng(seed), len(labels)
    if not num_images:
        raise RequestError("probing.no_images_to_resample")
    order = np.argsort(labels, kind="stable")
    _, starts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    size_of, start_of = np.repeat(sizes, sizes), np.repeat(starts, sizes)  # [N]
    shares = values[:, order].T / (size_of * len(sizes))[:, None]  # [N, M]
    at_once = max(1, DRAWN_AT_ONCE // num_images)
    means = np.empty((num_resamples, len(values)))
    for first in range(0, num_resamples, at_once):
        part = means[first : first + at_once]  # a draw of u in [0, 1) is image floor(u n) of the n of its class
        drawn = (generator.random((len(part), num_images)) * size_of).astype(np.int64) + start_of
        drawn += num_images * np.arange(len(part))[:, None]
        counts = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
        part[:] = counts.astype(np.float64) @ shares
    return means
