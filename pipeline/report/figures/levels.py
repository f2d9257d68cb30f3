"""Accuracy level by level: probes on one level each as curves over depth, probes on many levels as horizontal lines."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...errors import RequestError
from ...models.layers import FINAL
from ...statistics.scores import GIVEN_LEVEL, Table
from ..page.blocks import Picture
from ..report_data import ReportData, ReportFigure
from ..style import (
    BLUE,
    COLUMN,
    GREEN,
    MARKERS,
    ORANGE,
    PURPLE,
    VERMILION,
    drawing,
    drawn_name,
    grid,
    legend_of,
    save,
)

STEMS = {"linear": ("linear, cls", BLUE), "linear-ap": ("linear, ap", ORANGE), "aat": ("aat, all tokens", GREEN)}
FUSED = {"alf": (VERMILION, "--"), "aat-quarterly": (PURPLE, ":")}  # probes on many levels


def draw_levels(table: Table, stem: Path) -> None:
    """Draw a panel for each case (model and data set), two beside each other.

    Args:
        table: accuracies in percent of probes `linear@k`, `linear-ap@k`, `aat@k`; those of FUSED are drawn as horizontal lines.
        stem: path of the files to write, without a suffix.

    Raises:
        RequestError: the table has no probe on a single level.
    """
    found = [(match[1], match[2], name) for name in table.probes if (match := GIVEN_LEVEL.fullmatch(name))]
    if not found:
        raise RequestError("report.no_single_level", probes=", ".join(table.probes) or "none")
    depth = max((int(level) for _, level, _ in found if level != FINAL), default=0) + 1
    curves: dict[str, list[tuple[int, str]]] = {}
    for name, level, probe in found:
        curves.setdefault(name, []).append((depth if level == FINAL else int(level), probe))
    averaged = table.mean_over("seed")
    one_model = len({case.model for case in averaged.cases}) == 1
    columns = min(2, len(averaged.cases))
    rows = -(-len(averaged.cases) // columns)
    lines: list[tuple[object, ...]] = []
    with drawing(COLUMN, 0.95 + 1.35 * rows) as figure:
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        ticks = range(0, depth, 3 if depth <= 12 else 6)
        for number, (axes, case) in enumerate(zip(panels, averaged.cases, strict=False)):
            for place, (name, points) in enumerate(curves.items()):
                x, probes = zip(*sorted(points), strict=True)
                y = [float(averaged.column(probe)[number]) for probe in probes]
                label, color = STEMS.get(name, (name, VERMILION))
                axes.plot(x, y, color=color, marker=MARKERS[place % len(MARKERS)], markersize=2.6, label=label)
                lines += [(*case[:2], *point) for point in zip(probes, x, y, strict=True)]
            for name, (color, style) in FUSED.items():
                if name in averaged.probes and np.isfinite(value := float(averaged.column(name)[number])):
                    axes.axhline(value, color=color, linestyle=style, label=name)
                    lines.append((*case[:2], name, "", value))
            dataset = drawn_name(case.dataset)
            axes.set_title(dataset if one_model else f"{dataset}\n{drawn_name(case.model)}")
            lowest = number + columns >= len(averaged.cases)  # of its column
            axes.set_xticks([*ticks, depth], [*map(str, ticks), FINAL] if lowest else [])
            axes.set_xlabel("level" if lowest else "")
            grid(axes)
        for empty in panels[len(averaged.cases) :]:
            empty.set_axis_off()
        figure.supylabel("balanced accuracy (%)", fontsize=7)
        legend_of(panels[0], ncols=3)
        save(figure, stem, ("model", "dataset", "probe", "level", "percent"), lines)


def _make(data: ReportData) -> list[Picture] | None:
    """One figure for each model."""
    table = data.table
    single = [name for name in table.probes if GIVEN_LEVEL.fullmatch(name)]
    if not single:
        return None
    has_level = [bool(line.any()) for line in np.isfinite(table.only(single).values)]
    pictures = []
    for number, model in enumerate(dict.fromkeys(case.model for case in table.cases)):
        kept = [line for line, case in enumerate(table.cases) if case.model == model and has_level[line]]
        if kept:
            pictures.append(_draw(data, table.lines(kept), number, model, single))
    return pictures


def _draw(data: ReportData, part: Table, number: int, model: str, single: list[str]) -> Picture:
    averaged = part.mean_over("seed").only(single)
    best = []
    for case, values in zip(averaged.cases, averaged.values, strict=True):
        if np.isfinite(values).any():
            place = int(np.nanargmax(values))
            best.append(f"{case.dataset}: best {averaged.probes[place]} with {values[place]:.1f} %")
    stems = dict.fromkeys(name.rpartition("@")[0] for name in single)
    return data.draw(
        f"levels-{number}",
        lambda stem: draw_levels(part, stem),
        alt=f"Balanced accuracy of {', '.join(stems)} at each level of {model}. {'; '.join(best)}.",
        caption=f"Probes on one level of {model}; horizontal lines are probes on many.",
    )


LEVELS = ReportFigure(
    section=("levels", "Level by level"),
    make=_make,
    title="Accuracy by level",
    needs="train probes on one level each: layerbank probe ... --probe linear@every,aat@every",
)
