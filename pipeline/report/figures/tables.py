"""The per-data-set table as a picture, for a page that has no table of its own."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from ...statistics.dataset_table import DatasetTable
from .style import BLACK, COLUMN, GREY, PAGE, drawing, drawn_name, save

NAMES, MARGIN = 1.3, 0.22  # inches: of the data sets' names, and at the right for the slanted heads of columns
HEAD, STEP, NOTE = 0.62, 0.145, 0.105  # inches: heights of the head, a line, a line of notes


def draw_table(table: DatasetTable, stem: Path) -> Path:
    """Draw means in percent, bold where best, underlined where not significantly below; the CSV has means, spreads and marks."""
    width = COLUMN if len(table.probes) <= 6 else PAGE
    notes = [table.note, *(f"{name}: {text}" for name, text in table.warnings.items())]
    wrapped = [line for note in notes for line in textwrap.wrap(note, int(width * 25))]
    height = HEAD + STEP * (len(table.lines) + 2) + 0.12 + NOTE * len(wrapped) + 0.04
    column = (width - NAMES - MARGIN) / len(table.probes)
    right = [NAMES + column * (number + 1) for number in range(len(table.probes))]
    with drawing(width, height) as figure:
        from matplotlib.lines import Line2D

        figure.set_layout_engine("none")

        def put(x: float, y: float, text: str, **style: Any) -> None:
            figure.text(x / width, 1 - y / height, text, va="baseline", **{"fontsize": 6.5, **style})

        def rule(left: float, end: float, y: float) -> None:
            line = Line2D([left / width, end / width], [1 - y / height] * 2, color=BLACK, linewidth=0.6)
            figure.add_artist(line)

        for x, name in zip(right, table.probes, strict=True):
            put(x - 0.17, HEAD - 0.06, drawn_name(name), rotation=45, rotation_mode="anchor", fontsize=6)
        rule(0.03, width - 0.03, HEAD)
        y = HEAD
        for name, cells in table.lines.items():
            y += STEP
            put(0.05, y - 0.035, drawn_name(name))
            for x, cell in zip(right, cells, strict=True):
                text = f"{cell.mean:.1f}" if np.isfinite(cell.mean) else "-"
                put(x, y - 0.035, text, ha="right", weight="bold" if cell.best else "normal")
                if cell.tied:
                    rule(x - 0.057 * len(text), x, y - 0.018)
        rule(0.03, width - 0.03, y + 0.03)
        y += 0.03
        for label, values, digits in (("mean", table.means, 1), ("mean rank", table.ranks, 2)):
            y += STEP
            put(0.05, y - 0.035, label)
            for x, value in zip(right, values, strict=True):
                put(x, y - 0.035, f"{value:.{digits}f}" if np.isfinite(value) else "-", ha="right")
        rule(0.03, width - 0.03, y + 0.02)
        for line in wrapped:
            y += NOTE
            put(0.05, y + 0.03, line, fontsize=5.5, color=GREY)
        lines = [
            (name, probe, cell.mean, cell.std, int(cell.best), int(cell.tied))
            for name, cells in table.lines.items()
            for probe, cell in zip(table.probes, cells, strict=True)
        ]
        return save(figure, stem, ("dataset", "probe", "mean", "std", "best", "tied"), lines)
