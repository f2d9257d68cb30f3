"""Accuracy level by level: probes on one level each, with those on many as lines."""

from __future__ import annotations

import numpy as np

from ...statistics.scores import Table
from ..figures.levels import draw_levels
from ..page.blocks import Gallery, Picture, Section
from ..report_data import GIVEN_LEVEL, ReportData


def section(report_data: ReportData) -> Section | None:
    """One figure a model."""
    table = report_data.table
    stems = dict.fromkeys(found[1] for name in table.probes if (found := GIVEN_LEVEL.fullmatch(name)))
    if not stems:
        report_data.lack(
            "Accuracy by level", "train probes on one level each: layerbank probe ... --probe linear@every,aat@every"
        )
        return None
    pictures: list[Picture] = []
    for number, model in enumerate(dict.fromkeys(case.model for case in table.cases)):
        kept = [
            line
            for line, case in enumerate(table.cases)
            if case.model == model
            and any(np.isfinite(table.column(p)[line]) for p in table.probes if GIVEN_LEVEL.fullmatch(p))
        ]
        if kept:
            part = Table(
                cases=tuple(table.cases[line] for line in kept), probes=table.probes, values=table.values[kept]
            )
            pictures.append(_picture(report_data, part, number, model, list(stems)))
    return Section(anchor="levels", title="Level by level", blocks=[Gallery(pictures=pictures)]) if pictures else None


def _picture(report_data: ReportData, part: Table, number: int, model: str, stems: list[str]) -> Picture:
    averaged = part.mean_over("seed")
    single = [name for name in averaged.probes if GIVEN_LEVEL.fullmatch(name)]
    best = []
    for line, case in enumerate(averaged.cases):
        values = {name: float(averaged.column(name)[line]) for name in single}
        name = max((name for name in single if np.isfinite(values[name])), key=values.__getitem__, default=None)
        if name is not None:
            best.append(f"{case.dataset}: best {name} with {values[name]:.1f} %")
    return report_data.draw(
        f"levels-{number}",
        lambda stem: draw_levels(part, stem),
        alt=f"Balanced accuracy of {', '.join(stems)} at each level of {model}. {'; '.join(best)}.",
        caption=f"Probes on one level of {model}; horizontal lines are probes on many.",
    )
