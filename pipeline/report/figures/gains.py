"""Gains of each probe over the reference: as a box plot, and by model size, since a larger backbone may leave less to gain."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from ...errors import RequestError
from ...probing.probe_spec import REFERENCE
from ...statistics.paper import find_model
from ...statistics.scores import Table, gains_of, summarize
from ...statistics.significance import compare_gains
from ..page.blocks import Picture
from ..page.numbers import points2
from ..report_data import ReportData, ReportFigure
from ..style import (
    BLACK,
    COLUMN,
    GREY,
    MARKERS,
    PAGE,
    beside,
    color_of,
    dots,
    drawing,
    drawn_name,
    grid,
    legend_of,
    one_line_each,
    save,
)

SIZES = ("Ti", "S", "B", "L", "H", "g")
OF_SIZE = ("linear-last", "linear-all", "aat", "alf")  # more lines than these cannot be distinguished
_WORDS = {"tiny": "Ti", "small": "S", "base": "B", "large": "L", "huge": "H", "giant": "g"}
_LETTER = re.compile(r"(?<![a-z])vit[-_]?(ti|s|b|l|h|g)(?![a-z])", re.IGNORECASE)


def draw_gains(table: Table, stem: Path) -> None:
    """Draw the gains of every probe over `linear-cls`, over all cases.

    A box shows the quartiles, with whiskers to 1.5 times their distance. Every case is a dot, the mean a diamond and a number. A
    star marks a gain that is significant over data sets (`compare_gains`: Wilcoxon, one-sided, FDR 5 %).

    Args:
        table: accuracies in percent; its probes are drawn from top to bottom.
        stem: path of the files to write, without a suffix.

    Raises:
        RequestError: no result of the reference.
    """
    gains = gains_of(table)
    names = [name for name in table.probes if name != REFERENCE]
    tests = {one.probe: one for one in compare_gains(gains, names)}
    with drawing(COLUMN, 0.62 + 0.23 * max(len(names), 1)) as figure:
        axes = figure.add_subplot()
        columns = [gains.column(name)[np.isfinite(gains.column(name))] for name in names]
        places = range(0, -len(names), -1)
        boxes = axes.boxplot(
            columns,
            positions=places,
            orientation="horizontal",
            widths=0.62,
            showfliers=False,  # every case is a dot anyway
            patch_artist=True,
            medianprops={"color": BLACK, "linewidth": 1},
            whiskerprops={"linewidth": 0.7},
            capprops={"linewidth": 0.7},
            manage_ticks=False,
        )
        for name, place, box, column in zip(names, places, boxes["boxes"], columns, strict=True):
            box.set(facecolor=color_of(name), alpha=0.35, linewidth=0.6)
            size = 2 if len(column) > 40 else 4
            dots(axes, column, place, 0.44, color=color_of(name), markersize=size, alpha=0.8)
            mean = summarize(column).mean
            axes.plot([mean], [place], "D", color="white", markeredgecolor=BLACK, markeredgewidth=0.7, markersize=3.4)
            star = " *" if tests[name].significant else ""
            beside(axes, place, f"{mean:+.2f}{star}" if len(column) else "no result")
        axes.set_xlabel(f"gain over {REFERENCE} (points of balanced accuracy)")
        axes.set_title("mean", loc="right", fontsize=6.5, x=1.13, pad=2)
        one_line_each(axes, names)
        lines = [
            (name, *case, float(value), tests[name].p_value, tests[name].q_value)
            for name in names
            for case, value in zip(gains.cases, gains.column(name), strict=True)
        ]
        save(figure, stem, ("probe", "model", "dataset", "seed", "gain", "p", "q"), lines)


def size_of(model: str) -> tuple[str, str] | None:
    """Family and size of a model, by the paper's list or by its name; None if the name has no size.

    >>> size_of("timm/vit_small_patch14_dinov2.lvd142m"), size_of("timm/eva02_large_patch14_224.mim_in22k")
    (('DINOv2', 'S'), ('eva02_patch14_224.mim_in22k', 'L'))
    >>> size_of("demo/vit-s-focus"), size_of("timm/resnet50")
    (('vit-focus', 'S'), None)
    """
    if known := find_model(model):
        return known.family, known.size
    name = model.removeprefix("timm/").removeprefix("demo/")
    for word, size in _WORDS.items():
        if match := re.search(rf"[-_]?{word}", name):
            return name.replace(match[0], "", 1), size
    if match := _LETTER.search(name):
        size = next(one for one in SIZES if one.lower() == match[1].lower())
        return name[: match.start(1)].rstrip("-_") + name[match.end(1) :], size
    return None


def draw_gains_by_size(table: Table, stem: Path) -> None:
    """Draw the mean gain over data sets against the size of the model, a panel for each family, with the standard error.

    Args:
        table: accuracies in percent; each probe but `linear-cls` is a line.
        stem: path of the files to write, without a suffix.

    Raises:
        RequestError: no result of the reference, or no model of known size.
    """
    gains = gains_of(table).mean_over("seed")
    names = [name for name in table.probes if name != REFERENCE]
    families: dict[str, dict[str, list[int]]] = {}
    for line, case in enumerate(gains.cases):
        if found := size_of(case.model):
            families.setdefault(found[0], {}).setdefault(found[1], []).append(line)
    if not families:
        models = ", ".join(sorted({case.model for case in gains.cases}))
        raise RequestError("report.unknown_sizes", models=models or "none")
    lines = []
    with drawing(COLUMN if len(families) <= 3 else PAGE, 1.9) as figure:
        panels = figure.subplots(1, len(families), sharey=True, squeeze=False)[0]
        for axes, (family, by_size) in zip(panels, families.items(), strict=True):
            sizes = [size for size in SIZES if size in by_size]
            for place, name in enumerate(names):
                summaries = [summarize(gains.column(name)[by_size[size]]) for size in sizes]
                errors = [one.std / np.sqrt(one.count) if one.count > 1 else 0.0 for one in summaries]
                axes.errorbar(
                    np.arange(len(sizes)) + 0.06 * (place - (len(names) - 1) / 2),
                    [one.mean for one in summaries],
                    yerr=errors,
                    color=color_of(name),
                    marker=MARKERS[place % len(MARKERS)],
                    linestyle="-" if name in ("alf", "aat") else "--",
                    elinewidth=0.6,
                    label=name,
                )
                lines += [
                    (family, size, name, one.mean, error, one.count)
                    for size, one, error in zip(sizes, summaries, errors, strict=True)
                ]
            axes.axhline(0, color=GREY, linewidth=0.7)
            axes.set_xticks(range(len(sizes)), sizes)
            axes.set(xlim=(-0.4, len(sizes) - 0.6), title=drawn_name(family))
            grid(axes)
        panels[0].set_ylabel(f"gain over {REFERENCE} (points)")
        legend_of(panels[0], ncols=4)
        save(figure, stem, ("family", "size", "probe", "mean_gain", "standard_error", "num_cases"), lines)


def _mean_gains(table: Table) -> dict[str, float]:
    """Probe -> mean gain over all cases; empty without the reference, or if no probe has a gain."""
    if REFERENCE not in table.probes:
        return {}
    gains = gains_of(table)
    means = {name: summarize(gains.column(name)).mean for name in table.probes if name != REFERENCE}
    return means if np.isfinite(list(means.values())).any() else {}


def _gains(data: ReportData) -> list[Picture] | None:
    if REFERENCE not in data.main.probes or len(data.main.probes) == 1:
        return None
    means = _mean_gains(data.main)
    if not means:
        return []
    numbers = ", ".join(f"{name} {points2(mean)}" for name, mean in means.items())
    return [
        data.draw(
            "gains",
            lambda stem: draw_gains(data.main, stem),
            alt=f"Box plot. Mean gain in points over {REFERENCE}: {numbers}.",
            caption=f"Gain over {REFERENCE}, one dot per case; a star is significant over data sets (Wilcoxon, FDR 5 %).",
        )
    ]


def _gains_by_size(data: ReportData) -> list[Picture] | None:
    table = data.main
    if not _mean_gains(table):
        return []
    sizes = {found for case in table.cases if (found := size_of(case.model))}
    if len({size for _, size in sizes}) < 2:
        return None
    probes = [name for name in OF_SIZE if name in table.probes] or list(table.probes[:4])
    drawn = sorted(f"{family} {size}" for family, size in sizes)
    return [
        data.draw(
            "gains-by-size",
            lambda stem: draw_gains_by_size(table.only([REFERENCE, *probes]), stem),
            alt=f"Mean gain over {REFERENCE} against the size of the model: {', '.join(drawn)}. The numbers are in the CSV.",
            caption="Mean gain over data sets by size of the model, with the standard error of the mean.",
        )
    ]


GAINS = ReportFigure(
    section=("summary", "Summary"),
    make=_gains,
    title="Gains",
    needs=f"train {REFERENCE} beside another probe: layerbank probe ... --probe {REFERENCE},alf",
)
GAINS_BY_SIZE = ReportFigure(
    section=("summary", "Summary"),
    make=_gains_by_size,
    title="Gains by model size",
    needs="needs models of several sizes: layerbank study RECIPE with models = [...]",
)
