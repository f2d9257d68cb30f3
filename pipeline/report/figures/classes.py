"""Accuracy class by class, folded, a table for each case."""

from __future__ import annotations

import numpy as np

from ...statistics.scores import Case
from ..page.blocks import Block, DataTable, Fold, csv_text
from ..page.numbers import percent
from ..report_data import ReportData, ReportFigure

MAX_CASES = 24  # a larger study would be mostly these; a report of a part of it shows them


def _make(data: ReportData) -> list[Block]:
    cases, more = data.shown_cases(MAX_CASES)
    folds = [Fold(title=data.label(case), blocks=[_table(data, case, n)]) for n, case in enumerate(cases)]
    return [*folds, *more]


def _table(data: ReportData, case: Case, number: int) -> DataTable:
    tested = data.tested[case]
    probes = [name for name in tested.hits if name in data.main.probes] or list(tested.hits)
    shares = 100 * np.stack([tested.accuracies[name].of_class for name in probes], axis=1)  # [C, P]
    names = data.class_names(case, len(shares))
    counts = [int((tested.labels == label).sum()) for label in range(len(shares))]
    columns = ("class", "test images", *probes)
    return DataTable(
        id=f"classes-{number}",
        caption=f"Share of each class of {case.dataset} that was recognised, in percent",
        columns=columns,
        lines=[(n, f"{c:,}", *map(percent, line.tolist())) for n, c, line in zip(names, counts, shares, strict=True)],
        csv=csv_text(columns, [(n, c, *line.tolist()) for n, c, line in zip(names, counts, shares, strict=True)]),
    )


CLASSES = ReportFigure(section=("classes", "Class by class"), make=_make)
