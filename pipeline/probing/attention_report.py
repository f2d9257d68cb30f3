"""Where a trained probe looks, read back from the files of its run: tables for the terminal, and a picture of its heads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import RequestError
from .attention import FORMAT
from .figures import draw_attention_heads

Table = tuple[Sequence[str], list[list[str]]]


def read_attention(folder: Path) -> dict[str, Any]:
    """What `attention.json` of a run's folder says.

    Raises:
        RequestError: there is none, or none of this format.
    """
    path = folder / "attention.json"
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        found = f"format {kept['format']}" if kept["format"] != FORMAT else None
    except (FileNotFoundError, NotADirectoryError):
        found = "no such file"
    except (ValueError, TypeError, KeyError) as error:
        found = f"something else ({error})"
    if found is not None:
        raise RequestError(
            where=str(path),
            expected=f"what `layerbank probe` keeps of an attentive probe, format {FORMAT}",
            got=found,
            todo="Name the folder of an attentive probe (alf, attn-*, aat, cae; no ensemble), or train it again with --retrain.",
        )
    return dict(kept)


def number_table(kept: Mapping[str, Any]) -> Table:
    """The key numbers: mean over the images, and standard deviation between them."""
    lines = [
        ["entropy of attention, nats", _pair(kept["entropy"], 2)],
        ["effective number of tokens", _pair(kept["effective_tokens"], 1)],
        ["tokens that hold 80 %", _pair(kept["mass_80"], 1)],
        ["entropy of a single head, nats", _pair(kept["entropy_of_a_head"], 2)],
    ]
    lines += [[f"share of {kind}, %", _pair(share, 1, 100)] for kind, share in kept["share_of_kind"].items()]
    thirds = kept["share_of_third"] or {}
    lines += [[f"share of the {third} third, %", _pair(share, 1, 100)] for third, share in thirds.items()]
    return ("of an image", "mean ± deviation"), lines


def head_table(kept: Mapping[str, Any]) -> Table:
    """One line a head, in the order of the picture."""
    names = [(level, kind) for level in kept["levels"] for kind in kept["kinds"]]
    lines = []
    for head in depth_order(_mass_of_head(kept)):
        record = kept["heads"][head]
        mass = np.array(record["mass"]).ravel()
        level, kind = names[int(mass.argmax())]
        numbers = [_pair(record[name], digits) for name, digits in (("effective_tokens", 1), ("mass_80", 1))]
        lines.append([str(head), f"{level} {kind}", f"{100 * mass.max():.0f}", *numbers])
    return ("head", "looks most at", "with %", "effective tokens", "tokens with 80 %"), lines


def draw_heads(folder: Path, kept: Mapping[str, Any]) -> Path:
    """Write `attention-heads.png` into the folder and return its path."""
    mass, path = _mass_of_head(kept), folder / "attention-heads.png"
    title = f"{folder.name}: where each head looks"
    draw_attention_heads(path, mass, depth_order(mass), kept["levels"], kept["kinds"], title)
    return path


def depth_order(mass: np.ndarray[Any, np.dtype[np.float64]]) -> list[int]:
    """Heads by the mean depth they look at, shallow first: [H, L, K] -> H numbers.

    >>> depth_order(np.array([[[0.1], [0.9]], [[0.8], [0.2]]]))
    [1, 0]
    """
    order: list[int] = np.argsort(mass.sum(2) @ np.arange(mass.shape[1]), kind="stable").tolist()
    return order


def _mass_of_head(kept: Mapping[str, Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([head["mass"] for head in kept["heads"]], dtype=np.float64)


def _pair(number: Mapping[str, float], digits: int, factor: float = 1) -> str:
    return f"{factor * number['mean']:.{digits}f} ± {factor * number['std']:.{digits}f}"
