"""The results of probing: rows of results.jsonl, and the table that a terminal shows of them.

A row with the same `key` (`result_key.py`) is the same result and is reused. Two runs of one key differ in times only.

In a table, rows that differ in nothing but their seed, draw or fold become one line: the mean and the standard deviation (of n - 1)
over them, and how often each value was chosen. Seeds that diverged are counted, and are part of no mean.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from ...data.task_names import ERRORS
from ...models.layers import short_levels
from ..probe_spec import REFERENCE

Row = dict[str, Any]
COLUMNS = ("probe", "chosen setting", "validation", "test", "gain", "parameters", "seconds", "key")
SEEDS = ("split.seed", "protocol.seed")
"""Fields of a key in which the rows of one probe differ from seed to seed."""
OF_PART = ("train_rows", "test_rows", "train_targets", "test_targets", "train_usable", "test_usable", "split.rule")
"""Fields of a key in which the draws of one subset, or the folds of one split, differ beside the number of the part."""
COMPUTE = "protocol.compute"
_IN_A_SETTING = ("lr", "weight_decay", "dropout", "penalty", "num_neighbors")
_SHORT = {"weight_decay": "wd", "num_neighbors": "k"}


def key_of(setting: dict[str, Any]) -> str:
    """The digest of a setting.

    >>> key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
    True
    """
    return digest_of_text(canonical_json(setting).encode())


def canonical_json(value: Any) -> str:
    """JSON with sorted names, without spaces, in ASCII; raises ValueError for NaN and infinities, which JSON does not have."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def plain_values(value: Any) -> Any:
    """A value as JSON has it: objects and lists; an infinite number, such as a `clip_norm` that clips nothing, is a text.

    >>> plain_values({"clip_norm": float("inf"), "lrs": (0.1, 0.01)})
    {'clip_norm': 'inf', 'lrs': [0.1, 0.01]}
    """
    if isinstance(value, Mapping):
        return {str(name): plain_values(one) for name, one in value.items()}
    if isinstance(value, tuple | list):
        return [plain_values(one) for one in value]
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def digest_of_text(text: bytes) -> str:
    """The first 32 hex digits of SHA-256."""
    return hashlib.sha256(text).hexdigest()[:32]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """The metric that the settings of a row were chosen by, and how it is shown.

    Attributes:
        key: its name in `test` of the row.
        title: its name and unit in a title.
        factor: what it is multiplied by to be shown: 100 where it is a share shown in percent.
        unit: stands after a number in a sentence.
        num_digits: digits after the point.
        validation_factor: what a validation score is multiplied by beside: -1 for an error, whose score is negative.
    """

    key: str
    title: str
    factor: float = 1.0
    unit: str = ""
    num_digits: int = 3
    validation_factor: float = 1.0

    def show(self, score: float) -> str:
        """A score of the test as text, without its unit.

        >>> BALANCED_ACCURACY.show(0.9312), metric_named("r2").show(0.9312)
        ('93.1', '0.931')
        """
        return f"{self.factor * score:.{self.num_digits}f}"

    def of_validation(self, score: float) -> float:
        """A validation score, which is higher for a better setting, in the unit of the test."""
        return self.validation_factor * score

    def of_test(self, row: Row) -> float:
        """The score of the test images of a row that has not diverged, as it is shown."""
        return self.factor * float(row["test"][self.key])

    def gain(self, row: Row, reference: Row) -> float:
        """The difference between the test scores of two such rows."""
        return self.factor * float(row["test"][self.key] - reference["test"][self.key])


BALANCED_ACCURACY = Metric(
    key="balanced_accuracy", title="balanced accuracy in percent", factor=100.0, unit=" %", num_digits=1
)


def metric_named(name: str) -> Metric:
    """The metric of this name."""
    if name == BALANCED_ACCURACY.key:
        return BALANCED_ACCURACY
    return Metric(key=name, title=name.replace("_", " "), validation_factor=-1.0 if name in ERRORS else 1.0)


def metric_of(row: Row) -> Metric:
    """The metric of a row: balanced accuracy unless it names another one."""
    return metric_named(row.get("metric", BALANCED_ACCURACY.key))


def setting_of(row: Row) -> str:
    """The digest of all that decides a row beside its probe and the matmul precision, which solved heads do not depend on.

    Rows of format 1 have the digest of everything but the probe.
    """
    if "key_fields" not in row:
        return str(row["setting_of_study"])
    fields = row["key_fields"].items()
    return key_of({name: value for name, value in fields if not name.startswith("probe.") and name != COMPUTE})


def gains(rows: Iterable[Row]) -> dict[str, float]:
    """Test score over that of `linear-cls`, by key, in points of percent for accuracies; empty where there is no such row.

    Probes that are trained are compared in their own matmul precision, probes that are solved in any.
    """
    rows = [row for row in rows if row["test"] is not None]
    references: dict[tuple[str, str | None], Row] = {}
    for row in rows:
        if row["probe"] == REFERENCE:
            references |= {(setting_of(row), compute): row for compute in (_compute_of(row), None)}
    cases = {row["key"]: (setting_of(row), _compute_of(row)) for row in rows}
    return {
        row["key"]: metric_of(row).gain(row, references[case])
        for row in rows
        if (case := cases[row["key"]]) in references
    }


def _compute_of(row: Row) -> str | None:
    """The matmul precision as the key of a row has it; None for a solved head, and for rows of format 1."""
    return row["key_fields"].get(COMPUTE, "") if "key_fields" in row and row.get("compute") else None


def describe_choice(row: Row) -> str:
    """What validation chose beside a setting: a probe of a family, levels, a number of settings; "" where it chose nothing else.

    >>> describe_choice({"candidate": None, "derived": {"rounds": []}, "levels": ["block.3", "block.4", "final"]})
    'levels 3-4, final'
    """
    derived = row.get("derived") or {}
    if row.get("candidate"):
        return str(row["candidate"])
    if "rounds" in derived:
        return f"levels {short_levels(row['levels'])}"
    if "members" in derived:
        return f"{sum(not one['diverged'] for one in derived['members'])} settings"
    return ""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A number over seeds: its mean, and the standard deviation between seeds, of n - 1, None for one seed."""

    mean: float
    std: float | None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A probe over the seeds it was trained with.

    Attributes:
        rows: one a seed, in the order given.
        validation, test: scores as `metric` shows them, balanced accuracy in percent; None if every seed diverged.
        gain: test score over `linear-cls` of the same seed; None where there is none to compare with.
    """

    rows: tuple[Row, ...]
    validation: Spread | None
    test: Spread | None
    gain: Spread | None

    @property
    def probe(self) -> str:
        return str(self.rows[0]["probe"])

    @property
    def case(self) -> str:
        """See `case_of`."""
        return case_of(self.rows[0])

    @property
    def metric(self) -> Metric:
        return metric_of(self.rows[0])

    @property
    def seeds(self) -> list[int]:
        return [row["protocol"]["seed"] for row in self.rows]

    @property
    def num_diverged(self) -> int:
        return sum(row["test"] is None for row in self.rows)

    @property
    def seconds(self) -> float:
        """Seconds of all phases and seeds."""
        return sum(sum(row["seconds"].values()) for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        numbers = {"validation": self.validation, "test": self.test, "gain": self.gain}
        return {
            "probe": self.probe,
            "case": self.case,
            "seeds": self.seeds,
            "num_diverged": self.num_diverged,
            **{name: spread and asdict(spread) for name, spread in numbers.items()},
            "num_parameters": self.rows[0]["num_parameters"],
            "seconds": self.seconds,
            "keys": [row["key"] for row in self.rows],
        }


def summarize(rows: Sequence[Row]) -> list[Summary]:
    """Join rows that differ in nothing but their seed, draw or fold; in the order of their first ones."""
    gain_of = gains(rows)
    groups: dict[str, list[Row]] = {}
    for row in rows:
        same = _fields_of_summary(row["key_fields"]) if "key_fields" in row else _fields_of_format_1(row)
        groups.setdefault(key_of({name: same[name] for name in same if name not in SEEDS}), []).append(row)
    return [
        Summary(
            rows=tuple(group),
            validation=_spread(
                metric.factor * metric.of_validation(row["validation"]) for row in group if row["test"] is not None
            ),
            test=_spread(metric.of_test(row) for row in group if row["test"] is not None),
            gain=_spread(gain_of[row["key"]] for row in group if row["key"] in gain_of),
        )
        for group in groups.values()
        for metric in [metric_of(group[0])]
    ]


def case_of(row: Row) -> str:
    """What a row predicts and on which subset or folds it is trained; "" for the labels of a data set and all its images.

    >>> case_of({"key_fields": {"target": "age", "part": {"name": "5 shots", "number": 1, "of": "0"}}}), case_of({})
    ('age, 5 shots', '')
    """
    fields = row.get("key_fields", {})
    part = fields.get("part")
    parts = [fields.get("target"), part.get("name") if isinstance(part, dict) else None]
    return ", ".join(str(one) for one in parts if one)


def data_of(row: Row) -> str:
    """Name of a row's data set for people, with what is predicted and which draw or fold is trained on.

    >>> part = {"name": "5 shots", "number": 1, "of": "0"}
    >>> data_of({"dataset": "cells", "key_fields": {"target": "age", "part": part}}), data_of({"dataset": "cells"})
    ('cells (age, 5 shots, no. 2)', 'cells')
    """
    part = row.get("key_fields", {}).get("part")
    number = f", no. {part['number'] + 1}" if isinstance(part, dict) else ""
    return f"{row['dataset']} ({case}{number})" if (case := case_of(row)) else str(row["dataset"])


def _fields_of_summary(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields of a key without the draw or fold."""
    if not isinstance(part := fields.get("part"), dict):
        return fields
    same = {name: value for name, value in fields.items() if name not in OF_PART}
    return {**same, "part": {name: value for name, value in part.items() if name != "number"}}


def _fields_of_format_1(row: Row) -> dict[str, Any]:
    """The fields that distinguish rows without `key_fields`."""
    # what validation chose may differ from seed to seed
    chosen = row.get("candidate") is not None or row.get("derived") is not None
    names = ("probe",) if chosen else ("probe", "head", "levels", "kinds", "num_heads", "normalize")
    protocol = {f"protocol.{name}": value for name, value in row["protocol"].items()}
    return {name: row[name] for name in (*names, "train_fingerprint", "test_fingerprint")} | protocol


def results_table(rows: Sequence[Row]) -> list[list[str]]:
    """One line a probe, under COLUMNS: scores and gain over `linear-cls` as `Metric` shows them, seconds of all phases.

    A probe all of whose settings diverged has dashes in place of numbers.
    """
    return [
        [
            f"{summary.probe} ({summary.case})" if summary.case else summary.probe,
            _settings(summary),
            _show(summary.validation, summary.metric),
            _show(summary.test, summary.metric),
            _show(summary.gain, summary.metric, sign="+"),
            f"{summary.rows[0]['num_parameters']:,}",
            f"{summary.seconds:.1f}",
            " ".join(row["key"][:8] for row in summary.rows),
        ]
        for summary in summarize(rows)
    ]


def results_title(rows: Sequence[Row], folder: Path) -> str:
    """The title of the table: backbone, data set, metrics, seeds and folder."""
    metrics = " or ".join(dict.fromkeys(metric_of(row).title for row in rows))
    seeds = list(dict.fromkeys(row["protocol"]["seed"] for row in rows))
    over = f", mean ± standard deviation over seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else ""
    quirks = ", with the reference's quirks" if any(row["protocol"].get("jitter_validation") for row in rows) else ""
    return f"{rows[0]['backbone']} on {rows[0]['dataset']}: {metrics}{over}{quirks}; {folder}"


def _settings(summary: Summary) -> str:
    """`lr 0.1, wd 1e-06` where all seeds chose the same, `lr 0.1 (2) 0.01 (1), ...` where they did not."""
    from layerbank.probes import HEADS  # imports torch, which readers of rows can do without

    finished = [row for row in summary.rows if row["test"] is not None]
    parts = []
    if summary.num_diverged:
        seeds = f" of {summary.num_diverged} of {len(summary.rows)} seeds" if len(summary.rows) > 1 else ""
        parts.append(f"every setting{seeds} diverged")
    if any(choices := Counter(map(describe_choice, finished))):
        parts.append(_counted(choices, " or "))
    chosen = finished[0]["chosen"] if finished else {}
    in_order = {name: None for name in _IN_A_SETTING if name in chosen}  # in a row that was read, names are sorted
    for name in in_order | chosen:
        if name != "dropout" or finished[0]["head"] not in HEADS or HEADS[finished[0]["head"]].has_dropout:
            values = Counter(_number(row["chosen"].get(name)) for row in finished)
            parts.append(f"{_SHORT.get(name, name)} {_counted(values, ' ')}")
    return ", ".join(parts)


def _counted(values: Counter[str], between: str) -> str:
    """The most common first, each with its number; a single one without.

    >>> _counted(Counter(["0.1", "0.01", "0.1"]), " "), _counted(Counter(["0.1"]), " ")
    ('0.1 (2) 0.01 (1)', '0.1')
    """
    return between.join(f"{value} ({count})" if len(values) > 1 else value for value, count in values.most_common())


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _spread(values: Iterable[float]) -> Spread | None:
    known = list(values)
    return Spread(mean=fmean(known), std=stdev(known) if len(known) > 1 else None) if known else None


def _show(spread: Spread | None, metric: Metric, sign: str = "") -> str:
    if spread is None:
        return "-"
    digits = f".{metric.num_digits}f"
    return f"{spread.mean:{sign}{digits}}" + ("" if spread.std is None else f" ± {spread.std:{digits}}")
