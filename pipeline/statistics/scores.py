"""Scores: the one shape in which statistics and figures see results, ours or the paper's.

A score is one test accuracy of one probe; a table sets the probes of the same case side by side. The decision taken here: what
cannot be compared is refused, never averaged. Two scores that fall into one cell (one probe under two protocols, say) are an error
that names both; a probe that diverged is NaN and stays visible.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError
from ..probing.probe_spec import REFERENCE
from ..probing.results import Row, key_of


@dataclass(frozen=True, kw_only=True)
class Score:
    """One result.

    Attributes:
        model: id of the backbone.
        dataset: name of the data set.
        probe: name of the probe.
        seed: of its training.
        percent: test balanced accuracy, 0 to 100; NaN where every setting diverged.
        setting: digest of everything but the probe; scores of two settings are not compared with each other.
        key: of the row in results.jsonl, "" for a score that has none.
    """

    model: str
    dataset: str
    probe: str
    seed: int = 0
    percent: float
    setting: str = ""
    key: str = ""


class Case(NamedTuple):
    """What the scores of one line of a table have in common."""

    model: str
    dataset: str
    seed: int


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
            raise RequestError(
                where=f"probe {probe!r}",
                expected="one of " + ", ".join(self.probes),
                got="no result of it",
                todo="Train it on the same stores, or ask for one that was.",
            )
        return self.values[:, self.probes.index(probe)]

    def only(self, probes: Sequence[str]) -> Table:
        """Some of the columns, in the order asked for; those that do not exist are left out."""
        kept = tuple(probe for probe in probes if probe in self.probes)
        return replace(self, probes=kept, values=self.values[:, [self.probes.index(probe) for probe in kept]])

    def mean_over(self, *fields: str) -> Table:
        """Average the cases that differ in nothing but these fields ("model", "dataset", "seed").

        A mean is NaN unless all that exist in the group are finite: a probe must not look better because it diverged somewhere, nor
        because it was trained on the easy half.
        """
        key = _blank(fields)
        groups: dict[Case, list[int]] = {}
        for line, case in enumerate(self.cases):
            groups.setdefault(key(case), []).append(line)
        values = [self.values[lines].mean(0) for lines in groups.values()]
        return replace(self, cases=tuple(groups), values=np.array(values).reshape(len(groups), len(self.probes)))


def _blank(fields: tuple[str, ...]) -> Callable[[Case], Case]:
    changes = {field: 0 if field == "seed" else "" for field in fields}
    return lambda case: case._replace(**changes)  # type: ignore[arg-type]  # a name that is no field raises here


def scores_of_rows(rows: Iterable[Row]) -> list[Score]:
    """Scores of the rows of results.jsonl; of rows with one key the last counts, as it does for `layerbank probe`."""
    last = {row["key"]: row for row in rows}
    return [
        Score(
            model=row["backbone"],
            dataset=row["dataset"],
            probe=row["probe"],
            seed=row["protocol"]["seed"],
            percent=float("nan") if row["test"] is None else 100 * row["test"]["balanced_accuracy"],
            setting=row["setting_of_study"],
            key=row["key"],
        )
        for row in last.values()
    ]


def group_by_protocol(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows that were trained alike but for the seed: digest of the protocol -> rows, in the order in which they first occurred.

    A report is made of one group: what another protocol found is another study.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        protocol = {name: value for name, value in row["protocol"].items() if name != "seed"}
        groups.setdefault(key_of(protocol), []).append(row)
    return groups


def table_of(scores: Iterable[Score]) -> Table:
    """Set scores side by side.

    Raises:
        RequestError: two scores of one probe, model, data set and seed; or scores of one line from different settings.
    """
    scores = list(scores)
    probes = tuple(dict.fromkeys(score.probe for score in scores))
    lines: dict[Case, dict[str, Score]] = {}
    for score in scores:
        cells = lines.setdefault(Case(score.model, score.dataset, score.seed), {})
        if score.probe in cells:
            raise _repeated(cells[score.probe], score)
        if other := next((one for one in cells.values() if one.setting != score.setting), None):
            raise _conflict(other, score)
        cells[score.probe] = score
    missing = float("nan")
    values = [[cells[probe].percent if probe in cells else missing for probe in probes] for cells in lines.values()]
    return Table(cases=tuple(lines), probes=probes, values=np.array(values).reshape(len(lines), len(probes)))


def gains_of(table: Table, reference: str = REFERENCE) -> Table:
    """Points of every probe over the reference, case by case; NaN where either is missing or diverged.

    Raises:
        RequestError: there is no result of the reference.
    """
    return replace(table, values=table.values - table.column(reference)[:, None])


def _repeated(one: Score, two: Score) -> RequestError:
    return RequestError(
        where=f"{two.probe} of {two.model} on {two.dataset}, seed {two.seed}",
        expected="one result",
        got=f"{one.percent:.2f} (row {one.key[:8] or '-'}) and {two.percent:.2f} (row {two.key[:8] or '-'})",
        todo="Give the rows of one protocol and one version only.",
    )


def _conflict(one: Score, two: Score) -> RequestError:
    return RequestError(
        where=f"{two.model} on {two.dataset}, seed {two.seed}",
        expected="results of one setting (same stores, same protocol)",
        got=f"{one.probe} of setting {one.setting[:8] or '-'} and {two.probe} of setting {two.setting[:8] or '-'}",
        todo="Give the rows of one protocol only; two protocols belong in two reports.",
    )
