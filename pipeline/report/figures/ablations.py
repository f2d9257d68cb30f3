"""Ablations: CLS against AP against both, number of heads, tokens kept, seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import RequestError
from ...probing.bootstrap import seed_interval
from ...probing.rows.results import Row
from ...statistics.scores import Table
from ..page.blocks import Block, DataTable, Note, Picture, csv_text
from ..page.numbers import percent2, span
from ..report_data import ReportData, ReportFigure
from ..style import (
    BLACK,
    COLUMN,
    CYCLE,
    GREY,
    MARKERS,
    beside,
    color_of,
    dots,
    drawing,
    drawn_name,
    grid,
    one_line_each,
    save,
)

SECTION = ("ablations", "Kinds, heads, seeds")
SEED_COLUMNS = ("probe", "model", "data set", "seeds", "mean", "std", "95 % of the mean")


@dataclass(frozen=True, kw_only=True, eq=False)
class Series:
    """Accuracy of each case at each value of something that was varied.

    Attributes:
        varied: label of the axis.
        steps: S names of its values, in order.
        cases: C names.
        values: [C, S] balanced accuracy in percent, NaN where there is none.
    """

    varied: str
    steps: tuple[str, ...]
    cases: tuple[str, ...]
    values: NDArray[np.float64]


def kinds_series(table: Table, probe: str = "alf") -> Series:
    """CLS only, AP only and both, for `alf`, `linear-{set}` or `attn-{set}`.

    Raises:
        RequestError: one of the three is not in the table.
    """
    averaged = table.mean_over("seed")
    values = np.stack([averaged.column(name) for name in (f"{probe}-cls", f"{probe}-ap", probe)], axis=1)
    one_model = len({case.model for case in averaged.cases}) == 1
    names = tuple(case.dataset if one_model else f"{case.dataset} ({case.model})" for case in averaged.cases)
    return Series(varied=f"tokens of {probe}", steps=("cls", "ap", "cls+ap"), cases=names, values=values)


def heads_series(rows: Sequence[Row], levels: Sequence[str], kinds: Sequence[str]) -> Series:
    """Attentive probes on the same tokens with different numbers of heads, averaged over seeds.

    Probes that chose their tokens on validation, and ensembles, are others and left out.

    Raises:
        RequestError: no such row.
    """
    found: dict[str, dict[int, dict[int, float]]] = {}  # case -> number of heads -> seed -> percent
    for row in _attentive(rows):
        if row["levels"] == list(levels) and row["kinds"] == list(kinds):
            percent = float("nan") if row["test"] is None else 100 * row["test"]["balanced_accuracy"]
            by_heads = found.setdefault(f"{row['dataset']} ({row['backbone']})", {})
            by_heads.setdefault(row["num_heads"], {}).setdefault(row["protocol"]["seed"], percent)  # or an alias
    if not found:
        raise RequestError("report.no_head_counts", kinds=", ".join(kinds), levels=", ".join(levels))
    steps = sorted({heads for by_heads in found.values() for heads in by_heads})
    none = {0: float("nan")}
    values = [[np.mean([*by_heads.get(heads, none).values()]) for heads in steps] for by_heads in found.values()]
    return Series(varied="heads", steps=tuple(map(str, steps)), cases=tuple(found), values=np.array(values))


def _attentive(rows: Sequence[Row]) -> list[Row]:
    return [
        row
        for row in rows
        if row.get("head") == "attentive" and row.get("candidate") is None and row.get("derived") is None
    ]


def pruning_series(kept: Mapping[str, Sequence[tuple[int, float]]]) -> Series:
    """Accuracy with only the k tokens that get most attention: case -> (k, balanced accuracy in [0, 1]); see `report.saved`."""
    steps = sorted({count for points in kept.values() for count, _ in points})
    by_count = [dict(points) for points in kept.values()]
    values = np.array([[100 * points.get(step, float("nan")) for step in steps] for points in by_count])
    return Series(varied="tokens kept", steps=tuple(map(str, steps)), cases=tuple(kept), values=values)


def draw_series(series: Series, stem: Path) -> None:
    """Draw a thin line for each case and a thick one for the mean of the cases that have every step."""
    values = series.values
    x = np.arange(len(series.steps))
    with drawing(COLUMN, 2.2) as figure:
        axes = figure.add_subplot()
        few = len(series.cases) <= 6
        for number, (name, line) in enumerate(zip(series.cases, values, strict=True)):
            color, marker = (CYCLE[number], MARKERS[number]) if few else (GREY, ".")
            axes.plot(
                x,
                line,
                color=color,
                marker=marker,
                markersize=3,
                linewidth=0.7,
                alpha=0.9,
                label=drawn_name(name) if few else None,
            )
        whole = values[np.isfinite(values).all(1)]
        if len(whole) > 1:
            mean = f"mean of {len(whole)}"
            axes.plot(x, whole.mean(0), color=BLACK, linewidth=2, marker="o", markersize=4, label=mean)
        step = max(1, len(x) // 12)
        axes.set_xticks(x[::step], series.steps[::step])
        axes.set(xlim=(-0.3, len(x) - 0.7), xlabel=series.varied, ylabel="balanced accuracy (%)")
        grid(axes)
        if axes.get_legend_handles_labels()[0]:
            figure.legend(loc="outside lower center", ncols=2 if few else 1)
        lines = [
            (name, at, float(value))
            for name, line in zip(series.cases, values, strict=True)
            for at, value in zip(series.steps, line, strict=True)
        ]
        save(figure, stem, ("case", series.varied.replace(" ", "_"), "percent"), lines)


def draw_seeds(table: Table, stem: Path) -> None:
    """Draw the distance of each seed from the mean of its model and data set, a line for each probe, with the pooled deviation.

    Raises:
        RequestError: no model and data set has two seeds.
    """
    several = [lines for lines in table.group_seeds().values() if len(lines) > 1]
    if not several:
        raise RequestError("report.one_seed")
    names, lines = table.probes, []
    with drawing(COLUMN, 0.62 + 0.23 * len(names)) as figure:
        axes = figure.add_subplot()
        for place, name in enumerate(names):
            column = table.column(name)
            deviations = np.concatenate([column[group] - column[group].mean() for group in several])
            finite = deviations[np.isfinite(deviations)]
            dots(axes, finite, -place, 0.5, color=color_of(name), markersize=4, alpha=0.7)
            beside(axes, -place, f"{std_within(table, name):.2f}")
            lines += [
                (name, *table.cases[line], float(column[line]), float(column[line] - column[group].mean()))
                for group in several
                for line in group
            ]
        axes.set_xlabel("points from the mean over seeds")
        axes.set_title("std", loc="right", fontsize=6.5, x=1.1, pad=2)
        one_line_each(axes, names)
        save(figure, stem, ("probe", "model", "dataset", "seed", "percent", "deviation"), lines)


def std_within(table: Table, probe: str) -> float:
    """Standard deviation of a probe over seeds, pooled over models and data sets; NaN without two seeds.

    n seeds have n - 1 degrees of freedom. A model and data set with a diverged seed is left out.
    """
    column = table.column(probe)
    finite = [column[group] for group in table.group_seeds().values() if np.isfinite(column[group]).all()]
    freedom = sum(len(group) - 1 for group in finite)
    squares = sum(float(((group - group.mean()) ** 2).sum()) for group in finite)
    return float(np.sqrt(squares / freedom)) if freedom else float("nan")


def _kinds(data: ReportData) -> list[Picture] | None:
    table = data.table
    bases = [base for base in table.probes if {f"{base}-cls", f"{base}-ap"} <= set(table.probes)]
    pictures = []
    for base in bases:
        three = table.only([base, f"{base}-cls", f"{base}-ap"])
        part = three.lines(np.flatnonzero(np.isfinite(three.values).all(1)).tolist())
        if len(part.cases):
            caption = f"Tokens of {base}: CLS, mean patch, or both."
            pictures.append(_draw(data, f"kinds-{base}", kinds_series(part, base), caption))
    return pictures if bases else None


def _heads(data: ReportData) -> list[Picture] | None:
    attentive = _attentive(data.rows)
    probes: dict[tuple[tuple[str, ...], tuple[str, ...]], dict[int, str]] = {}
    for row in attentive:
        if row.get("num_heads"):
            probes.setdefault((tuple(row["levels"]), tuple(row["kinds"])), {})[row["num_heads"]] = row["probe"]
    several = {tokens: by_heads for tokens, by_heads in probes.items() if len(by_heads) > 1}
    pictures = []
    for number, ((levels, kinds), by_heads) in enumerate(several.items()):
        series = heads_series(attentive, levels, kinds)
        whole = np.isfinite(series.values).sum(1) > 1  # a case with one number of heads says nothing about them
        cases = tuple(case for case, kept in zip(series.cases, whole, strict=True) if kept)
        series = replace(series, cases=cases, values=series.values[whole])
        if len(series.cases):
            pictures.append(_draw(data, f"heads-{number}", series, f"Heads of {min(by_heads.values(), key=len)}."))
    return pictures if several else None


def _draw(data: ReportData, name: str, series: Series, caption: str) -> Picture:
    means = [f"{step}: {np.nanmean(column):.1f} %" for step, column in zip(series.steps, series.values.T, strict=True)]
    over = f"over {len(series.cases)} cases, by {series.varied}"
    return data.draw(
        name,
        lambda stem: draw_series(series, stem),
        alt=f"{caption} Mean balanced accuracy {over}: {', '.join(means)}.",
        caption=caption,
    )


def _seeds(data: ReportData) -> list[Block] | None:
    table = data.main
    numbers, lines = [], []
    for (model, dataset), group in table.group_seeds().items():
        for probe in table.probes:
            values = table.column(probe)[group]
            finite = values[np.isfinite(values)]
            if len(finite) < 2:
                continue
            one, std, count = seed_interval(values), float(np.std(finite, ddof=1)), len(finite)
            numbers.append((probe, model, dataset, count, one.value, std, one.low, one.high))
            shown = (percent2(one.value), percent2(std), span(one.low, one.high))
            lines.append((probe, model, dataset, str(count), *shown))
    if not lines:
        return None
    probes = list(dict.fromkeys(line[0] for line in lines))
    stds = ", ".join(f"{probe} std {percent2(std_within(table, probe))}" for probe in probes)
    picture = data.draw(
        "seeds",
        lambda stem: draw_seeds(table.only(probes), stem),
        alt=f"How far each seed lies from the mean of its model and data set, one line per probe: {stds}.",
        caption="Every seed against the mean over seeds of its model and data set; std pooled within.",
    )
    shown_table = DataTable(
        id="over-seeds",
        caption="Balanced accuracy in percent over seeds; the interval is a bootstrap over seeds",
        columns=SEED_COLUMNS,
        lines=lines,
        csv=csv_text((*SEED_COLUMNS[:-1], "low", "high"), numbers),
    )
    note = "An interval over so few seeds is too narrow: read it as a spread of training, not of test sets."
    return [picture, shown_table, Note(note)]


KINDS = ReportFigure(
    section=SECTION,
    make=_kinds,
    title="CLS against AP against both",
    needs="layerbank probe ... --probe alf,alf-cls,alf-ap",
)
HEADS = ReportFigure(
    section=SECTION,
    make=_heads,
    title="Accuracy by heads",
    needs="layerbank probe ... --probe alf --num-heads 4,8,24",
)
SEEDS = ReportFigure(
    section=SECTION,
    make=_seeds,
    title="Spread over seeds",
    needs="layerbank probe ... --seed 0,1,2",
)
