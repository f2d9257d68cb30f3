"""Accuracy class by class, folded, a table for each case."""

from __future__ import annotations

import numpy as np

from ...statistics.scores import Case
from ..page.blocks import Block, DataTable, Fold, Note, csv_text
from ..page.numbers import counted, percent
from ..report_data import ReportData, ReportFigure

MAX_CASES = 24  # a larger study would be mostly these; a report of a part of it shows them


def _make(data: ReportData) -> list[Block]:
    cases = [case for case in data.cases if data.tested[case].hits]
    blocks: list[Block] = [
        Fold(title=data.label(case), blocks=[_table(data, case, number)])
        for number, case in enumerate(cases[:MAX_CASES])
    ]
    if len(cases) > MAX_CASES:
        rest = counted(len(cases) - MAX_CASES, "case")
        blocks.append(Note(f"{rest} more: layerbank report RUNS/DATASET/STORE shows one store's."))
    return blocks


def _table(data: ReportData, case: Case, number: int) -> DataTable:
    tested = data.tested[case]
    probes = [name for name in tested.hits if name in data.main.probes]
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
