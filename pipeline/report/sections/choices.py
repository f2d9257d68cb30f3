"""What validation chose beside a setting: few levels, one level, several settings, a head of a family; and what that cost."""

from __future__ import annotations

from typing import Any

from ...probing.results import Row, describe_choice
from ...statistics.scores import Case
from ..page.blocks import DataTable, Section, csv_text
from ..page.numbers import points
from ..report_data import ReportData

COLUMNS = (
    "probe",
    "data set",
    "model",
    "seed",
    "chosen",
    "balanced accuracy",
    "made of",
    "difference to it",
    "tokens read",
    "trainings",
    "probe steps",
    "seconds",
)


def section(report_data: ReportData) -> Section | None:
    """A line a row that had such a choice; None where there is none."""
    chosen = [(case, row) for (case, _), row in report_data.row.items() if describe_choice(row)]
    if not chosen:
        report_data.lack(
            "Few levels, one level, several settings",
            "train probes that choose them: layerbank probe ... --probe linear@best,alf-smallest,alf-top3",
        )
        return None
    values = [_values(report_data, case, row) for case, row in chosen]
    table = DataTable(
        id="choices",
        caption=(
            "Chosen on the held-out images alone; accuracies in percent on the test images, differences in points to the probe "
            "that a row is made of. Trainings and steps include that probe's, seconds do not."
        ),
        columns=COLUMNS,
        lines=[_line(one) for one in values],
        csv=csv_text([name.replace(" ", "_") for name in COLUMNS], values),
    )
    return Section(anchor="choices", title="Few levels, one level, several settings", blocks=[table])


def _values(report_data: ReportData, case: Case, row: Row) -> list[Any]:
    """Plain values under COLUMNS; None is what is not known."""
    base = (row.get("derived") or {}).get("base")
    of_base = report_data.of_case(case).get(base) if base else None
    cost = row.get("cost") or {}
    return [
        row["probe"],
        case.dataset,
        case.model,
        case.seed,
        describe_choice(row),
        _accuracy(row),
        base,
        None if None in (_accuracy(row), _accuracy(of_base)) else _accuracy(row) - _accuracy(of_base),  # type: ignore[operator]
        cost.get("tokens_read"),
        cost.get("trainings"),
        cost.get("probe_steps"),
        sum(row["seconds"].values()) if "seconds" in row else None,
    ]


def _accuracy(row: Row | None) -> float | None:
    return None if row is None or row["test"] is None else 100 * float(row["test"]["balanced_accuracy"])


def _line(values: list[Any]) -> list[str]:
    probe, dataset, model, seed, chosen, accuracy, base, difference, tokens, trainings, steps, seconds = values
    return [
        probe,
        dataset,
        model,
        str(seed),
        chosen,
        "diverged" if accuracy is None else f"{accuracy:.2f}",
        base or "-",
        "-" if difference is None else points(difference, 2),
        *("-" if number is None else f"{number:,}" for number in (tokens, trainings, steps)),
        "-" if seconds is None else f"{seconds:.1f}",
    ]
