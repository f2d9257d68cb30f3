"""The table by data set: a line for each data set, a column for each probe, marks by test; and as a picture, for papers."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from ...statistics.dataset_table import Cell as Mean
from ...statistics.dataset_table import DatasetTable
from ..page.blocks import Block, Cell, DataTable, Note, csv_text
from ..page.numbers import percent, percent2
from ..report_data import ReportData, ReportFigure
from ..style import BLACK, COLUMN, GREY, PAGE, drawing, drawn_name, save

NAMES, MARGIN = 1.3, 0.22  # inches: of the data sets' names, and at the right for the slanted heads of columns
HEAD, STEP, NOTE = 0.62, 0.145, 0.105  # inches: heights of the head, a line, a line of notes


def draw_table(table: DatasetTable, stem: Path) -> None:
    """Draw means in percent, bold if best, underlined if not significantly below; the CSV has means, spreads and marks."""
    width = COLUMN if len(table.probes) <= 6 else PAGE
    notes = [table.note, *(f"{name}: {text}" for name, text in table.warnings.items())]
    wrapped = [line for note in notes for line in textwrap.wrap(note, int(width * 25))]
    height = HEAD + STEP * (len(table.lines) + 2) + 0.12 + NOTE * len(wrapped) + 0.04
    column = (width - NAMES - MARGIN) / len(table.probes)
    right = [NAMES + column * (number + 1) for number in range(len(table.probes))]
    with drawing(width, height) as figure:
        from matplotlib.lines import Line2D

        figure.set_layout_engine("none")

        def put(x: float, y: float, text: str, **style: Any) -> None:
            figure.text(x / width, 1 - y / height, text, va="baseline", **{"fontsize": 6.5, **style})

        def rule(left: float, end: float, y: float) -> None:
            ends = [left / width, end / width], [1 - y / height] * 2
            figure.add_artist(Line2D(*ends, color=BLACK, linewidth=0.6))

        for x, name in zip(right, table.probes, strict=True):
            put(x - 0.17, HEAD - 0.06, drawn_name(name), rotation=45, rotation_mode="anchor", fontsize=6)
        rule(0.03, width - 0.03, HEAD)
        y = HEAD
        for name, cells in table.lines.items():
            y += STEP
            put(0.05, y - 0.035, drawn_name(name))
            for x, cell in zip(right, cells, strict=True):
                text = percent(cell.mean)
                put(x, y - 0.035, text, ha="right", weight="bold" if cell.best else "normal")
                if cell.tied:
                    rule(x - 0.057 * len(text), x, y - 0.018)
        rule(0.03, width - 0.03, y + 0.03)
        y += 0.03
        for label, values, write in (("mean", table.means, percent), ("mean rank", table.ranks, percent2)):
            y += STEP
            put(0.05, y - 0.035, label)
            for x, value in zip(right, values, strict=True):
                put(x, y - 0.035, write(value), ha="right")
        rule(0.03, width - 0.03, y + 0.02)
        for line in wrapped:
            y += NOTE
            put(0.05, y + 0.03, line, fontsize=5.5, color=GREY)
        lines = [
            (name, probe, cell.mean, cell.std, int(cell.best), int(cell.tied))
            for name, cells in table.lines.items()
            for probe, cell in zip(table.probes, cells, strict=True)
        ]
        save(figure, stem, ("dataset", "probe", "mean", "std", "best", "tied"), lines)


def _make(data: ReportData) -> list[Block]:
    """Means over models and seeds; the picture of the table is for papers and has no place on the page."""
    table = data.dataset_table
    if not table.probes:  # every setting of every probe diverged
        return []
    data.draw("by-dataset", lambda stem: draw_table(table, stem), alt="", caption=table.note)
    lines: list[list[str | Cell]] = []
    for dataset, cells in table.lines.items():
        warned = dataset in table.warnings
        head = Cell(text=dataset, mark="warned", target="duplicates") if warned else dataset
        lines.append([head, *(_cell(one) for one in cells)])
    lines.append(["mean", *map(percent, table.means)])
    lines.append(["mean rank", *map(percent2, table.ranks)])
    columns = ("data set", *table.probes)
    shown = DataTable(
        id="by-dataset",
        caption="Balanced accuracy in percent, mean ± standard deviation over models and seeds",
        columns=columns,
        lines=lines,
        csv=csv_text(columns, [(name, *(one.mean for one in cells)) for name, cells in table.lines.items()]),
        foot=2,
    )
    return [shown, Note(table.note)]


def _cell(one: Mean) -> Cell:
    text = percent(one.mean) + (f" ± {one.std:.1f}" if one.std == one.std and one.mean == one.mean else "")
    return Cell(text=text, mark="best" if one.best else "tied" if one.tied else "")


BY_DATASET = ReportFigure(section=("datasets", "By data set"), make=_make)
