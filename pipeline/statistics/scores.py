"""Scores: the one shape in which statistics and figures see results, ours or the paper's; gains, means and ranks.

A score is one test accuracy of one probe; a table puts the probes of each case side by side. The decision taken here: results that
cannot be compared are refused, never averaged. Two scores for one cell (one probe under two protocols, say) are an error that names
both. A probe that diverged is NaN and stays visible.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from ..errors import RequestError
from ..probing.probe_spec import REFERENCE
from ..probing.rows.result_key import ALWAYS, KEY_TABLE
from ..probing.rows.results import Row, data_of, key_of, setting_of

_Kind = tuple[bool, int, str]
GIVEN_LEVEL = re.compile(r"(.+)@(\d+|final)")  # not linear@best, which is one probe in each case
_FROZEN = {  # fields of the protocol with the values that a key leaves out
    name.removeprefix("protocol."): value
    for name, value in KEY_TABLE.items()
    if name.startswith("protocol.") and value is not ALWAYS
}


class Case(NamedTuple):
    """What the scores in one line of a table have in common: a model on a data set with a seed."""

    model: str
    dataset: str
    seed: int

    @property
    def source(self) -> str:
        """The data set without what `data_of` adds: targets, draws and folds of one data set are not independent.

        >>> Case("vit", "cells (age, 5 shots, no. 2)", 0).source
        'cells'
        """
        return self.dataset.partition(" (")[0]


@dataclass(frozen=True, kw_only=True)
class Score:
    """One result.

    Attributes:
        model: id of the backbone.
        dataset: name of the data set.
        probe: name of the probe.
        seed: seed of its training.
        percent: test balanced accuracy, 0 to 100; NaN where every setting diverged.
        setting: digest of everything but the probe and the matmul precision; scores of two settings are not compared.
        key: key of the row in results.jsonl, "" for a score that has none.
    """

    model: str
    dataset: str
    probe: str
    seed: int = 0
    percent: float
    setting: str = ""
    key: str = ""

    @property
    def case(self) -> Case:
        """Its line in a table."""
        return Case(self.model, self.dataset, self.seed)


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """Probes side by side.

    Attributes:
        cases: C lines, in the order in which they first occurred.
        probes: P columns, likewise.
        values: [C, P] float64, in percent or in points; NaN where there is none or it diverged.
    """

    cases: tuple[Case, ...]
    probes: tuple[str, ...]
    values: NDArray[np.float64]

    def column(self, probe: str) -> NDArray[np.float64]:
        """[C] values of one probe.

        Raises:
            RequestError: the table has no such probe.
        """
        if probe not in self.probes:
            raise RequestError("statistics.no_such_probe", probe=probe, probes=", ".join(self.probes))
        return self.values[:, self.probes.index(probe)]

    def only(self, probes: Sequence[str]) -> Table:
        """Some of the columns, in the given order; names without a column are left out."""
        kept = tuple(probe for probe in probes if probe in self.probes)
        return replace(self, probes=kept, values=self.values[:, [self.probes.index(probe) for probe in kept]])

    def lines(self, kept: Sequence[int]) -> Table:
        """Some of the lines, by number."""
        return replace(self, cases=tuple(self.cases[line] for line in kept), values=self.values[kept])

    def group_seeds(self) -> dict[tuple[str, str], list[int]]:
        """(model, data set) -> its lines, one for each seed."""
        groups: dict[tuple[str, str], list[int]] = {}
        for line, case in enumerate(self.cases):
            groups.setdefault((case.model, case.dataset), []).append(line)
        return groups

    def over_sources(self) -> Table:
        """Average the targets, draws and folds of one data set, which are not independent."""
        return self._mean_of([case._replace(dataset=case.source) for case in self.cases])

    def mean_over(self, *fields: str) -> Table:
        """Average the cases that differ only in these fields ("model", "dataset", "seed").

        A mean is NaN unless all values of the group are finite: a probe must not look better because it diverged somewhere, nor
        because it was trained on the easy half.
        """
        blank: dict[str, Any] = {field: 0 if field == "seed" else "" for field in fields}
        return self._mean_of([case._replace(**blank) for case in self.cases])

    def _mean_of(self, cases: Sequence[Case]) -> Table:
        """The mean of the lines of each case."""
        groups: dict[Case, list[int]] = {}
        for line, case in enumerate(cases):
            groups.setdefault(case, []).append(line)
        values = [self.values[lines].mean(0) for lines in groups.values()]
        return replace(self, cases=tuple(groups), values=np.array(values).reshape(len(groups), len(self.probes)))


def case_of(row: Row) -> Case:
    """The case of a row."""
    return Case(row["backbone"], data_of(row), row["protocol"]["seed"])


def scores_of_rows(rows: Iterable[Row]) -> list[Score]:
    """Scores of the rows of results.jsonl; of rows with one key the last counts, as it does for `layerbank probe`."""
    last = {row["key"]: row for row in rows}
    return [
        Score(
            model=row["backbone"],
            dataset=data_of(row),
            probe=row["probe"],
            seed=row["protocol"]["seed"],
            percent=float("nan") if row["test"] is None else 100 * row["test"]["balanced_accuracy"],
            setting=setting_of(row),
            key=row["key"],
        )
        for row in last.values()
    ]


def group_by_protocol(rows: Iterable[Row]) -> list[list[Row]]:
    """Group rows by everything in the protocol of their study but the seed, in the order in which protocols first occurred.

    The row of a solved probe is in the group of every matmul precision in which others of its setting were trained, as it depends
    on none; without such rows, in that of the first precision.
    """
    protocols: dict[str, list[tuple[Row, str | None]]] = {}  # digest without the precision -> rows, each with its own
    for row in rows:
        protocol = study_protocol(row)
        compute = str(protocol.pop("compute")) if "compute" in protocol else None
        protocols.setdefault(key_of(protocol), []).append((row, compute))
    return [group for placed in protocols.values() for group in _by_compute(placed)]


def _by_compute(placed: Sequence[tuple[Row, str | None]]) -> list[list[Row]]:
    """Separate the rows of a protocol by their matmul precision, which is None for solved probes."""
    groups: dict[str, list[Row]] = {compute: [] for _, compute in placed if compute is not None}
    if len(groups) < 2:
        return [[row for row, _ in placed]]
    trained: dict[str, dict[str, None]] = {}  # setting -> precisions
    for row, compute in placed:
        if compute is not None:
            trained.setdefault(setting_of(row), {})[compute] = None
    for row, compute in placed:
        for one in trained.get(setting_of(row), [*groups][:1]) if compute is None else [compute]:
            groups[one].append(row)
    return [*groups.values()]


def protocol_of_rows(rows: Iterable[Row]) -> dict[str, Any]:
    """The protocol that a group of rows has in common."""
    return {name: value for row in rows for name, value in study_protocol(row).items()}


def study_protocol(row: Row) -> dict[str, Any]:
    """The protocol of a row's study without its seed; the row itself has the protocol with what its probe changes of it.

    Rows of format 1 have only the latter. The row of a solved probe has no `compute`.
    """
    protocol = _FROZEN | row["protocol"]
    if "key_fields" in row:
        decisive = {name.partition(".")[::2]: value for name, value in row["key_fields"].items()}
        protocol |= _FROZEN | {name: value for (of, name), value in decisive.items() if of in ("protocol", "split")}
        if "rule" in protocol:  # without the digest of the images
            protocol["rule"] = str(protocol["rule"]).partition(": ")[0]
    without = {"seed", "compute"} if _is_solved(row) else {"seed"}
    return {name: value for name, value in protocol.items() if name not in without}


def _is_solved(row: Row) -> bool:
    """Whether its head is solved, in float64 by any protocol; not known of rows of format 1."""
    return "key_fields" in row and row.get("compute") is None


def group_by_setting(rows: Sequence[Row]) -> list[list[Row]]:
    """Separate results of one protocol that have the same names and other settings: other images, labels, weights or views.

    Rows of format 1 are of other settings than those of format 2, and come after them. A second row of one probe, model, data set,
    seed and setting (of a probe that was changed and kept its name) is in the next group.

    Returns:
        Groups that `table_of` takes, in which each model has one setting on each data set; only one if that is so already.
    """
    kinds = _kinds_of(rows)
    settings: dict[tuple[str, str], dict[_Kind, None]] = {}  # model, data set -> settings in the order of the groups
    for row, kind in sorted(zip(rows, kinds, strict=True), key=lambda pair: pair[1][:2]):
        settings.setdefault(case_of(row)[:2], {})[kind] = None
    groups: list[list[Row]] = [[] for _ in range(max(map(len, settings.values()), default=0))]
    for row, kind in zip(rows, kinds, strict=True):
        groups[[*settings[case_of(row)[:2]]].index(kind)].append(row)
    return groups


def _kinds_of(rows: Sequence[Row]) -> list[_Kind]:
    """Of each row: whether it is of format 1; how many tables of its case and setting it does not fit into; its setting."""
    tables: dict[tuple[Case, str], list[tuple[str, set[str]]]] = {}  # of each, `setting_of` its rows, and probes
    kinds = []
    for row in rows:
        setting, study, probe = _setting_of_row(row), setting_of(row), row["probe"]
        known = tables.setdefault((case_of(row), setting), [])
        fitting = (number for number, (one, probes) in enumerate(known) if one == study and probe not in probes)
        number = next(fitting, len(known))
        if number == len(known):
            known.append((study, set()))
        known[number][1].add(probe)
        kinds.append(("key_fields" not in row, number, setting))
    return kinds


def _setting_of_row(row: Row) -> str:
    """The digest of what decides a row beside its probe, protocol and seed."""
    if "key_fields" in row:
        fields = row["key_fields"].items()
        return key_of(
            {name: value for name, value in fields if name.split(".")[0] not in ("probe", "protocol", "split")}
        )
    names = ("train_fingerprint", "test_fingerprint", "train_views")
    return key_of({name: row.get(name) for name in names})


def compared(scores: Iterable[Score]) -> list[Score]:
    """The scores of the cases that several probes share, so that no probe looks better for having fewer or other cases.

    Of the sets of probes that some case has, it is the one with the most scores beside one probe's, (probes - 1) x cases that have
    them all; of equals the larger, then the first. A probe that diverged in a case has that case.

    Returns:
        Scores in the order given; none where no case has two probes.
    """
    scores = list(scores)
    probes_of: dict[Case, set[str]] = {}
    for score in scores:
        probes_of.setdefault(score.case, set()).add(score.probe)
    candidates = dict.fromkeys(map(frozenset, probes_of.values()))

    def size(probes: frozenset[str]) -> tuple[int, int]:
        return (len(probes) - 1) * sum(probes <= of_case for of_case in probes_of.values()), len(probes)

    kept = max(candidates, key=size, default=frozenset())
    if len(kept) < 2:
        return []
    return [score for score in scores if score.probe in kept and kept <= probes_of[score.case]]


def table_of(scores: Iterable[Score]) -> Table:
    """Put scores side by side.

    Raises:
        RequestError: two scores of one probe, model, data set and seed; or scores in one line from different settings.
    """
    scores = list(scores)
    probes = tuple(dict.fromkeys(score.probe for score in scores))
    lines: dict[Case, dict[str, Score]] = {}
    for score in scores:
        cells = lines.setdefault(score.case, {})
        if first := cells.get(score.probe):
            raise RequestError(
                "statistics.two_results",
                **score.case._asdict(),
                probe=score.probe,
                first_percent=first.percent,
                first_key=first.key[:8] or "-",
                second_percent=score.percent,
                second_key=score.key[:8] or "-",
            )
        if first := next((one for one in cells.values() if one.setting != score.setting), None):
            raise RequestError(
                "statistics.two_settings",
                **score.case._asdict(),
                first_probe=first.probe,
                first_setting=first.setting[:8] or "-",
                probe=score.probe,
                setting=score.setting[:8] or "-",
            )
        cells[score.probe] = score
    values = [[cells[probe].percent if probe in cells else np.nan for probe in probes] for cells in lines.values()]
    return Table(cases=tuple(lines), probes=probes, values=np.array(values).reshape(len(lines), len(probes)))


def gains_of(table: Table, reference: str = REFERENCE) -> Table:
    """Points of every probe over the reference, case by case; NaN where either is missing or diverged.

    Raises:
        RequestError: there is no result of the reference.
    """
    return replace(table, values=table.values - table.column(reference)[:, None])


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Summary of the finite values of a column; all NaN without any.

    Attributes:
        count: number of finite values.
        num_missing: number of others: not trained, or diverged.
        mean, median, min, max: in the unit of the table.
        std: with n - 1 in the denominator, as in the paper's tables; NaN for one value.
    """

    count: int
    num_missing: int
    mean: float
    median: float
    min: float
    max: float
    std: float


def summarize(values: NDArray[np.float64]) -> Summary:
    """Summary of [n] values.

    >>> summary = summarize(np.array([1.0, 4.0, np.nan, 1.0]))
    >>> summary.count, summary.num_missing, summary.mean, summary.median, summary.max
    (3, 1, 2.0, 1.0, 4.0)
    """
    finite = values[np.isfinite(values)]
    shown = finite if len(finite) else np.array([np.nan])
    return Summary(
        count=len(finite),
        num_missing=len(values) - len(finite),
        mean=float(shown.mean()),
        median=float(np.median(shown)),
        min=float(shown.min()),
        max=float(shown.max()),
        std=float(finite.std(ddof=1)) if len(finite) > 1 else float("nan"),
    )


def mean_ranks(table: Table, probes: Sequence[str] | None = None) -> dict[str, float]:
    """Mean over the cases of the rank of each probe among the probes; 1 is best, equals share the mean of their ranks.

    Only cases in which every one of the probes has a value count: a rank among fewer would be better for no reason. The paper's
    mean rank is this of the table averaged over models.

    Args:
        table: accuracies or gains; the reference shifts a line and changes no rank.
        probes: to rank; None takes all of the table.

    Returns:
        Probe -> mean rank, NaN if no case has them all.
    """
    chosen = table if probes is None else table.only(probes)
    whole = chosen.values[np.isfinite(chosen.values).all(1)]
    ranks = rankdata(-whole, axis=1).mean(0) if len(whole) else np.full(len(chosen.probes), np.nan)
    return dict(zip(chosen.probes, ranks.tolist(), strict=True))


def rankable(table: Table) -> list[str]:
    """Probes with a value in at least half of the cases: one that was tried on a few must not leave all others without a rank."""
    return [probe for probe in table.probes if 2 * np.isfinite(table.column(probe)).sum() >= len(table.cases)]
