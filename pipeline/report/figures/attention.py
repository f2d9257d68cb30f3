"""Attention maps of attentive probes: a line for each data set, a cell for each level, a panel for each kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...errors import RequestError, WorkError
from ...quantities import counted
from ...statistics.attention import AttentionMap, Spread, mean_map, read_attention, spread_of
from ..page.blocks import Block, Columns, Fold, Gallery, Note, Picture, table_of_values
from ..page.numbers import percent, percent2
from ..report_data import ReportData, ReportFigure
from ..style import COLUMN, PAGE, drawing, drawn_name, no_frame, save, short_level

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS: Columns = {
    "probe": str,
    "model": str,
    "data set": str,
    "entropy": percent2,
    "80 % in": str,
    "late third in %": percent,
    "most on": str,
    "its share in %": percent,
}
FIRST = 4  # heat maps that are shown at once
MAX_PICTURES = 24  # heat maps on a page; of 11 models with 10 attentive probes all would be 14 MB
WIDE = 16  # levels from which a heat map takes both columns


def draw_attention(maps: Mapping[str, AttentionMap], stem: Path) -> None:
    """Draw a line for each map (data sets or models), a panel for each kind, a cell for each level.

    At the right are the entropy over levels and kinds in nats, and the fewest cells with 80 % of the attention.

    Args:
        maps: name of the line -> map; all of the same levels and kinds.
        stem: path of the files to write, without a suffix.

    Raises:
        RequestError: no maps, or maps of different levels or kinds.
    """
    forms = {(one.levels, one.kinds) for one in maps.values()}
    if len(forms) != 1:
        described = "; ".join(f"{len(levels)} levels of {', '.join(kinds)}" for levels, kinds in sorted(forms))
        raise RequestError("report.unequal_maps", num_forms=len(forms), forms=described)
    first = next(iter(maps.values()))
    names, num_levels = list(maps), len(first.levels)
    shares = np.stack([maps[name].shares for name in names])  # [lines, kinds, levels]
    width = COLUMN if num_levels * len(first.kinds) <= 2 * WIDE else PAGE
    with drawing(width, 0.95 + 0.15 * len(names)) as figure:
        panels = figure.subplots(1, len(first.kinds), sharey=True, squeeze=False)[0]
        for kind, (axes, name) in enumerate(zip(panels, first.kinds, strict=True)):
            image = axes.imshow(100 * shares[:, kind], cmap="cividis", vmin=0, vmax=100 * shares.max(), aspect="auto")
            ticks = range(num_levels - 1, -1, -3 if num_levels <= 14 else -6)
            axes.set_xticks(list(ticks), [short_level(first.levels[level]) for level in ticks])
            axes.set_yticks(range(len(names)), [drawn_name(name) for name in names])
            no_frame(axes)
            axes.set_title(name)
        spreads = [spread_of(maps[name]) for name in names]
        _write_spreads(panels[-1], spreads)
        figure.colorbar(
            image, ax=list(panels), label="share of attention (%)", location="bottom", aspect=40, pad=0.02, shrink=0.9
        )
        lines = [
            (name, kind, level, float(shares[line, k, i]), spreads[line].entropy, spreads[line].mass80)
            for line, name in enumerate(names)
            for k, kind in enumerate(first.kinds)
            for i, level in enumerate(first.levels)
        ]
        save(figure, stem, ("line", "kind", "level", "share", "entropy", "mass80"), lines)


def _write_spreads(axes: Axes, spreads: Sequence[Spread]) -> None:
    """Entropy and mass-80 of each line, in two columns to the right of the axes."""
    for line, spread in enumerate(spreads):
        for x, text in ((22, f"{spread.entropy:.2f}"), (36, str(spread.mass80))):
            axes.annotate(
                text, (1, line), (x, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
                va="center", ha="right", fontsize=6.5,
            )  # fmt: skip
    for x, text in ((14, "entropy"), (30, "80 %")):
        axes.annotate(
            text, (1, 1), (x, 3), xycoords="axes fraction", textcoords="offset points",
            rotation=60, rotation_mode="anchor", ha="left", va="bottom", fontsize=6,
        )  # fmt: skip


def _make(data: ReportData) -> list[Block] | None:
    """A heat map for each probe and model, and the numbers of every map."""
    maps = _maps(data)
    if not maps:
        return None
    drawable = [
        (number, probe, model, of_dataset)
        for number, ((probe, model), of_dataset) in enumerate(maps.items())
        if len(next(iter(of_dataset.values())).levels) > 1
    ]
    # --figures also writes those without a place on the page
    drawn = drawable if data.options.png else drawable[:MAX_PICTURES]
    pictures = [_draw(data, *one) for one in drawn][:MAX_PICTURES]
    blocks: list[Block] = [*pictures[:FIRST]]
    if pictures[FIRST:]:
        blocks.append(Fold(title=f"{len(pictures) - FIRST} more", blocks=[Gallery(pictures[FIRST:])]))
    if drawable[MAX_PICTURES:]:
        rest = counted(len(drawable) - MAX_PICTURES, "heat map")
        blocks.append(Note(f"{rest} more: layerbank report RUNS --figures FOLDER. The table has all."))
    values = []
    for (probe, model), of_dataset in maps.items():
        for dataset, one in of_dataset.items():
            spread, (cell, share) = spread_of(one), one.largest
            numbers = (spread.entropy, spread.mass80, 100 * spread.late_third, cell, 100 * share)
            values.append((probe, model, dataset, *numbers))
    caption = (
        "How widely attention is spread: entropy over levels and kinds in nats, fewest cells (a level and kind) with "
        "80 % of it"
    )
    command = "layerbank attention FOLDER --heads, with the folder of such a row; ensembles have no attention."
    return [*blocks, table_of_values("attention-spread", caption, COLUMNS, values), Note(f"Head by head: {command}")]


def _maps(data: ReportData) -> dict[tuple[str, str], dict[str, AttentionMap]]:
    """(probe, model) -> data set -> the map, seeds averaged; alf first."""
    found: dict[tuple[str, str], dict[str, list[AttentionMap]]] = {}
    for (case, probe), row in data.row.items():
        folder = data.folder(case, probe)
        if row["test"] is None or not Path(folder, "attention.csv").is_file():
            continue
        try:
            one = read_attention(folder)
        except (RequestError, WorkError) as error:
            data.notes.append(f"No attention map of {probe} on {case.dataset}: {error}")
            continue
        found.setdefault((probe, case.model), {}).setdefault(case.dataset, []).append(one)
    order = sorted(found, key=lambda pair: (pair[0] != "alf", "@" in pair[0]))
    return {pair: {name: _mean(data, pair[0], name, maps) for name, maps in found[pair].items()} for pair in order}


def _mean(data: ReportData, probe: str, dataset: str, maps: Sequence[AttentionMap]) -> AttentionMap:
    """The mean over the seeds that chose the same levels and kinds; over the most if seeds chose different ones."""
    alike: dict[tuple[tuple[str, ...], tuple[str, ...]], list[AttentionMap]] = {}
    for one in maps:
        alike.setdefault((one.levels, one.kinds), []).append(one)
    most = max(alike.values(), key=len)
    if len(most) < len(maps):
        data.notes.append(
            f"The seeds of {probe} on {dataset} chose different levels or kinds: its attention map is the mean over "
            f"{len(most)} of {counted(len(maps), 'seed')}."
        )
    return mean_map(most)


def _draw(data: ReportData, number: int, probe: str, model: str, of_dataset: Mapping[str, AttentionMap]) -> Picture:
    first = next(iter(of_dataset.values()))
    fitting = {n: m for n, m in of_dataset.items() if (m.levels, m.kinds) == (first.levels, first.kinds)}
    for name in of_dataset.keys() - fitting.keys():
        data.notes.append(f"The map of {probe} on {name} has other levels or kinds, and is not drawn with the others.")
    most = "; ".join(
        f"{name}: most on {one.largest[0]} ({100 * one.largest[1]:.0f} %)" for name, one in fitting.items()
    )
    word = "".join(letter if letter.isalnum() or letter in "-@" else "-" for letter in probe)
    return data.draw(
        f"attention-{number}-{word}",
        lambda stem: draw_attention(fitting, stem),
        alt=f"Heat map of the attention of {probe} ({model}) over levels and kinds. {most}.",
        caption=(
            f"Attention of {probe} ({model}), mean over test images and heads; entropy over levels and kinds in nats, and the "
            "fewest cells with 80 % of it. final is the last level."
        ),
    )


ATTENTION = ReportFigure(
    section=("attention", "Attention maps"),
    make=_make,
    title="Attention by level and kind",
    needs="train an attentive probe: layerbank probe ... --probe alf",
)
