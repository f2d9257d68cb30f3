"""Accuracy level by level: probes on one level each as curves over depth, probes on many levels as horizontal lines."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...errors import RequestError
from ...models.layers import FINAL
from ...statistics.scores import Case, Table
from .style import BLUE, COLUMN, GREEN, MARKERS, ORANGE, PURPLE, VERMILION, drawing, drawn_name, grid, save

STEMS = {"linear": ("linear, cls", BLUE), "linear-ap": ("linear, ap", ORANGE), "aat": ("aat, all tokens", GREEN)}
FUSED = {"alf": (VERMILION, "--"), "aat-quarterly": (PURPLE, ":"), "linear-all": (BLUE, "-.")}
_LEVEL = re.compile(r"(.+)@(\d+|final)")


def draw_levels(table: Table, stem: Path, *, fused: Sequence[str] = ("alf", "aat-quarterly")) -> Path:
    """Draw a panel a case (model and data set), two beside each other.

    Args:
        table: accuracies in percent of probes `linear@k`, `linear-ap@k`, `aat@k`, and of those on many levels.
        stem: of the files to write.
        fused: probes drawn as horizontal lines, where they are in the table.

    Raises:
        RequestError: the table has no probe on a single level.
    """
    found = [(match[1], match[2], name) for name in table.probes if (match := _LEVEL.fullmatch(name))]
    if not found:
        raise RequestError(
            where="accuracy by level",
            expected="probes such as linear@every or aat@every",
            got=", ".join(table.probes) or "none",
            todo="Train them on the same stores.",
        )
    depth = max((int(level) for _, level, _ in found if level != FINAL), default=0) + 1
    curves: dict[str, list[tuple[int, str]]] = {}
    for name, level, probe in found:
        curves.setdefault(name, []).append((depth if level == FINAL else int(level), probe))
    averaged = table.mean_over("seed")
    columns = min(2, len(averaged.cases))
    rows = -(-len(averaged.cases) // columns)
    lines: list[tuple[object, ...]] = []
    with drawing(COLUMN, 0.95 + 1.35 * rows) as figure:
        panels = figure.subplots(rows, columns, squeeze=False)
        blocks = range(0, depth, 3 if depth <= 12 else 6)
        for number, case in enumerate(averaged.cases):
            axes = panels[number // columns][number % columns]
            for place, (name, points) in enumerate(curves.items()):
                points = sorted(points)
                x = [depth_of for depth_of, _ in points]
                y = [float(averaged.column(probe)[number]) for _, probe in points]
                what, color = STEMS.get(name, (name, VERMILION))
                axes.plot(x, y, color=color, marker=MARKERS[place % len(MARKERS)], markersize=2.6, label=what)
                lines += [(*case[:2], probe, x_, y_) for (_, probe), x_, y_ in zip(points, x, y, strict=True)]
            for name in fused:
                if name in averaged.probes and np.isfinite(value := float(averaged.column(name)[number])):
                    color, style = FUSED.get(name, (VERMILION, "--"))
                    axes.axhline(value, color=color, linestyle=style, label=name)
                    lines.append((*case[:2], name, "", value))
            axes.set_title(_title(case, averaged.cases))
            lowest = number + columns >= len(averaged.cases)  # of its column
            axes.set_xticks([*blocks, depth], [*map(str, blocks), FINAL] if lowest else [])
            axes.set_xlabel("level" if lowest else "")
            grid(axes)
        for empty in range(len(averaged.cases), rows * columns):
            panels[empty // columns][empty % columns].set_axis_off()
        figure.supylabel("balanced accuracy (%)", fontsize=7)
        handles, labels = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
        return save(figure, stem, ("model", "dataset", "probe", "level", "percent"), lines)


def _title(case: Case, cases: Sequence[Case]) -> str:
    one_model = len({one.model for one in cases}) == 1
    return drawn_name(case.dataset) if one_model else f"{drawn_name(case.dataset)}\n{drawn_name(case.model)}"
