"""Our results beside the published numbers, for the same model, data set and probe."""

from __future__ import annotations

import numpy as np

from ...probing.rows.results import gains
from ...quantities import counted
from ...statistics.paper import IMAGE_SIZE, beside_paper, has_papers_inputs
from ..page.blocks import Block, Columns, Note, table_of_values
from ..page.numbers import percent2, points2
from ..report_data import ReportData, ReportFigure

COLUMNS: Columns = {
    "probe": str,
    "model": str,
    "data set": str,
    "seed": str,
    "ours": percent2,
    "paper": percent2,
    "difference": points2,
    "our gain": points2,
    "paper's gain": points2,
}
MEAN_COLUMNS: Columns = {
    "probe": str,
    "results": str,
    "mean difference": points2,
    "mean of our gains": points2,
    "mean of the paper's gains": points2,
}
MEANS = "By probe: how far ours lie above the published accuracies, and the mean gains of both on the same cases"
COMPARED = (
    f"Only results with the pretrained weights at {IMAGE_SIZE} pixels are compared, on data read with wds: whose name and number "
    "of classes are those of the paper's data set."
)
NOTE = (
    "The published numbers are of one seed, from Ciernik et al. 2026 (arXiv 2601.09322). Its authors validated with "
    "jitter, ran CLIP's weights with GELU and normalised the tokens of aat over the token axis; layerbank does none of "
    "these, so small differences either way are to be expected."
)


def _make(data: ReportData) -> list[Block]:
    """Every result with a counterpart, and means by probe; nothing without --compare paper."""
    if not data.options.against_paper:
        return []
    finite = [one for one in data.scores if np.isfinite(one.percent)]
    pairs = [
        one for one in beside_paper(finite) if has_papers_inputs(one.ours, data.config(one.ours.case, one.ours.probe))
    ]
    if not pairs:
        data.notes.append(f"Against the paper: it has none of these models, data sets and probes together. {COMPARED}")
        return []
    gain_of = gains(data.rows)
    values = [
        (
            one.ours.probe,
            *one.ours.case,
            one.ours.percent,
            one.published,
            one.difference,
            gain_of.get(one.ours.key, float("nan")),
            one.published_gain,
        )
        for one in pairs
    ]
    means = []
    for probe in dict.fromkeys(line[0] for line in values):
        alike = [line[6:] for line in values if line[0] == probe]
        means.append((probe, len(alike), *(float(np.mean(column)) for column in zip(*alike, strict=True))))
    caption = f"{counted(len(pairs), 'result')} beside the published ones: balanced accuracy in percent, differences in points"
    return [
        table_of_values("paper-means", MEANS, MEAN_COLUMNS, means),
        table_of_values("paper", caption, COLUMNS, values),
        Note(f"{COMPARED} {NOTE}"),
    ]


PAPER = ReportFigure(section=("paper", "Against the paper"), make=_make)
