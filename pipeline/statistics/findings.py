"""Findings: which probe wins each case, by how much, and whether that is certain.

A case is a model on a data set with a seed. Intervals and p-values come from the saved predictions; without them there is no
interval.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..probing.bootstrap import Interval
from ..probing.probe_spec import REFERENCE
from .scores import Case, Score
from .significance import adjust
from .tested import Tested


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The winner of a case.

    Attributes:
        case: the case.
        probe: the probe with the highest balanced accuracy; the first of equals.
        percent: its balanced accuracy.
        gain: points over `linear-cls`, with 95 % over test images; None without that reference.
        q_value: McNemar's exact test of the two on all images alike, after Benjamini and Hochberg over all cases; NaN without
            predictions.
        alf: balanced accuracy of `alf`, NaN if there is none.
        num_probes: how many probes the case has, those that diverged among them.
    """

    case: Case
    probe: str
    percent: float
    gain: Interval | None
    q_value: float
    alf: float
    num_probes: int

    def __str__(self) -> str:
        """The finding in a sentence."""
        case, gain = self.case, self.gain
        where = f"{case.model} on {case.dataset}, seed {case.seed}: "
        if self.num_probes == 1:
            return f"{where}{self.probe} has {self.percent:.1f} %, and there is no other probe to compare it with."
        text = f"{where}{self.probe} is best with {self.percent:.1f} %"
        if gain is None:
            text += f"; there is no {REFERENCE} to compare it with"
        elif self.probe == REFERENCE:
            text += "; no other probe gains anything"
        else:
            text += f", {gain.value:+.1f} points over {REFERENCE}"
            if np.isfinite(gain.low):
                text += f" (95 % over test images: {gain.low:+.1f} to {gain.high:+.1f}; McNemar q = {self.q_value:.2g})"
        if np.isfinite(self.alf) and self.probe != "alf":
            text += f". alf does not win here: {self.alf:.1f} %" if self.alf < self.percent else ". alf ties"
        return text + "."


def find(scores: Sequence[Score], tested: Mapping[Case, Tested]) -> list[Finding]:
    """The finding of every case, in the order of the scores, which are of one protocol."""
    cases: dict[Case, dict[str, float]] = {}
    num_probes = Counter(score.case for score in scores)
    for score in scores:
        if np.isfinite(score.percent):
            cases.setdefault(score.case, {})[score.probe] = score.percent
    winners = {case: max(probes, key=probes.__getitem__) for case, probes in cases.items()}
    p_values = [
        float("nan") if best == REFERENCE else tested[case].mcnemar(best, REFERENCE) for case, best in winners.items()
    ]
    return [
        Finding(
            case=case,
            probe=best,
            percent=cases[case][best],
            gain=_gain(cases[case], best, tested[case]),
            q_value=q_value,
            alf=cases[case].get("alf", float("nan")),
            num_probes=num_probes[case],
        )
        for (case, best), q_value in zip(winners.items(), adjust(p_values), strict=True)
    ]


def _gain(probes: Mapping[str, float], best: str, tested: Tested) -> Interval | None:
    if REFERENCE not in probes:
        return None
    nan = float("nan")
    return tested.gains.get(best, Interval(value=probes[best] - probes[REFERENCE], low=nan, high=nan))
