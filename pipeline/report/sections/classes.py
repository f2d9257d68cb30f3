"""Accuracy class by class, folded, a table a case."""

from __future__ import annotations

import numpy as np

from ...statistics.scores import Case
from ..page.blocks import Block, DataTable, Fold, Section, Words, csv_text
from ..page.numbers import counted, percent
from ..report_data import ReportData

MAX_CASES = 24  # a larger study would be mostly these; a report of a part of it shows them


def section(report_data: ReportData) -> Section | None:
    """One folded table a case, at most 24 of them."""
    cases = [case for case in report_data.cases if report_data.tested[case].hits]
    if not cases:
        return None
    blocks: list[Block] = [
        Fold(title=report_data.words(case), blocks=[_table(report_data, case, number)])
        for number, case in enumerate(cases[:MAX_CASES])
    ]
    if len(cases) > MAX_CASES:
        rest = counted(len(cases) - MAX_CASES, "case")
        blocks.append(Words(texts=[f"{rest} more: layerbank report RUNS/DATASET/STORE shows one store's."], quiet=True))
    return Section(anchor="classes", title="Class by class", blocks=blocks)


def _table(report_data: ReportData, case: Case, number: int) -> DataTable:
    tested = report_data.tested[case]
    probes = [name for name in tested.hits if name in report_data.main.probes]
    shares = np.stack([tested.accuracies[name].of_class for name in probes], axis=1)  # [C, P]
    names = report_data.class_names(case, len(shares))
    counts = [int((tested.labels == label).sum()) for label in range(len(shares))]
    columns = ("class", "test images", *probes)
    return DataTable(
        id=f"classes-{number}",
        caption=f"Share of each class of {case.dataset} that was recognised, in percent",
        columns=columns,
        lines=[
            (name, f"{count:,}", *(percent(100 * float(share)) for share in line))
            for name, count, line in zip(names, counts, shares, strict=True)
        ],
        csv=csv_text(
            columns, [(n, c, *(100 * line).tolist()) for n, c, line in zip(names, counts, shares, strict=True)]
        ),
    )
