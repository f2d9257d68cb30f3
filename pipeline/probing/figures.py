"""Pictures of results: where an attentive probe looks. matplotlib, drawn without a screen and without global state."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def attention_map(
    mass: NDArray[np.float64], levels: Sequence[str], kinds: Sequence[str], tokens_per_kind: Sequence[int]
) -> NDArray[np.float64]:
    """Attention a (kind, level), summed over the tokens of the kind.

    Args:
        mass: [T] attention a token, averaged over samples and heads; levels first, then kinds, then cells.
        levels: names of the levels.
        kinds: kinds at every level.
        tokens_per_kind: how many tokens each kind has.

    Returns:
        [kinds, levels]; sums to 1.

    >>> attention_map(np.array([0.1, 0.2, 0.3, 0.4]), ["block.3", "final"], ["cls", "ap"], [1, 1])
    array([[0.1, 0.3],
           [0.2, 0.4]])
    """
    per_level = mass.reshape(len(levels), sum(tokens_per_kind))  # [levels, tokens of a level]
    borders = np.cumsum([0, *tokens_per_kind])
    return np.stack([per_level[:, a:b].sum(1) for a, b in pairwise(borders)])


def draw_attention_map(
    path: Path,
    shares: NDArray[np.float64],
    levels: Sequence[str],
    kinds: Sequence[str],
    title: str,
    *,
    std: NDArray[np.float64] | None = None,
) -> None:
    """Write a heat map as PNG, and its numbers as CSV beside it.

    Args:
        path: the PNG; the CSV has the same stem.
        shares: [kinds, levels], each a share of all attention.
        levels, kinds: names of its axes.
        title: one line.
        std: [kinds, levels] of the shares between images, for the CSV; None leaves it out.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    num_levels, num_kinds = len(levels), len(kinds)
    figure = Figure(figsize=(1.6 + 0.62 * num_levels, 1.5 + 0.5 * num_kinds), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="cividis", vmin=0, aspect="auto")
    axes.set_xticks(range(num_levels), [level.removeprefix("block.") for level in levels])
    axes.set_yticks(range(num_kinds), list(kinds))
    axes.set_xlabel("level (block, 0-based; final = after the last norm)")
    axes.set_title(title, fontsize=10)
    bright = shares > 0.6 * shares.max()
    for kind in range(num_kinds):
        for level in range(num_levels):
            text = f"{100 * shares[kind, level]:.1f}"
            axes.text(
                level,
                kind,
                text,
                ha="center",
                va="center",
                fontsize=8,
                color="black" if bright[kind, level] else "white",
            )
    figure.colorbar(image, ax=axes, label="share of attention", format=lambda share, _: f"{share:.1%}", pad=0.01)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
    with path.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["level", "kind", "share", *(["std"] if std is not None else [])])
        for level in range(num_levels):
            for kind in range(num_kinds):
                of_cell = [shares] if std is None else [shares, std]
                writer.writerow([levels[level], kinds[kind], *(f"{values[kind, level]:.6f}" for values in of_cell)])


def draw_attention_heads(
    path: Path,
    mass: NDArray[np.float64],
    order: Sequence[int],
    levels: Sequence[str],
    kinds: Sequence[str],
    title: str,
) -> None:
    """Write a heat map a kind, one row a head, as PNG.

    Args:
        path: the PNG.
        mass: [H, levels, kinds], each head's share of attention; sums to 1 a head.
        order: the heads from above.
        levels, kinds: names.
        title: one line.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    num_heads, num_levels, num_kinds = mass.shape
    width = max(4.5, 1.8 + 0.42 * num_levels * num_kinds)
    figure = Figure(figsize=(width, 1.4 + 0.17 * num_heads), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, num_kinds, sharey=True, squeeze=False)[0]
    for place, axes in enumerate(panels):
        image = axes.imshow(mass[list(order)][:, :, place], cmap="cividis", vmin=0, vmax=mass.max(), aspect="auto")
        axes.set_xticks(range(num_levels), [level.removeprefix("block.") for level in levels], fontsize=8)
        axes.set_yticks(range(num_heads), [str(head) for head in order], fontsize=7)
        axes.set_title(kinds[place], fontsize=9)
    panels[0].set_ylabel("head, by the depth it looks at")
    figure.supxlabel("level (block, 0-based; final = after the last norm)", fontsize=9)
    figure.suptitle(title, fontsize=10)
    figure.colorbar(
        image, ax=panels, label="share of a head's attention", format=lambda share, _: f"{share:.0%}", pad=0.01
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
