"""Attention maps: how a trained attentive probe distributes its attention over levels and kinds on the test images.

    attention.json   the numbers below, of the whole probe and of every head
    attention.npz    per image: sample_ids [N], mass [N, L, K] float32, entropy [N], mass_80 [N]; per head: mass_of_head [H, L, K],
                     mass_of_token [H, T]; read with numpy.load, nothing is pickled
    attention.csv    level, kind, share, std: the numbers of the picture
    attention.png    share of attention a level and kind

All four come from one pass over the test images. A number is a mean over the test images with its standard deviation between them
(of all N, not N - 1). `a` is the attention of an image, averaged over the heads; `probes/attention.py` defines entropy and mass-80.
A third of the depth counts transformer blocks: of a backbone of `depth` blocks, block k is in third ceil(3 k / depth), `final` in
the last, block 0 in the first; so the sets `all` of depth 12 and 24 fall into three equal parts.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import xlogy

from layerbank.probes import AttentionStatistics, FusionHead, TokenSource, attention_statistics

from ..errors import RequestError
from ..models.layers import FINAL
from .probe_spec import ProbeSpec
from .rows.whole_files import new_file, save_arrays

if TYPE_CHECKING:
    from matplotlib.figure import Figure

THIRDS = ("early", "middle", "late")
FORMAT = 1
_LEVEL_AXIS = "level (block, 0-based; final = after the last norm)"

Table = tuple[Sequence[str], list[list[str]]]
"""Names of the columns, and lines of text."""


def keep_attention(
    probe: FusionHead,
    test: TokenSource,
    named: ProbeSpec,
    tokens_per_kind: Sequence[int],
    sample_ids: Sequence[str],
    folder: Path,
    title: str,
) -> dict[str, Any]:
    """Compute the attention map in one pass over the test images and write the four files.

    Args:
        probe: trained.
        test: tokens of N images, levels first, then kinds, then cells.
        named: its levels, kinds and the depth of the backbone.
        tokens_per_kind: number of tokens of each kind at a level.
        sample_ids: N, in the order of the images.
        folder: folder of the row, which exists.
        title: title of the picture, one line.

    Returns:
        The key numbers for a row of results, see `summarize`.
    """
    num_levels, num_kinds = len(named.levels), len(named.kinds)
    groups = torch.arange(num_levels * num_kinds).repeat_interleave(torch.tensor(tokens_per_kind).repeat(num_levels))
    statistics = attention_statistics(probe, test, groups)
    mass = statistics.mass.view(-1, num_levels, num_kinds)  # [N, L, K]
    mass_of_head = statistics.mass_of_head.view(-1, num_levels, num_kinds)
    summary = summarize(statistics, named)
    num_heads, num_tokens = statistics.mass_of_token.shape
    description = {
        "format": FORMAT,
        "levels": list(named.levels),
        "kinds": list(named.kinds),
        "depth": named.depth,
        "num_samples": len(mass),
        "num_heads": num_heads,
        "num_tokens": num_tokens,
        **summary,
        "heads": _head_records(statistics, mass_of_head),
    }
    text = json.dumps(description, indent=1, allow_nan=False) + "\n"
    with new_file(folder / "attention.json") as file:
        file.write(text.encode())
    save_arrays(
        folder / "attention.npz",
        sample_ids=np.array(sample_ids),
        mass=mass.float().numpy(),
        entropy=statistics.entropy.float().numpy(),
        mass_80=statistics.mass_80.numpy(),
        mass_of_head=mass_of_head.numpy(),
        mass_of_token=statistics.mass_of_token.numpy(),
    )
    mean, std = mass.mean(0).T.numpy(), mass.std(0, correction=0).T.numpy()  # [K, L]
    draw_attention_map(folder / "attention.png", mean, std, named.levels, named.kinds, title)
    return summary


def _head_records(statistics: AttentionStatistics, mass_of_head: torch.Tensor) -> list[dict[str, Any]]:
    return [
        {
            "entropy": _number(statistics.entropy_of_head[:, head]),
            "effective_tokens": _number(statistics.entropy_of_head[:, head].exp()),
            "mass_80": _number(statistics.mass_80_of_head[:, head]),
            "mass": mass.tolist(),
        }
        for head, mass in enumerate(mass_of_head)
    ]


def summarize(statistics: AttentionStatistics, named: ProbeSpec) -> dict[str, Any]:
    """The key numbers: each {"mean", "std"} over images.

    Returns:
        entropy, effective_tokens and mass_80 of `a`; entropy_of_a_head, the mean over heads of each head's own; share_of_kind by
        kind; share_of_third by third of the depth, null where the depth is not known.
    """
    mass = statistics.mass.view(-1, len(named.levels), len(named.kinds))
    thirds = None
    if named.depth is not None:
        places = [third_of_depth(level, named.depth) for level in named.levels]
        thirds = {  # a third without levels has 0
            third: _number(mass.sum(2)[:, [place == third for place in places]].sum(1)) for third in THIRDS
        }
    return {
        "entropy": _number(statistics.entropy),
        "effective_tokens": _number(statistics.entropy.exp()),
        "mass_80": _number(statistics.mass_80),
        "entropy_of_a_head": _number(statistics.entropy_of_head.mean(1)),
        "share_of_kind": {kind: _number(mass[:, :, place].sum(1)) for place, kind in enumerate(named.kinds)},
        "share_of_third": thirds,
    }


def third_of_depth(level: str, depth: int) -> str:
    """early, middle or late.

    >>> [third_of_depth(level, 12) for level in ("block.0", "block.4", "block.5", "block.8", "block.9", "final")]
    ['early', 'early', 'middle', 'middle', 'late', 'late']
    """
    number = depth if level == FINAL else int(level.removeprefix("block."))
    return THIRDS[max(-(-3 * number // depth), 1) - 1]


def _number(values: torch.Tensor) -> dict[str, float]:
    """[N] -> mean and standard deviation."""
    values = values.double()
    return {"mean": values.mean().item(), "std": values.std(correction=0).item()}


def draw_attention_map(
    path: Path,
    shares: NDArray[np.float64],
    std: NDArray[np.float64],
    levels: Sequence[str],
    kinds: Sequence[str],
    title: str,
) -> None:
    """Write a heat map as PNG, and its numbers as CSV beside it.

    Args:
        path: the PNG; the CSV has the same stem. The folder exists.
        shares: [kinds, levels], each a share of all attention.
        std: [kinds, levels] of the shares between images, for the CSV.
        levels, kinds: names of the axes.
        title: one line.
    """
    figure = _new_figure(1.6 + 0.62 * len(levels), 1.5 + 0.5 * len(kinds))
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="cividis", vmin=0, aspect="auto")
    axes.set_xticks(range(len(levels)), [level.removeprefix("block.") for level in levels])
    axes.set_yticks(range(len(kinds)), list(kinds))
    axes.set_xlabel(_LEVEL_AXIS)
    axes.set_title(title, fontsize=10)
    for (kind, level), share in np.ndenumerate(shares):
        color = "black" if share > 0.6 * shares.max() else "white"
        axes.text(level, kind, f"{100 * share:.1f}", ha="center", va="center", fontsize=8, color=color)
    figure.colorbar(image, ax=axes, label="share of attention", format=lambda share, _: f"{share:.1%}", pad=0.01)
    with new_file(path) as picture:
        figure.savefig(picture, format="png", metadata={"Software": None})
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["level", "kind", "share", "std"])
    for (level, kind), share in np.ndenumerate(shares.T):
        writer.writerow([levels[level], kinds[kind], f"{share:.6f}", f"{std[kind, level]:.6f}"])
    with new_file(path.with_suffix(".csv")) as file:
        file.write(text.getvalue().encode())


def _new_figure(width: float, height: float) -> Figure:
    """A figure of so many inches, drawn without a screen and without the state of pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def read_attention(folder: Path) -> dict[str, Any]:
    """Read `attention.json` of a run's folder.

    Raises:
        RequestError: there is none, or none of this format.
    """
    path = folder / "attention.json"
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        found = kept["format"]
    except (FileNotFoundError, NotADirectoryError):
        raise RequestError("probing.no_attention_map", path=path) from None
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise RequestError("probing.unreadable_attention_map", path=path, reason=error) from error
    if found != FORMAT:
        raise RequestError("probing.attention_map_format", path=path, format=found, known=FORMAT)
    try:
        _check(kept)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise RequestError("probing.unreadable_attention_map", path=path, reason=repr(error)) from error
    return dict(kept)


def _check(kept: Mapping[str, Any]) -> None:
    """Raise an error unless the numbers of the tables and of the picture are there."""
    levels, kinds, heads = (list[Any](kept[name]) for name in ("levels", "kinds", "heads"))
    pairs = [kept[name] for name in ("entropy", "effective_tokens", "mass_80", "entropy_of_a_head")]
    pairs += [*kept["share_of_kind"].values(), *(kept["share_of_third"] or {}).values()]
    pairs += [head[name] for head in heads for name in ("effective_tokens", "mass_80")]
    numbers = np.array([pair[name] for pair in pairs for name in ("mean", "std")])
    mass = _mass_of_head(kept)
    if not all(isinstance(name, str) for name in levels + kinds) or numbers.dtype.kind not in "if":
        raise ValueError("names that are no texts, or numbers that are none")
    if not mass.size or mass.shape != (len(heads), len(levels), len(kinds)):
        raise ValueError(f"shares of the shape {mass.shape}")
    if not (np.isfinite(numbers).all() and np.isfinite(mass).all()):
        raise ValueError("numbers that are not finite")


def number_table(kept: Mapping[str, Any]) -> Table:
    """The key numbers of `attention.json`: mean over the images, and standard deviation between them.

    The entropy over levels and kinds is that of their mean shares over all images and heads, the number that the report shows.
    """
    shares = _mass_of_head(kept).mean(0).ravel()  # of every level and kind, as in the report
    lines = [
        ["entropy over levels and kinds, nats", f"{-float(xlogy(shares, shares).sum()):.2f}"],
        ["entropy over tokens, nats", _pair(kept["entropy"], 2)],
        ["effective number of tokens", _pair(kept["effective_tokens"], 1)],
        ["tokens that hold 80 %", _pair(kept["mass_80"], 1)],
        ["entropy over tokens of one head, nats", _pair(kept["entropy_of_a_head"], 2)],
    ]
    lines += [[f"share of {kind}, %", _pair(share, 1, 100)] for kind, share in kept["share_of_kind"].items()]
    thirds = kept["share_of_third"] or {}
    lines += [[f"share of the {third} third, %", _pair(share, 1, 100)] for third, share in thirds.items()]
    return ("of an image", "mean ± deviation"), lines


def head_table(kept: Mapping[str, Any]) -> Table:
    """One line a head, in the order of the picture."""
    names = [f"{level} {kind}" for level in kept["levels"] for kind in kept["kinds"]]
    lines = []
    for head in depth_order(_mass_of_head(kept)):
        record = kept["heads"][head]
        mass = np.ravel(record["mass"])
        numbers = [_pair(record[name], 1) for name in ("effective_tokens", "mass_80")]
        lines.append([str(head), names[int(mass.argmax())], f"{100 * mass.max():.0f}", *numbers])
    return ("head", "largest share at", "%", "effective tokens", "tokens with 80 %"), lines


def draw_heads(folder: Path, kept: Mapping[str, Any]) -> Path:
    """Write `attention-heads.png` into the folder, one heat map per kind with one row per head, and return its path."""
    mass, levels, kinds = _mass_of_head(kept), kept["levels"], kept["kinds"]
    order = depth_order(mass)
    figure = _new_figure(max(4.5, 1.8 + 0.42 * len(levels) * len(kinds)), 1.4 + 0.17 * len(order))
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for place, axes in enumerate(panels):
        image = axes.imshow(mass[order][:, :, place], cmap="cividis", vmin=0, vmax=mass.max(), aspect="auto")
        axes.set_xticks(range(len(levels)), [level.removeprefix("block.") for level in levels], fontsize=8)
        axes.set_yticks(range(len(order)), [str(head) for head in order], fontsize=7)
        axes.set_title(kinds[place], fontsize=9)
    panels[0].set_ylabel("head, by mean depth of its attention")
    figure.supxlabel(_LEVEL_AXIS, fontsize=9)
    figure.suptitle(f"{folder.name}: attention of each head", fontsize=10)
    label = "share of a head's attention"
    figure.colorbar(image, ax=panels, label=label, format=lambda share, _: f"{share:.0%}", pad=0.01)
    path = folder / "attention-heads.png"
    with new_file(path) as picture:
        figure.savefig(picture, format="png", metadata={"Software": None})
    return path


def depth_order(mass: NDArray[np.float64]) -> list[int]:
    """Heads by the mean depth of their attention, shallow first: [H, L, K] -> H numbers.

    >>> depth_order(np.array([[[0.1], [0.9]], [[0.8], [0.2]]]))
    [1, 0]
    """
    order: list[int] = np.argsort(mass.sum(2) @ np.arange(mass.shape[1]), kind="stable").tolist()
    return order


def _mass_of_head(kept: Mapping[str, Any]) -> NDArray[np.float64]:
    return np.array([head["mass"] for head in kept["heads"]], dtype=np.float64)


def _pair(number: Mapping[str, float], digits: int, factor: float = 1) -> str:
    return f"{factor * number['mean']:.{digits}f} ± {factor * number['std']:.{digits}f}"
