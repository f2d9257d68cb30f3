"""Every result as a record of plain numbers: a line of the table of all results, and of the CSV and Parquet files."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ...errors import RequestError
from ...outputs import write_output
from ...probing.rows.results import Row, describe_choice, gains
from ...statistics.scores import Case
from ..page.blocks import DataTable, csv_text
from ..page.numbers import accuracy, integer, percent, points, points2, span
from ..report_data import ReportData, ReportFigure


@dataclass(frozen=True, kw_only=True)
class Record:
    """One result. Accuracies in percent, gains in points; None is unknown.

    Attributes:
        model, dataset, seed, probe: names of the row.
        balanced_accuracy: as in results.jsonl, None if every setting diverged.
        balanced_accuracy_low, balanced_accuracy_high: 95 % over test images.
        gain: over `linear-cls` of the same setting.
        gain_low, gain_high: 95 % over test images.
        top1, top5, macro_f1: scores of the saved predictions.
        validation: balanced accuracy that the setting was chosen by.
        found: what validation chose beside a setting: a head of a family, levels, how many settings; "" if nothing.
        num_parameters: number of parameters of the probe.
        tokens_read: for each image.
        trainings: all that it took to find the probe, including those of the probe it is derived from.
        seconds: its share of training and testing.
        setting: digest of stores and protocol; of a solved probe, which is compared in any matmul precision, that of the trained
            probes beside it.
        key: key of the row.
    """

    model: str
    dataset: str
    seed: int
    probe: str
    balanced_accuracy: float | None
    balanced_accuracy_low: float | None
    balanced_accuracy_high: float | None
    gain: float | None
    gain_low: float | None
    gain_high: float | None
    top1: float | None
    top5: float | None
    macro_f1: float | None
    validation: float | None
    found: str
    num_parameters: int | None
    tokens_read: int | None
    trainings: int | None
    seconds: float | None
    setting: str
    key: str


def records_of(data: ReportData) -> list[Record]:
    """Every row of a protocol, in order."""
    gain_of = gains(data.rows)
    records = []
    for (case, probe), row in data.row.items():
        tested = data.tested[case]
        interval, gain, accuracies = tested.intervals.get(probe), tested.gains.get(probe), tested.accuracies.get(probe)
        records.append(
            Record(
                model=case.model,
                dataset=case.dataset,
                seed=case.seed,
                probe=probe,
                balanced_accuracy=None if row["test"] is None else 100 * row["test"]["balanced_accuracy"],
                balanced_accuracy_low=interval.low if interval else None,
                balanced_accuracy_high=interval.high if interval else None,
                gain=gain_of.get(row["key"]),
                gain_low=gain.low if gain else None,
                gain_high=gain.high if gain else None,
                top1=100 * accuracies.top1 if accuracies else None,
                top5=100 * accuracies.top5 if accuracies else None,
                macro_f1=100 * accuracies.macro_f1 if accuracies else None,
                validation=None if row.get("validation") is None else 100 * row["validation"],
                found=describe_choice(row),
                num_parameters=row.get("num_parameters"),
                tokens_read=row.get("cost", {}).get("tokens_read"),
                trainings=row.get("cost", {}).get("trainings"),
                seconds=sum(row["seconds"].values()) if "seconds" in row else None,
                setting=_setting(data, case, row),
                key=row["key"],
            )
        )
    return records


def _setting(data: ReportData, case: Case, row: Row) -> str:
    trained = (one["setting_of_study"] for one in data.rows_of[case].values() if one.get("compute"))
    return str(next(trained, row["setting_of_study"]))


def csv_of(records: Sequence[Record]) -> str:
    """One line for each record, with all digits."""
    return csv_text([field.name for field in fields(Record)], [list(asdict(one).values()) for one in records])


def require_parquet() -> None:
    """Refuse Parquet before any work if pyarrow is missing.

    Raises:
        RequestError: pyarrow is not installed.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise RequestError("report.no_pyarrow") from error


def write_parquet(path: Path, records: Sequence[Record]) -> None:
    """Write every result as one Parquet file with a column for each field, whole or not at all.

    Args:
        path: path of the file.
        records: at least one.
    """
    import pyarrow as pa
    from pyarrow import parquet

    kinds = {"str": pa.string(), "int": pa.int64(), "float": pa.float64()}
    schema = pa.schema([(field.name, kinds[str(field.type).split(" ")[0]]) for field in fields(Record)])
    content = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist([asdict(one) for one in records], schema=schema), content)
    write_output(path, content.getvalue())


COLUMNS: dict[str, Callable[[Record], str]] = {
    "probe": lambda one: one.probe,
    "model": lambda one: one.model,
    "data set": lambda one: one.dataset,
    "seed": lambda one: str(one.seed),
    "balanced accuracy": lambda one: accuracy(one.balanced_accuracy),
    "95 %": lambda one: span(one.balanced_accuracy_low, one.balanced_accuracy_high),
    "gain": lambda one: points2(one.gain),
    "95 % of gain": lambda one: span(one.gain_low, one.gain_high, points),
    "top-1": lambda one: percent(one.top1),
    "top-5": lambda one: percent(one.top5),
    "macro F1": lambda one: percent(one.macro_f1),
    "parameters": lambda one: integer(one.num_parameters),
    "seconds": lambda one: percent(one.seconds),
    "key": lambda one: one.key[:8],
}


def _make(data: ReportData) -> list[DataTable]:
    records = records_of(data)
    table = DataTable(
        id="results",
        caption=(
            "Accuracies in percent, gain in points over linear-cls of the same case; 95 % is a bootstrap over test images, "
            "stratified by class and paired; macro F1 is the mean of the F1 scores of the classes that have test images, each of "
            'them counted once (scikit-learn\'s average="macro" over these classes)'
        ),
        columns=tuple(COLUMNS),
        lines=[[write(one) for write in COLUMNS.values()] for one in records],
        csv=csv_of(records),
    )
    return [table]


RESULTS = ReportFigure(section=("results", "Every result"), make=_make)
