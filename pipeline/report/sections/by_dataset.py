"""The table of the study: a line a data set, a column a probe, marks by test."""

from __future__ import annotations

from ...statistics.dataset_table import Cell as Mean
from ..figures.tables import draw_table
from ..page.blocks import Cell, DataTable, Section, Words, csv_text
from ..page.numbers import percent
from ..report_data import ReportData


def section(report_data: ReportData) -> Section:
    """Means over models and seeds; the picture of it is for papers, and not placed."""
    table = report_data.dataset_table
    report_data.draw("by-dataset", lambda stem: draw_table(table, stem), alt="", caption=table.note)
    lines: list[list[str | Cell]] = []
    for dataset, cells in table.lines.items():
        warned = dataset in table.warnings
        head = Cell(text=dataset, mark="warned", target="duplicates") if warned else dataset
        lines.append([head, *(Cell(text=_text(one), mark=_mark(one)) for one in cells)])
    lines.append(["mean", *(percent(mean) for mean in table.means)])
    lines.append(["mean rank", *(percent(rank, 2) for rank in table.ranks)])
    numbers = [(dataset, *(one.mean for one in cells)) for dataset, cells in table.lines.items()]
    columns = ("data set", *table.probes)
    shown = DataTable(
        id="by-dataset",
        caption="Balanced accuracy in percent, mean ± standard deviation over models and seeds",
        columns=columns,
        lines=lines,
        csv=csv_text(columns, numbers),
        foot=2,
    )
    return Section(anchor="datasets", title="By data set", blocks=[shown, Words(texts=[table.note], quiet=True)])


def _text(cell: Mean) -> str:
    return percent(cell.mean) + (f" ± {cell.std:.1f}" if cell.std == cell.std and cell.mean == cell.mean else "")


def _mark(cell: Mean) -> str:
    return "best" if cell.best else "tied" if cell.tied else ""
