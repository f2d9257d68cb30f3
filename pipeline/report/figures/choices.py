"""What validation chose beside a setting: few levels, one level, several settings, a head of a family; and at which cost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...probing.rows.results import Row, describe_choice
from ...statistics.scores import Case
from ..page.blocks import Block, Columns, csv_text, table_of_values
from ..page.numbers import accuracy, integer, percent, points2
from ..report_data import ReportData, ReportFigure

COLUMNS: Columns = {
    "probe": str,
    "data set": str,
    "model": str,
    "seed": str,
    "chosen": str,
    "balanced accuracy": accuracy,
    "made of": lambda base: base or "-",
    "difference to it": points2,
    "tokens read": integer,
    "trainings": integer,
    "probe steps": integer,
    "seconds": percent,
}


def _make(data: ReportData) -> list[Block] | None:
    """A line for each row with such a choice."""
    values = [_values(data, case, row) for (case, _), row in data.row.items() if describe_choice(row)]
    if not values:
        return None
    caption = (
        "Chosen on the held-out images alone; accuracies in percent on the test images, differences in points to the probe "
        "that a row is made of. Trainings and steps include that probe's, seconds do not."
    )
    table = table_of_values("choices", caption, COLUMNS, values)
    return [replace(table, csv=csv_text([name.replace(" ", "_") for name in COLUMNS], values))]


def _values(data: ReportData, case: Case, row: Row) -> list[Any]:
    """Plain values under COLUMNS; None is unknown."""
    base = (row.get("derived") or {}).get("base")
    cost = row.get("cost") or {}
    mine, of_base = (_percent(one) for one in (row, data.rows_of[case].get(base or "")))
    return [
        row["probe"],
        case.dataset,
        case.model,
        case.seed,
        describe_choice(row),
        mine,
        base,
        None if mine is None or of_base is None else mine - of_base,
        cost.get("tokens_read"),
        cost.get("trainings"),
        cost.get("probe_steps"),
        sum(row["seconds"].values()) if "seconds" in row else None,
    ]


def _percent(row: Row | None) -> float | None:
    return None if row is None or row["test"] is None else 100 * float(row["test"]["balanced_accuracy"])


CHOICES = ReportFigure(
    section=("choices", "Few levels, one level, several settings"),
    make=_make,
    title="Few levels, one level, several settings",
    needs="train probes that choose them: layerbank probe ... --probe linear@best,alf-smallest,alf-top3",
)
