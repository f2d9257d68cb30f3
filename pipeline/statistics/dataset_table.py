"""The table by data set: a line for each data set, a column for each probe, mean and spread over models and seeds.

The best mean is bold. A mean that is not significantly below it is underlined: the best is tested against every other probe of the
line, and the p-values of the line are corrected together (FDR 5 %). The test is Wilcoxon's over the models and seeds of the line if
these are enough to decide (five), else the caller's: McNemar's on the predictions, for one model. Where neither can decide, nothing
is underlined: an underline is a finding, not the lack of one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .scores import Table, mean_ranks, rankable, summarize
from .significance import ALPHA, adjust, compare_with

ENOUGH_PAIRS = 5  # a one-sided test of fewer cannot come below 5 %

# data set, best probe, other probe -> p of no difference, NaN for no answer
CompareProbes = Callable[[str, str, str], float]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One probe on one data set.

    Attributes:
        mean: over models and seeds, NaN where one is missing or diverged.
        std: over them, NaN for one.
        best: the highest mean of its line, of several probes.
        tied: tested, and not significantly below the best.
    """

    mean: float
    std: float
    best: bool = False
    tied: bool = False


@dataclass(frozen=True, kw_only=True)
class DatasetTable:
    """The table and its marks.

    Attributes:
        probes: columns.
        lines: data set -> one cell for each probe.
        means: means of the columns over data sets.
        ranks: mean rank of the columns that have at least half of the lines, on lines that have them all.
        note: what the marks mean, and which test they are from.
        warnings: data set -> a warning, such as test images that are training images.
    """

    probes: tuple[str, ...]
    lines: Mapping[str, tuple[Cell, ...]]
    means: tuple[float, ...]
    ranks: tuple[float, ...]
    note: str
    warnings: Mapping[str, str]


def dataset_table(
    table: Table,
    probes: Sequence[str] | None = None,
    *,
    compare: CompareProbes | None = None,
    warnings: Mapping[str, str] | None = None,
) -> DatasetTable:
    """Make the table of accuracies in percent.

    Args:
        table: scores of all models and seeds.
        probes: columns; None takes all.
        compare: two-sided p of a probe against the best, for lines where Wilcoxon has too few pairs; without it nothing is
            underlined there.
        warnings: data set -> a line under the table; empty ones are left out.
    """
    shown = table if probes is None else table.only(probes)
    lines: dict[str, tuple[Cell, ...]] = {}
    tested_by: set[str] = set()
    for dataset in dict.fromkeys(case.dataset for case in shown.cases):
        part = shown.lines([line for line, case in enumerate(shown.cases) if case.dataset == dataset])
        lines[dataset] = _line(dataset, part, compare, tested_by)
    means = shown.mean_over("model", "seed")
    ranks = mean_ranks(means, rankable(means))
    marked = f"not significantly below it ({' or '.join(sorted(tested_by))}, FDR 5 %)."
    untested = "Nothing is underlined: too few models and seeds to test."
    return DatasetTable(
        probes=shown.probes,
        lines=lines,
        means=tuple(summarize(column).mean if np.isfinite(column).all() else float("nan") for column in means.values.T),
        ranks=tuple(ranks.get(probe, float("nan")) for probe in shown.probes),
        note="Bold: best mean. " + (f"Underlined: {marked}" if tested_by else untested),
        warnings={dataset: text for dataset, text in (warnings or {}).items() if text and dataset in lines},
    )


def _line(dataset: str, part: Table, compare: CompareProbes | None, tested_by: set[str]) -> tuple[Cell, ...]:
    summaries = [summarize(column) for column in part.values.T]
    means = [one.mean if not one.num_missing else float("nan") for one in summaries]
    if not np.isfinite(means).any():
        return tuple(Cell(mean=mean, std=one.std) for mean, one in zip(means, summaries, strict=True))
    best = part.probes[int(np.nanargmax(means))]
    others = [name for name, mean in zip(part.probes, means, strict=True) if name != best and np.isfinite(mean)]
    found = compare_with(part, best, others, alternative="less")
    p_values = [float("nan")] * len(others)
    if found and min(one.num_pairs for one in found) >= ENOUGH_PAIRS:
        p_values = [one.p_value for one in found]
        tested_by.add("Wilcoxon over models and seeds")
    elif found and compare is not None:
        p_values = [compare(dataset, best, other) for other in others]
        tested_by.add("McNemar over test images")
    tied = {name for name, q in zip(others, adjust(p_values), strict=True) if q >= ALPHA}
    return tuple(
        Cell(mean=mean, std=one.std, best=name == best and len(part.probes) > 1, tied=name in tied)
        for name, mean, one in zip(part.probes, means, summaries, strict=True)
    )


def table_markdown(table: DatasetTable) -> str:
    """GitHub's Markdown; pipes and underscores in names are escaped."""

    def mark(cell: Cell) -> str:
        text = _number(cell)
        return f"**{text}**" if cell.best else f"<u>{text}</u>" if cell.tied else text

    lines = [["data set", *table.probes], ["---", *["---:"] * len(table.probes)]]
    lines += [[_escape_markdown(name), *map(mark, cells)] for name, cells in table.lines.items()]
    lines += [["mean", *(_plain(mean) for mean in table.means)], ["mean rank", *(_plain(r, 2) for r in table.ranks)]]
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    warnings = "".join(f"\n- {_escape_markdown(name)}: {text}" for name, text in table.warnings.items())
    return f"{body}\n\n{table.note}\n{warnings}".rstrip() + "\n"


def table_latex(table: DatasetTable) -> str:
    """A `tabular` for the booktabs package; names are escaped."""

    def mark(cell: Cell) -> str:
        text = _number(cell, r" {\scriptsize$\pm$", "}")
        return rf"\textbf{{{text}}}" if cell.best else rf"\underline{{{text}}}" if cell.tied else text

    def row(cells: Sequence[str]) -> str:
        return " & ".join(cells) + r" \\"

    lines = [
        rf"\begin{{tabular}}{{l{'r' * len(table.probes)}}}",
        r"\toprule",
        row(["data set", *map(_escape_latex, table.probes)]),
        r"\midrule",
        *(row([_escape_latex(name), *map(mark, cells)]) for name, cells in table.lines.items()),
        r"\midrule",
        row(["mean", *(_plain(mean) for mean in table.means)]),
        row(["mean rank", *(_plain(rank, 2) for rank in table.ranks)]),
        r"\bottomrule",
        r"\end{tabular}",
        f"% {table.note}",
        *(f"% {name}: {text}" for name, text in table.warnings.items()),
    ]
    return "\n".join(lines) + "\n"


def _number(cell: Cell, before: str = " ±", after: str = "") -> str:
    if not np.isfinite(cell.mean):
        return "-"
    return f"{cell.mean:.1f}" + (f"{before}{cell.std:.1f}{after}" if np.isfinite(cell.std) else "")


def _plain(value: float, digits: int = 1) -> str:
    return f"{value:.{digits}f}" if np.isfinite(value) else "-"


def _escape_markdown(text: str) -> str:
    return re.sub(r"([\\`*_<>|\[\]])", r"\\\1", text)


def _escape_latex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(one, "\\" + one if one in "&%$#_{}" else one) for one in text)
