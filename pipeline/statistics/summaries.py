"""What a column of a table comes to: mean, median, extremes, and mean rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from .scores import Table


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Of the finite values of a column; all NaN where there are none.

    Attributes:
        count: how many values were finite.
        num_missing: how many were not: not trained, or diverged.
        mean, median, min, max: in the unit of the table.
        std: with n - 1 in the denominator, as in the paper's tables; NaN for one value.
    """

    count: int
    num_missing: int
    mean: float
    median: float
    min: float
    max: float
    std: float


def summarize(values: NDArray[np.float64]) -> Summary:
    """Summary of [n] values.

    >>> summary = summarize(np.array([1.0, 4.0, np.nan, 1.0]))
    >>> summary.count, summary.num_missing, summary.mean, summary.median, summary.max
    (3, 1, 2.0, 1.0, 4.0)
    """
    finite = values[np.isfinite(values)]
    nan = float("nan")
    if not len(finite):
        return Summary(count=0, num_missing=len(values), mean=nan, median=nan, min=nan, max=nan, std=nan)
    return Summary(
        count=len(finite),
        num_missing=len(values) - len(finite),
        mean=float(finite.mean()),
        median=float(np.median(finite)),
        min=float(finite.min()),
        max=float(finite.max()),
        std=float(finite.std(ddof=1)) if len(finite) > 1 else nan,
    )


def mean_ranks(table: Table, probes: Sequence[str] | None = None) -> dict[str, float]:
    """Mean over the cases of each probe's rank among the probes; 1 is best, equals share the mean of their ranks.

    Only cases in which every one of the probes has a value count: a rank among fewer would be a better one for nothing. The paper's
    mean rank is this of the table averaged over models.

    Args:
        table: accuracies or gains; the reference shifts a line and moves no rank.
        probes: to rank; None takes all of the table.

    Returns:
        Probe -> mean rank, NaN if no case has them all.
    """
    chosen = table if probes is None else table.only(probes)
    whole = chosen.values[np.isfinite(chosen.values).all(1)]
    if not len(whole):
        return dict.fromkeys(chosen.probes, float("nan"))
    ranks = rankdata(-whole, axis=1).mean(0)
    return dict(zip(chosen.probes, ranks.tolist(), strict=True))


def rankable(table: Table) -> list[str]:
    """Probes with a value in at least half of the cases: one that was tried on a few must not leave all others without a rank."""
    return [probe for probe in table.probes if 2 * np.isfinite(table.column(probe)).sum() >= len(table.cases)]
