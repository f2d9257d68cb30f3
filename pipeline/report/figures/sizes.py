"""Gains by model size: does a larger backbone leave less to gain?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...errors import RequestError
from ...probing.probe_spec import REFERENCE
from ...statistics.paper import find_model
from ...statistics.scores import Table, gains_of
from ...statistics.summaries import summarize
from .style import COLUMN, GREY, MARKERS, PAGE, color_of, drawing, drawn_name, grid, save

SIZES = ("Ti", "S", "B", "L", "H", "g")
_WORDS = {"tiny": "Ti", "small": "S", "base": "B", "large": "L", "huge": "H", "giant": "g"}
_LETTER = re.compile(r"(?<![a-z])vit[-_]?(ti|s|b|l|h|g)(?![a-z])", re.IGNORECASE)


def size_of(model: str) -> tuple[str, str] | None:
    """Family and size of a model, by the paper's list or by its name; None if the name says no size.

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
        letter = match[1].lower()
        size = next(one for one in SIZES if one.lower() == letter)
        return name[: match.start(1)].rstrip("-_") + name[match.end(1) :], size
    return None


def draw_gains_by_size(
    table: Table, stem: Path, *, probes: Sequence[str] | None = None, reference: str = REFERENCE
) -> Path:
    """Draw the mean gain over data sets against the size of the model, a panel a family, with the standard error of the mean.

    Args:
        table: accuracies in percent.
        stem: of the files to write.
        probes: a line each; None takes those of the table.
        reference: what gains are over.

    Raises:
        RequestError: no result of the reference, or no model whose size is known.
    """
    gains = gains_of(table, reference).mean_over("seed")
    names = [name for name in (probes or table.probes) if name in table.probes and name != reference]
    families: dict[str, dict[str, list[int]]] = {}
    for line, case in enumerate(gains.cases):
        if found := size_of(case.model):
            families.setdefault(found[0], {}).setdefault(found[1], []).append(line)
    if not families:
        raise RequestError(
            where="gains by model size",
            expected="models whose size is known (vit_small..., ViT-B-16, ...)",
            got=", ".join(sorted({case.model for case in gains.cases})) or "none",
            todo="Leave this figure out, or study models of several sizes.",
        )
    lines = []
    with drawing(COLUMN if len(families) <= 3 else PAGE, 1.9) as figure:
        panels = figure.subplots(1, len(families), sharey=True, squeeze=False)[0]
        for axes, (family, by_size) in zip(panels, families.items(), strict=True):
            sizes = [size for size in SIZES if size in by_size]
            for place, name in enumerate(names):
                summaries = [summarize(gains.column(name)[by_size[size]]) for size in sizes]
                errors = [one.std / np.sqrt(one.count) if one.count > 1 else 0.0 for one in summaries]
                x = np.arange(len(sizes)) + 0.06 * (place - (len(names) - 1) / 2)
                axes.errorbar(
                    x,
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
            axes.set_xlim(-0.4, len(sizes) - 0.6)
            axes.set_title(drawn_name(family))
            grid(axes)
        panels[0].set_ylabel(f"gain over {reference} (points)")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
        return save(figure, stem, ("family", "size", "probe", "mean_gain", "standard_error", "num_cases"), lines)
