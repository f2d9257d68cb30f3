"""Ablations: CLS against AP against both, heads, tokens kept, seeds, and training against test accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import RequestError
from ...probing.results import Row
from ...statistics.scores import Table
from ...statistics.summaries import summarize
from .style import BLACK, COLUMN, CYCLE, GREY, MARKERS, color_of, drawing, drawn_name, grid, save


@dataclass(frozen=True, kw_only=True, eq=False)
class Series:
    """One accuracy a case and step of something that was varied.

    Attributes:
        varied: what, as the axis calls it.
        steps: S names of its values, in order.
        cases: C names.
        values: [C, S] balanced accuracy in percent, NaN where there is none.
    """

    varied: str
    steps: tuple[str, ...]
    cases: tuple[str, ...]
    values: NDArray[np.float64]


def kinds_series(table: Table, probe: str = "alf") -> Series:
    """CLS only, AP only and both, of `alf` or a `linear-{set}` or `attn-{set}`.

    Raises:
        RequestError: one of the three is not in the table.
    """
    averaged = table.mean_over("seed")
    values = np.stack([averaged.column(name) for name in (f"{probe}-cls", f"{probe}-ap", probe)], axis=1)
    return Series(varied=f"tokens of {probe}", steps=("cls", "ap", "cls+ap"), cases=_names(averaged), values=values)


def heads_series(rows: Sequence[Row], levels: Sequence[str], kinds: Sequence[str]) -> Series:
    """Attentive probes on the same tokens with different numbers of heads; the mean over seeds where there are several.

    Raises:
        RequestError: no such row.
    """
    found: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        if row["head"] == "attentive" and row["levels"] == list(levels) and row["kinds"] == list(kinds):
            percent = float("nan") if row["test"] is None else 100 * row["test"]["balanced_accuracy"]
            by_heads = found.setdefault(f"{row['dataset']} ({row['backbone']})", {})
            by_heads.setdefault(row["num_heads"], []).append(percent)
    if not found:
        raise RequestError(
            where="accuracy by heads",
            expected=f"attentive probes on {', '.join(kinds)} of {', '.join(levels)}",
            got="none",
            todo="Train them with several numbers of heads.",
        )
    steps = sorted({heads for by_heads in found.values() for heads in by_heads})
    nan = [float("nan")]
    values = np.array([[np.mean(by_heads.get(heads, nan)) for heads in steps] for by_heads in found.values()])
    return Series(varied="heads", steps=tuple(map(str, steps)), cases=tuple(found), values=values)


def pruning_series(kept: Mapping[str, Sequence[tuple[int, float]]]) -> Series:
    """Accuracy with only the k tokens that are looked at most: case -> (k, balanced accuracy in [0, 1]); see `study.saved`."""
    steps = sorted({count for points in kept.values() for count, _ in points})
    by_count = [dict(points) for points in kept.values()]
    values = np.array([[100 * points.get(step, float("nan")) for step in steps] for points in by_count])
    return Series(varied="tokens kept", steps=tuple(map(str, steps)), cases=tuple(kept), values=values)


def draw_series(series: Series, stem: Path, *, relative_to: str | None = None) -> Path:
    """Draw a thin line a case and a thick one for the mean of the cases that have every step.

    Args:
        series: what was varied.
        stem: of the files to write.
        relative_to: a step that every case is shown relative to, in points; None shows percent.
    """
    values = series.values
    if relative_to is not None:
        values = values - values[:, [series.steps.index(relative_to)]]
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
        if relative_to is not None:
            axes.axhline(0, color=GREY, linewidth=0.7)
        step = max(1, len(x) // 12)
        axes.set_xticks(x[::step], series.steps[::step])
        axes.set_xlim(-0.3, len(x) - 0.7)
        axes.set_xlabel(series.varied)
        axes.set_ylabel(f"points over {relative_to}" if relative_to is not None else "balanced accuracy (%)")
        grid(axes)
        if axes.get_legend_handles_labels()[0]:
            figure.legend(loc="outside lower center", ncols=2 if few else 1)
        lines = [
            (name, at, float(value), float(drawn))
            for name, line, shown in zip(series.cases, series.values, values, strict=True)
            for at, value, drawn in zip(series.steps, line, shown, strict=True)
        ]
        return save(figure, stem, ("case", series.varied.replace(" ", "_"), "percent", "drawn"), lines)


def draw_seeds(table: Table, stem: Path, *, probes: Sequence[str] | None = None) -> Path:
    """Draw how far each seed lies from the mean of its model and data set, a line a probe, with the standard deviation within.

    Raises:
        RequestError: no model and data set has two seeds.
    """
    several = _of_several_seeds(table)
    if not several:
        raise RequestError(
            where="spread over seeds",
            expected="two seeds of a model and data set",
            got="one each",
            todo="Train another seed.",
        )
    names = [name for name in (probes or table.probes) if name in table.probes]
    lines = []
    with drawing(COLUMN, 0.62 + 0.23 * len(names)) as figure:
        axes = figure.add_subplot()
        for place, name in enumerate(names):
            column = table.column(name)
            deviations = np.concatenate([column[group] - column[group].mean() for group in several])
            drawn = deviations[np.isfinite(deviations)]
            offsets = (np.arange(len(drawn)) * 0.618034 % 1 - 0.5) * 0.5
            axes.plot(drawn, offsets - place, ".", color=color_of(name), markersize=4, alpha=0.7, markeredgewidth=0)
            axes.annotate(
                f"{std_within(table, name):.2f}",
                (1.01, -place),
                xycoords=("axes fraction", "data"),
                va="center",
                fontsize=6.5,
            )
            lines += [
                (name, *table.cases[line], float(column[line]), float(column[line] - column[group].mean()))
                for group in several
                for line in group
            ]
        axes.axvline(0, color=GREY, linewidth=0.7)
        axes.set_yticks(-np.arange(len(names)), [drawn_name(name) for name in names])
        axes.set_ylim(-len(names) + 0.4, 0.6)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("points from the mean over seeds")
        axes.set_title("std", loc="right", fontsize=6.5, x=1.1, pad=2)
        grid(axes, "x")
        return save(figure, stem, ("probe", "model", "dataset", "seed", "percent", "deviation"), lines)


def std_within(table: Table, probe: str) -> float:
    """How far seeds lie apart: the standard deviation of a probe within its models and data sets, pooled; NaN without two seeds.

    Of n seeds there are n - 1 deviations. A model and data set of which a seed diverged is left out.
    """
    column = table.column(probe)
    finite = [column[group] for group in _of_several_seeds(table) if np.isfinite(column[group]).all()]
    freedom = sum(len(group) - 1 for group in finite)
    squares = sum(float(((group - group.mean()) ** 2).sum()) for group in finite)
    return float(np.sqrt(squares / freedom)) if freedom else float("nan")


def _of_several_seeds(table: Table) -> list[list[int]]:
    """The lines of each model and data set that has several."""
    groups: dict[tuple[str, str], list[int]] = {}
    for line, case in enumerate(table.cases):
        groups.setdefault((case.model, case.dataset), []).append(line)
    return [lines for lines in groups.values() if len(lines) > 1]


def draw_train_test(points: Mapping[str, Sequence[tuple[str, float, float]]], stem: Path) -> Path:
    """Draw test against training accuracy: what lies far under the diagonal has learnt its training images by heart.

    Args:
        points: probe -> (case, balanced accuracy on the training images, on the test images), in [0, 1].
        stem: of the files to write.
    """
    values = [value for cases in points.values() for _, *pair in cases for value in pair if np.isfinite(value)]
    low = 100 * min(values, default=0.0) - 2
    lines = []
    with drawing(COLUMN, 2.5) as figure:
        axes = figure.add_subplot()
        axes.plot([low, 101], [low, 101], color=GREY, linewidth=0.7)
        for number, (name, cases) in enumerate(points.items()):
            train, test = (np.array([100 * case[at] for case in cases]) for at in (1, 2))
            gap = summarize(train - test).mean
            axes.plot(
                train, test, linestyle="", marker=MARKERS[number % len(MARKERS)], color=CYCLE[number % len(CYCLE)],
                markersize=4, markerfacecolor="none", markeredgewidth=0.9, label=f"{name} (gap {gap:.1f})",
            )  # fmt: skip
            lines += [(name, case, 100 * one, 100 * two) for case, one, two in cases]
        axes.set_xlim(low, 101)
        axes.set_ylim(low, 101)
        axes.set_xlabel("balanced accuracy on training images (%)")
        axes.set_ylabel("on test images (%)")
        grid(axes, "both")
        figure.legend(loc="outside lower center", ncols=2)
        return save(figure, stem, ("probe", "case", "train_percent", "test_percent"), lines)


def _names(table: Table) -> tuple[str, ...]:
    models = {case.model for case in table.cases}
    return tuple(case.dataset if len(models) == 1 else f"{case.dataset} ({case.model})" for case in table.cases)
