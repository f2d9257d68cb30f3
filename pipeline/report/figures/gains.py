"""Box plot of gains by probe: what each probe adds to the reference, and on how many data sets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...probing.probe_spec import REFERENCE
from ...statistics.scores import Table, gains_of
from ...statistics.significance import compare_gains
from ...statistics.summaries import summarize
from .style import BLACK, COLUMN, GREY, color_of, drawing, drawn_name, grid, save


def draw_gains(table: Table, stem: Path, *, probes: Sequence[str] | None = None, reference: str = REFERENCE) -> Path:
    """Draw the gains of every probe over all cases.

    A box has the quartiles, with whiskers to 1.5 times their distance; every case is a dot, the mean a diamond and a number; a star
    stands where the gain is significant over data sets (`compare_gains`: Wilcoxon, one-sided, FDR 5 %).

    Args:
        table: accuracies in percent.
        stem: of the files to write.
        probes: from top to bottom; None takes those of the table.
        reference: what gains are over; it has no box.

    Raises:
        RequestError: no result of the reference.
    """
    gains = gains_of(table, reference)
    names = [name for name in (probes or table.probes) if name in table.probes and name != reference]
    tests = {one.probe: one for one in compare_gains(gains, names)}
    lines = [
        (name, *case, float(value), tests[name].p_value, tests[name].q_value)
        for name in names
        for case, value in zip(gains.cases, gains.column(name), strict=True)
    ]
    with drawing(COLUMN, 0.62 + 0.23 * max(len(names), 1)) as figure:
        axes = figure.add_subplot()
        columns = [gains.column(name)[np.isfinite(gains.column(name))] for name in names]
        places = -np.arange(len(names))
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
            offsets = (
                np.arange(len(column)) * 0.618034 % 1 - 0.5
            ) * 0.44  # golden ratio: spread, and the same every time
            size = 2 if len(column) > 40 else 4
            axes.plot(column, place + offsets, ".", color=color_of(name), markersize=size, alpha=0.8, markeredgewidth=0)
            mean = summarize(column).mean
            axes.plot([mean], [place], "D", color="white", markeredgecolor=BLACK, markeredgewidth=0.7, markersize=3.4)
            star = " *" if tests[name].significant else ""
            axes.annotate(
                f"{mean:+.2f}{star}" if len(column) else "no result",
                (1.01, place),
                xycoords=("axes fraction", "data"),
                va="center",
                fontsize=6.5,
            )
        axes.axvline(0, color=GREY, linewidth=0.7)
        axes.set_yticks(places, [drawn_name(name) for name in names])
        axes.set_ylim(-len(names) + 0.4, 0.6)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(f"gain over {reference} (points of balanced accuracy)")
        axes.set_title("mean", loc="right", fontsize=6.5, x=1.13, pad=2)
        grid(axes, "x")
        return save(figure, stem, ("probe", "model", "dataset", "seed", "gain", "p", "q"), lines)
