"""Every result, a line each."""

from __future__ import annotations

from ..page.blocks import DataTable, Section
from ..page.numbers import percent, points
from ..records import Record, csv_of, records_of
from ..report_data import ReportData

COLUMNS = (
    "probe",
    "model",
    "data set",
    "seed",
    "balanced accuracy",
    "95 %",
    "gain",
    "95 % of gain",
    "top-1",
    "top-5",
    "macro F1",
    "parameters",
    "seconds",
    "key",
)


def section(report_data: ReportData) -> Section:
    """All numbers of all rows."""
    records = records_of(report_data)
    table = DataTable(
        id="results",
        caption=(
            "Accuracies in percent, gain in points over linear-cls of the same case; 95 % is a bootstrap over test images, "
            "stratified by class and paired"
        ),
        columns=COLUMNS,
        lines=[_line(one) for one in records],
        csv=csv_of(records),
    )
    return Section(anchor="results", title="Every result", blocks=[table])


def _line(one: Record) -> list[str]:
    nan = float("nan")

    def between(low: float | None, high: float | None, signed: bool = False) -> str:
        write = points if signed else percent
        return "-" if low is None or high is None else f"{write(low)} to {write(high)}"

    return [
        one.probe,
        one.model,
        one.dataset,
        str(one.seed),
        "diverged" if one.balanced_accuracy is None else f"{one.balanced_accuracy:.2f}",
        between(one.balanced_accuracy_low, one.balanced_accuracy_high),
        "-" if one.gain is None else points(one.gain, 2),
        between(one.gain_low, one.gain_high, signed=True),
        *(percent(nan if value is None else value) for value in (one.top1, one.top5, one.macro_f1)),
        "-" if one.num_parameters is None else f"{one.num_parameters:,}",
        "-" if one.seconds is None else f"{one.seconds:.1f}",
        one.key[:8],
    ]
