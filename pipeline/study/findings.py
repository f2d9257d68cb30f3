"""What a study found, in numbers that can be said in a sentence: who wins each case, by how much, and whether that is certain.

A case is a model on a data set with a seed. Intervals and p-values come from the saved predictions; where those are missing there
is no interval, and a note says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import PipelineError
from pipeline.probe_names import REFERENCE

from .bootstrap import Interval, difference_interval
from .predictions import read_predictions, require_same_images
from .scores import Case, Score
from .significance import adjust, mcnemar


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The winner of a case.

    Attributes:
        case: which.
        probe: of the highest balanced accuracy; the first of equals.
        percent: its balanced accuracy.
        gain: points over `linear-cls`, with 95 % over test images; None without that reference.
        p_value: McNemar's exact test of the two on all images alike, NaN without predictions.
        q_value: after Benjamini and Hochberg over all cases of the report.
        alf: balanced accuracy of `alf`, NaN if there is none.
    """

    case: Case
    probe: str
    percent: float
    gain: Interval | None
    p_value: float
    q_value: float
    alf: float


def find(scores: list[Score], folders: Mapping[str, Path], notes: list[str]) -> list[Finding]:
    """The finding of every case, in the order of the scores.

    Args:
        scores: of one protocol.
        folders: key -> folder of a row.
        notes: is extended by what could not be read.
    """
    cases: dict[Case, dict[str, Score]] = {}
    for score in scores:
        if np.isfinite(score.percent):
            cases.setdefault(Case(score.model, score.dataset, score.seed), {})[score.probe] = score
    drafts = [(case, *_winner(probes, folders, notes)) for case, probes in cases.items()]
    q_values = adjust([p_value for _, _, _, p_value in drafts])
    return [
        Finding(
            case=case,
            probe=best.probe,
            percent=best.percent,
            gain=gain,
            p_value=p_value,
            q_value=q_value,
            alf=cases[case]["alf"].percent if "alf" in cases[case] else float("nan"),
        )
        for (case, best, gain, p_value), q_value in zip(drafts, q_values, strict=True)
    ]


def _winner(
    probes: Mapping[str, Score], folders: Mapping[str, Path], notes: list[str]
) -> tuple[Score, Interval | None, float]:
    nan = float("nan")
    best = max(probes.values(), key=lambda score: score.percent)
    if REFERENCE not in probes:
        return best, None, nan
    base = probes[REFERENCE]
    if best is base:
        return best, Interval(value=0.0, low=nan, high=nan), nan
    try:
        one, two = read_predictions(folders[best.key]), read_predictions(folders[base.key])
        require_same_images(one, two)
    except PipelineError as error:
        notes.append(f"No interval for {best.probe} on {best.dataset}: {error}")
        return best, Interval(value=best.percent - base.percent, low=nan, high=nan), nan
    interval = difference_interval(one.hits, two.hits, one.labels)
    points = Interval(value=100 * interval.value, low=100 * interval.low, high=100 * interval.high)
    return best, points, mcnemar(one.hits, two.hits).exact


def sentence(finding: Finding) -> str:
    """A finding in words."""
    case, gain = finding.case, finding.gain
    text = f"{case.model} on {case.dataset}, seed {case.seed}: {finding.probe} is best with {finding.percent:.1f} %"
    if gain is None:
        text += f"; there is no {REFERENCE} to compare it with"
    elif finding.probe == REFERENCE:
        text += "; no other probe gains anything"
    else:
        text += f", {gain.value:+.1f} points over {REFERENCE}"
        if np.isfinite(gain.low):
            text += f" (95 % over test images: {gain.low:+.1f} to {gain.high:+.1f}; McNemar q = {finding.q_value:.2g})"
    if np.isfinite(finding.alf) and finding.probe != "alf":
        text += f". alf does not win here: {finding.alf:.1f} %" if finding.alf < finding.percent else ". alf ties"
    return text + "."
