"""Rows of tasks other than multiclass: one table of their scores, as the figures and statistics of a report are of accuracies."""

from __future__ import annotations

from collections.abc import Sequence

from ..outputs import csv_line
from ..probing.rows.results import COLUMNS, Row, data_of, metric_of, results_table
from .page.blocks import DataTable, Group, Section

_COLUMNS = ("model", "data", "task", "metric", *COLUMNS)


def lines_of(rows: Sequence[Row]) -> list[list[str]]:
    """A line for each probe of each model, data set, task and metric, under `_COLUMNS`."""
    cases: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in rows:
        case = (row["backbone"], data_of(row), row["task"], metric_of(row).key)
        cases.setdefault(case, []).append(row)
    return [[*case, *line] for case, of_case in cases.items() for line in results_table(of_case)]


def group_of(rows: Sequence[Row]) -> Group:
    """The table as a group of the page."""
    lines = lines_of(rows)
    text = "".join(csv_line(list(line)) for line in (_COLUMNS, *lines))
    caption = "Scores are of the metric that settings were chosen by; gain is over linear-cls."
    table = DataTable(id="other-tasks", caption=caption, columns=_COLUMNS, lines=lines, csv=text)
    return Group(
        title="Other tasks", prefix="", sections=[Section(anchor="tasks", title="Other tasks", blocks=[table])]
    )


def markdown_of(rows: Sequence[Row]) -> str:
    """The table in Markdown."""
    table = [_COLUMNS, ["---"] * len(_COLUMNS), *lines_of(rows)]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in table]
    return "## Other tasks\n\n" + "\n".join(lines) + "\n"
