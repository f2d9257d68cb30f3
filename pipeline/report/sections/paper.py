"""Ours beside the published numbers, for the same model, data set and probe."""

from __future__ import annotations

import numpy as np

from ...probing.results import gains
from ...statistics.paper import BesidePaper, beside_paper
from ..page.blocks import Block, DataTable, Section, Words, csv_text
from ..page.numbers import counted, percent, points
from ..report_data import ReportData

COLUMNS = ("probe", "model", "data set", "seed", "ours", "paper", "difference", "our gain", "paper's gain")
MEAN_COLUMNS = ("probe", "results", "mean difference", "mean of our gains", "mean of the paper's gains")


def section(report_data: ReportData) -> Section | None:
    """Every result with a counterpart, and means by probe; nothing unless it was asked for."""
    if not report_data.options.against_paper:
        return None
    pairs = beside_paper([one for one in report_data.scores if np.isfinite(one.percent)])
    if not pairs:
        report_data.notes.append("Against the paper: it has none of these models, data sets and probes together.")
        return None
    gain_of = gains(report_data.rows)
    numbers = [
        (
            one.ours.probe,
            one.ours.model,
            one.ours.dataset,
            one.ours.seed,
            one.ours.percent,
            one.published,
            one.difference,
            gain_of.get(one.ours.key, float("nan")),
            one.published_gain,
        )
        for one in pairs
    ]
    table = DataTable(
        id="paper",
        caption=f"{counted(len(pairs), 'result')} beside the published ones: balanced accuracy in percent, differences in points",
        columns=COLUMNS,
        lines=[
            (*map(str, line[:4]), percent(line[4], 2), percent(line[5], 2), *(points(value, 2) for value in line[6:]))
            for line in numbers
        ],
        csv=csv_text(COLUMNS, numbers),
    )
    blocks: list[Block] = [_means(pairs, gain_of), table]
    blocks.append(
        Words(
            texts=[
                "The published numbers are of one seed, from Ciernik et al. 2026 (arXiv 2601.09322). Its authors validated with "
                "jitter, ran CLIP's weights with GELU and normalised the tokens of aat over the token axis; layerbank does none of "
                "these, so small differences either way are to be expected."
            ],
            quiet=True,
        )
    )
    return Section(anchor="paper", title="Against the paper", blocks=blocks)


def _means(pairs: list[BesidePaper], gain_of: dict[str, float]) -> DataTable:
    nan = float("nan")
    numbers = []
    for probe in dict.fromkeys(one.ours.probe for one in pairs):
        alike = [one for one in pairs if one.ours.probe == probe]
        ours = float(np.mean([gain_of.get(one.ours.key, nan) for one in alike]))
        theirs = float(np.mean([one.published_gain for one in alike]))
        numbers.append((probe, len(alike), float(np.mean([one.difference for one in alike])), ours, theirs))
    return DataTable(
        id="paper-means",
        caption="By probe: how far ours lie above the published accuracies, and the mean gains of both on the same cases",
        columns=MEAN_COLUMNS,
        lines=[(line[0], str(line[1]), *(points(value, 2) for value in line[2:])) for line in numbers],
        csv=csv_text(MEAN_COLUMNS, numbers),
    )
