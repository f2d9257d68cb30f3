"""Results as a table for the terminal: what `results.jsonl` holds, in the order asked for, one line a probe.

Rows that differ in nothing but their seed become one line: mean and standard deviation over the seeds (of n - 1), and how often
each value was chosen. What diverged counts in no mean; the line says how many seeds did.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from layerbank.probes import HEADS

from .results import Row, found, gains, key_of

COLUMNS = ("probe", "chosen setting", "validation", "test", "gain", "parameters", "seconds", "key")
SHORT = {"weight_decay": "wd", "num_neighbors": "k"}


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A number over seeds.

    Attributes:
        mean: over the seeds.
        std: standard deviation between them, of n - 1; None for one seed.
    """

    mean: float
    std: float | None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A probe over the seeds it was trained with.

    Attributes:
        rows: of each seed, in the order given.
        validation, test: balanced accuracy in percent; None if every seed diverged.
        gain: points over `linear-cls` of the same seed; None where there is none to compare with.
    """

    rows: tuple[Row, ...]
    validation: Spread | None
    test: Spread | None
    gain: Spread | None

    @property
    def probe(self) -> str:
        return str(self.rows[0]["probe"])

    @property
    def seeds(self) -> list[int]:
        return [row["protocol"]["seed"] for row in self.rows]

    @property
    def num_diverged(self) -> int:
        return sum(row["test"] is None for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        numbers = {name: getattr(self, name) for name in ("validation", "test", "gain")}
        return {
            "probe": self.probe,
            "seeds": self.seeds,
            "num_diverged": self.num_diverged,
            **{
                name: None if value is None else {"mean": value.mean, "std": value.std}
                for name, value in numbers.items()
            },
            "num_parameters": self.rows[0]["num_parameters"],
            "seconds": sum(sum(row["seconds"].values()) for row in self.rows),
            "keys": [row["key"] for row in self.rows],
        }


def summarize(rows: Sequence[Row]) -> list[Summary]:
    """Rows that differ in nothing but their seed, together; in the order in which their first ones come."""
    gain_of = gains(rows)
    groups: dict[str, list[Row]] = {}
    for row in rows:
        protocol = {name: value for name, value in row["protocol"].items() if name != "seed"}
        stores = [row["train_fingerprint"], row["test_fingerprint"]]
        # what validation chose may differ from seed to seed
        chosen = row.get("candidate") is not None or row.get("derived") is not None
        names = ("probe",) if chosen else ("probe", "head", "levels", "kinds", "num_heads", "normalize")
        same = {name: row[name] for name in names}
        groups.setdefault(key_of({**same, "protocol": protocol, "stores": stores}), []).append(row)
    return [
        Summary(
            rows=tuple(group),
            validation=_spread(100 * row["validation"] for row in group if row["test"] is not None),
            test=_spread(100 * row["test"]["balanced_accuracy"] for row in group if row["test"] is not None),
            gain=_spread(gain_of[row["key"]] for row in group if row["key"] in gain_of),
        )
        for group in groups.values()
    ]


def results_table(rows: Sequence[Row]) -> list[list[str]]:
    """One line a probe: accuracies in percent of balanced accuracy, gain in points over `linear-cls`, seconds of all phases.

    A probe all of whose settings diverged has dashes in place of numbers.
    """
    return [
        [
            summary.probe,
            _settings(summary),
            _show(summary.validation, ".1f"),
            _show(summary.test, ".1f"),
            _show(summary.gain, "+.1f"),
            f"{summary.rows[0]['num_parameters']:,}",
            f"{sum(sum(row['seconds'].values()) for row in summary.rows):.1f}",
            " ".join(row["key"][:8] for row in summary.rows),
        ]
        for summary in summarize(rows)
    ]


def results_title(rows: Sequence[Row], folder: Path) -> str:
    """Which backbone and data set, how rows were made into lines, and where everything lies."""
    seeds = list(dict.fromkeys(row["protocol"]["seed"] for row in rows))
    over = f", mean ± standard deviation over seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else ""
    quirks = ", with the reference's quirks" if any(row["protocol"]["jitter_validation"] for row in rows) else ""
    return f"{rows[0]['backbone']} on {rows[0]['dataset']}: balanced accuracy in percent{over}{quirks}; {folder}"


def _settings(summary: Summary) -> str:
    """`lr 0.1, wd 1e-06` where all seeds chose the same, `lr 0.1 (2) 0.01 (1), ...` where they did not."""
    finished = [row for row in summary.rows if row["test"] is not None]
    parts = []
    if summary.num_diverged:
        of_seeds = f" of {summary.num_diverged} of {len(summary.rows)} seeds" if len(summary.rows) > 1 else ""
        parts.append(f"every setting{of_seeds} diverged")
    beside = Counter(found(row) for row in finished).most_common()
    if beside and beside[0][0]:
        parts.append(" or ".join(f"{what} ({count})" if len(beside) > 1 else what for what, count in beside))
    for name in finished[0]["chosen"] if finished else ():
        if name != "dropout" or HEADS[finished[0]["head"]].has_dropout:
            values = Counter(_number(row["chosen"].get(name)) for row in finished).most_common()
            shown = " ".join(f"{value} ({count})" for value, count in values) if len(values) > 1 else values[0][0]
            parts.append(f"{SHORT.get(name, name)} {shown}")
    return ", ".join(parts)


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _spread(values: Iterable[float]) -> Spread | None:
    known = list(values)
    if not known:
        return None
    return Spread(mean=fmean(known), std=stdev(known) if len(known) > 1 else None)


def _show(spread: Spread | None, format_: str) -> str:
    if spread is None:
        return "-"
    return f"{spread.mean:{format_}}" + ("" if spread.std is None else f" ± {spread.std:.1f}")
