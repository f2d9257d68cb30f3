"""A result as a record of plain numbers: what CSV and Parquet hold, a line each, and the table of every result shows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ..errors import RequestError
from ..probing.results import describe_choice, gains
from .page.blocks import csv_text
from .report_data import ReportData


@dataclass(frozen=True, kw_only=True)
class Record:
    """One result. Accuracies in percent, gains in points; None is what is not known.

    Attributes:
        model, dataset, seed, probe: which.
        balanced_accuracy: as in results.jsonl, None where every setting diverged.
        balanced_accuracy_low, balanced_accuracy_high: 95 % over test images.
        gain: over `linear-cls` of the same setting.
        gain_low, gain_high: 95 % over test images.
        top1, top5, macro_f1: of the saved predictions.
        validation: balanced accuracy on which the setting was chosen.
        found: what validation chose beside a setting: a head of a family, levels, how many settings; "" where nothing.
        num_parameters: of the probe.
        tokens_read: of an image.
        trainings: all that it took to find the probe, that of what it is made of included.
        seconds: its share of training and testing.
        setting: digest of stores and protocol.
        key: of the row.
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


def records_of(report_data: ReportData) -> list[Record]:
    """Every row of a protocol, in order."""
    gain_of = gains(report_data.rows)
    records = []
    for (case, probe), row in report_data.row.items():
        tested = report_data.tested[case]
        said, interval, gain = (of.get(probe) for of in (tested.accuracies, tested.intervals, tested.gains))
        records.append(
            Record(
                model=case.model,
                dataset=case.dataset,
                seed=case.seed,
                probe=probe,
                balanced_accuracy=None if row["test"] is None else 100 * row["test"]["balanced_accuracy"],
                balanced_accuracy_low=interval.low if interval else None,  # type: ignore[union-attr]
                balanced_accuracy_high=interval.high if interval else None,  # type: ignore[union-attr]
                gain=gain_of.get(row["key"]),
                gain_low=gain.low if gain else None,  # type: ignore[union-attr]
                gain_high=gain.high if gain else None,  # type: ignore[union-attr]
                top1=100 * said.top1 if said else None,  # type: ignore[union-attr]
                top5=100 * said.top5 if said else None,  # type: ignore[union-attr]
                macro_f1=100 * said.macro_f1 if said else None,  # type: ignore[union-attr]
                validation=None if row.get("validation") is None else 100 * row["validation"],
                found=describe_choice(row),
                num_parameters=row.get("num_parameters"),
                tokens_read=row.get("cost", {}).get("tokens_read"),
                trainings=row.get("cost", {}).get("trainings"),
                seconds=sum(row["seconds"].values()) if "seconds" in row else None,
                setting=row["setting_of_study"],
                key=row["key"],
            )
        )
    return records


def csv_of(records: Sequence[Record]) -> str:
    """A line a record, with all digits."""
    names = [field.name for field in fields(Record)]
    return csv_text(names, [list(asdict(one).values()) for one in records])


def require_parquet() -> None:
    """Refuse Parquet where nothing can write it, before any work.

    Raises:
        RequestError: pyarrow is not installed.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise RequestError(
            where="--parquet",
            expected="the package pyarrow",
            got="it is not installed",
            todo="Install it: pip install 'layerbank[parquet]'. --csv holds the same numbers without it.",
        ) from error


def write_parquet(path: Path, records: Sequence[Record]) -> None:
    """Write every result as one Parquet file with a column a field, whole or not at all.

    Args:
        path: of the file.
        records: at least one.
    """
    import pyarrow as pa
    from pyarrow import parquet

    kinds = {"str": pa.string(), "int": pa.int64(), "float": pa.float64()}
    schema = pa.schema([(field.name, kinds[str(field.type).split(" ")[0]]) for field in fields(Record)])
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    parquet.write_table(pa.Table.from_pylist([asdict(one) for one in records], schema=schema), staging)
    staging.replace(path)
