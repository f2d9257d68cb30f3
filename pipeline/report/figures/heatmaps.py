"""Heat maps: where attentive probes look (data set x level x kind, or head by head), and how alike levels are (CKA)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...errors import RequestError
from ...statistics.attention import AttentionMap, spread_of
from .style import COLUMN, CYCLE, LINES, MARKERS, PAGE, drawing, drawn_name, grid, save

if TYPE_CHECKING:  # computing it takes torch, drawing it does not
    from ...statistics.similarity import Similarity

WIDE = 16  # levels from which a heat map takes both columns


def draw_attention(maps: Mapping[str, AttentionMap], stem: Path, *, title: str = "") -> Path:
    """Draw one line a map (a data set, a model, a head), one panel a kind, one cell a level.

    At the right stand the entropy in nats and the fewest cells with 80 % of the attention.

    Args:
        maps: name of the line -> map; all of the same levels and kinds.
        stem: of the files to write.
        title: one line, optional.

    Raises:
        RequestError: no maps, or maps of different levels or kinds.
    """
    forms = {(one.levels, one.kinds) for one in maps.values()}
    if len(forms) != 1:
        raise RequestError(
            where="attention maps",
            expected="maps of the same levels and kinds",
            got=f"{len(forms)} forms: " + "; ".join(f"{len(a)} levels of {', '.join(b)}" for a, b in sorted(forms)),
            todo="Draw one figure a probe and a depth of backbone.",
        )
    first = next(iter(maps.values()))
    names = list(maps)
    num_levels = len(first.levels)
    shares = np.stack([maps[name].shares for name in names])  # [lines, kinds, levels]
    width = COLUMN if num_levels * len(first.kinds) <= 2 * WIDE else PAGE
    with drawing(width, 0.95 + 0.15 * len(names)) as figure:
        panels = figure.subplots(1, len(first.kinds), sharey=True, squeeze=False)[0]
        for kind, (axes, name) in enumerate(zip(panels, first.kinds, strict=True)):
            image = axes.imshow(100 * shares[:, kind], cmap="cividis", vmin=0, vmax=100 * shares.max(), aspect="auto")
            ticks = range(num_levels - 1, -1, -3 if num_levels <= 14 else -6)
            axes.set_xticks(list(ticks), [_short(first.levels[level]) for level in ticks])
            axes.set_yticks(range(len(names)), [drawn_name(name) for name in names])
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
            axes.set_title(name)
        spreads = [spread_of(maps[name]) for name in names]
        last = panels[-1]
        for line, spread in enumerate(spreads):
            for x, text in ((22, f"{spread.entropy:.2f}"), (36, str(spread.mass80))):
                last.annotate(
                    text, (1, line), (x, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
                    va="center", ha="right", fontsize=6.5,
                )  # fmt: skip
        for x, text in ((14, "entropy"), (30, "80 %")):
            last.annotate(
                text, (1, 1), (x, 3), xycoords="axes fraction", textcoords="offset points",
                rotation=60, rotation_mode="anchor", ha="left", va="bottom", fontsize=6,
            )  # fmt: skip
        figure.colorbar(
            image, ax=list(panels), label="share of attention (%)", location="bottom", aspect=40, pad=0.02, shrink=0.9
        )
        if title:
            figure.suptitle(title, fontsize=7)
        lines = [
            (name, kind, level, float(shares[line, k, i]), spreads[line].entropy, spreads[line].mass80)
            for line, name in enumerate(names)
            for k, kind in enumerate(first.kinds)
            for i, level in enumerate(first.levels)
        ]
        return save(figure, stem, ("line", "kind", "level", "share", "entropy", "mass80"), lines)


def draw_similarity(similarity: Similarity, stem: Path, *, title: str = "") -> Path:
    """Draw CKA between all levels of a backbone; cells without a value stay grey."""
    names = [_short(level) for level in similarity.levels]
    count = len(names)
    with drawing(COLUMN, COLUMN * 0.88) as figure:
        axes = figure.add_subplot()
        axes.set_facecolor("#EEEEEE")
        lowest = float(np.nanmin(similarity.values, initial=0.0))  # an unbiased estimate may lie a little below 0
        image = axes.imshow(similarity.values, cmap="cividis", vmin=lowest, vmax=1)
        ticks = range(count) if count <= 14 else range(0, count, 3)
        axes.set_xticks(list(ticks), [names[tick] for tick in ticks], rotation=90 if count > 8 else 0)
        axes.set_yticks(list(ticks), [names[tick] for tick in ticks])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("level")
        axes.set_title(title or _stated(similarity))
        figure.colorbar(image, ax=axes, label=f"{similarity.kernel} CKA", shrink=0.85)
        lines = [
            (similarity.levels[i], similarity.levels[j], float(similarity.values[i, j]))
            for i in range(count)
            for j in range(count)
        ]
        return save(figure, stem, ("level", "other", "cka"), lines)


def draw_similarity_to_final(similarities: Mapping[str, Similarity], stem: Path) -> Path:
    """Draw CKA of every level with the last one against depth, one line a name (a data set, a kernel)."""
    lines = []
    with drawing(COLUMN, 2.1) as figure:
        axes = figure.add_subplot()
        for number, (name, one) in enumerate(similarities.items()):
            values = one.values[-1]
            axes.plot(
                range(len(values)),
                values,
                color=CYCLE[number % len(CYCLE)],
                marker=MARKERS[number % len(MARKERS)],
                linestyle=LINES[number % len(LINES)],
                label=drawn_name(name),
            )
            lines += [
                (name, one.kernel, one.num_images, "" if one.seed is None else one.seed, level, float(value))
                for level, value in zip(one.levels, values, strict=True)
            ]
        levels = next(iter(similarities.values())).levels
        step = 1 if len(levels) <= 14 else 3
        axes.set_xticks(range(0, len(levels), step), [_short(level) for level in levels][::step])
        axes.set_xlabel("level (block; final = after the last norm)")
        axes.set_ylabel(f"CKA with {levels[-1]}")
        grid(axes)
        if len(similarities) > 1:
            figure.legend(loc="outside lower center", ncols=3)
        return save(figure, stem, ("line", "kernel", "num_images", "seed", "level", "cka"), lines)


def _short(level: str) -> str:
    return level.removeprefix("block.")


def _stated(similarity: Similarity) -> str:
    subset = "" if similarity.seed is None else f" (a subset, seed {similarity.seed})"
    return f"{similarity.kernel} CKA over {similarity.num_images:,} images{subset}"
