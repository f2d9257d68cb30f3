"""Significance tests: Wilcoxon's over cases, McNemar's over the images of one test set, and the false discovery rate.

scipy does the arithmetic. The decisions taken here: pairs with a missing or diverged probe are left out and counted; pairs
without a difference are left out of Wilcoxon's ranks, as Wilcoxon did; where no difference is left there is no evidence, p = 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, chdtrc
from scipy.stats import false_discovery_control, wilcoxon

from .scores import Table

ALPHA = 0.05

Alternative = Literal["greater", "less", "two-sided"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Wilcoxon's signed-rank test of one probe against another, over the same cases.

    Attributes:
        probe, other: names of the two.
        num_pairs: cases in which both have a value.
        num_ties: cases among them without a difference.
        median: median of the differences, in the unit of the table; NaN without pairs.
        p_value: one-sided by default; NaN without pairs.
        q_value: after Benjamini and Hochberg over all comparisons made together.
    """

    probe: str
    other: str
    num_pairs: int
    num_ties: int
    median: float
    p_value: float
    q_value: float

    @property
    def significant(self) -> bool:
        """q below 5 %."""
        return self.q_value < ALPHA

    @property
    def decidable(self) -> bool:
        """Whether a one-sided test of so many pairs can come below 5 % at all: it takes five differences, 2^-5 = 3 %."""
        return 0.5 ** (self.num_pairs - self.num_ties) < ALPHA


def compare_with(
    table: Table, other: str, probes: Sequence[str] | None = None, *, alternative: Alternative = "greater"
) -> list[Comparison]:
    """Test every probe against one, paired over the cases of a table.

    Cases must be as independent as the claim needs: for a claim on data sets, average over seeds and models first
    (`Table.mean_over`).

    Args:
        table: accuracies; gains give the same.
        other: the probe to compare with.
        probes: None takes all but `other`.
        alternative: `greater` asks whether a probe beats `other`.

    Raises:
        RequestError: no such probe in the table.
    """
    table = table.over_sources()
    base = table.column(other)
    names = [name for name in (table.probes if probes is None else probes) if name != other]
    return _with_q_values([_wilcoxon(name, other, table.column(name) - base, alternative) for name in names])


def compare_gains(gains: Table, probes: Sequence[str] | None = None) -> list[Comparison]:
    """Test over data sets whether gains are above zero, each probe on the models and seeds that it has.

    Gains of one data set are averaged first, over the cases in which the probe and the reference both have a result: cases of one
    data set are not independent, and a difference within a case does not depend on which cases those are as an accuracy would.

    Args:
        gains: points over a reference.
        probes: None takes all.
    """
    names = gains.probes if probes is None else probes
    datasets = np.array([case.source for case in gains.cases])
    found = []
    for name in names:
        column = gains.column(name)
        means = [column[(datasets == one) & np.isfinite(column)] for one in dict.fromkeys(datasets.tolist())]
        found.append(_wilcoxon(name, "", np.array([group.mean() for group in means if len(group)]), "greater"))
    return _with_q_values(found)


def adjust(p_values: Sequence[float]) -> list[float]:
    """Benjamini and Hochberg's false discovery rate; NaN stays NaN and does not count as a comparison.

    >>> adjust([0.01, float("nan"), 0.04])
    [0.02, nan, 0.04]
    """
    values = np.array(p_values, dtype=np.float64)
    finite = np.isfinite(values)
    if finite.any():
        values[finite] = false_discovery_control(values[finite], method="bh")
    adjusted: list[float] = values.tolist()
    return adjusted


def _with_q_values(found: Sequence[Comparison]) -> list[Comparison]:
    q_values = adjust([one.p_value for one in found])
    return [replace(one, q_value=q_value) for one, q_value in zip(found, q_values, strict=True)]


def _wilcoxon(probe: str, other: str, differences: NDArray[np.float64], alternative: Alternative) -> Comparison:
    pairs = differences[np.isfinite(differences)]
    moved = pairs[pairs != 0]
    p_value = float("nan") if not len(pairs) else 1.0
    if len(moved):
        p_value = float(wilcoxon(moved, alternative=alternative, zero_method="wilcox").pvalue)
    return Comparison(
        probe=probe,
        other=other,
        num_pairs=len(pairs),
        num_ties=len(pairs) - len(moved),
        median=float(np.median(pairs)) if len(pairs) else float("nan"),
        p_value=p_value,
        q_value=float("nan"),
    )


@dataclass(frozen=True, kw_only=True)
class McNemar:
    """McNemar's test of two probes on the images of one test set; two-sided.

    Attributes:
        only_first: images that only the first probe got right.
        only_second: images that only the second probe got right.
        exact: p of the binomial test that both are equally many; 1 if there are none.
        corrected: p of chi^2 = (|b - c| - 1)^2 / (b + c) with one degree of freedom; 1 if there are none.
    """

    only_first: int
    only_second: int
    exact: float
    corrected: float


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> McNemar:
    """Test whether two probes have the same top-1 accuracy; for balanced accuracy use the paired bootstrap.

    Args:
        first, second: [N] which images each probe got right, in the same order.

    >>> found = mcnemar(np.array([True] * 9 + [False]), np.array([False] * 8 + [True] * 2))
    >>> found.only_first, found.only_second, found.exact, round(found.corrected, 4)
    (8, 1, 0.0390625, 0.0455)
    """
    b, c = int((first & ~second).sum()), int((second & ~first).sum())
    if b + c == 0:
        return McNemar(only_first=0, only_second=0, exact=1.0, corrected=1.0)
    statistic = max(abs(b - c) - 1, 0) ** 2 / (b + c)
    return McNemar(
        only_first=b,
        only_second=c,
        # scipy.stats has both, and takes 200 times as long; a study has 40,000 pairs
        exact=min(1.0, 2 * float(bdtr(min(b, c), b + c, 0.5))),
        corrected=float(chdtrc(1, statistic)),
    )
