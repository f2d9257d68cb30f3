"""Names of levels, and the layer sets that probes attend over.

A level is the tap of one depth: `block.0` .. `block.{depth-1}`, then `final`. This module computes with names; it knows neither
models nor stores.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..errors import RequestError, advice

FINAL = "final"
LAYER_SETS = ("last", "mid", "quarterly", "all")


def level_names(depth: int) -> list[str]:
    """All levels of a backbone, in order of depth.

    >>> level_names(2)
    ['block.0', 'block.1', 'final']
    """
    return [f"block.{index}" for index in range(depth)] + [FINAL]


def layer_set(name: str, depth: int, *, reference_quirks: bool = False) -> list[str]:
    """Levels of a named layer set, in order of depth; every set ends with `final`.

    `quarterly` takes the quarters of the real depth (rounded down), and `all` skips block 0.

    Args:
        name: last, mid, quarterly or all.
        depth: number of transformer blocks, >= 1.
        reference_quirks: `quarterly` is blocks 3, 6 and 9 whatever the depth, as in the authors' code.

    Raises:
        RequestError: no such set.

    >>> layer_set("quarterly", 24)
    ['block.6', 'block.12', 'block.18', 'final']
    """
    quarters = sorted({depth * quarter // 4 for quarter in (1, 2, 3)})
    if reference_quirks and depth > 9:
        quarters = [3, 6, 9]
    sets = {"last": [], "mid": [depth // 2], "quarterly": quarters, "all": list(range(1, depth))}
    if name not in sets:
        raise RequestError("models.unknown_layer_set", name=name, names=", ".join(LAYER_SETS))
    return [f"block.{index}" for index in sets[name]] + [FINAL]


def choose_levels(text: str, depth: int) -> list[str]:
    """Levels of an option's text: a layer set, or names and ranges of levels between commas.

    Args:
        text: `all`, `quarterly`, ..., or for example `block.3,block.6-8,final`.
        depth: number of transformer blocks.

    Returns:
        Level names without repetition, in order of depth.

    Raises:
        RequestError: a level that a backbone of this depth does not have.

    >>> choose_levels("final,block.0-1", 12)
    ['block.0', 'block.1', 'final']
    """
    if text in LAYER_SETS:
        return layer_set(text, depth)
    known = level_names(depth)
    chosen: set[str] = set()
    for part in (part.strip() for part in text.split(",")):
        span = re.fullmatch(r"block\.([0-9]{1,9})-([0-9]{1,9})", part)
        first, last = (int(span[1]), int(span[2])) if span else (0, -1)
        names = [f"block.{index}" for index in range(first, min(last, first + depth) + 1)] or [
            part
        ]  # or it is too deep
        for name in names:
            if name not in known:
                raise unknown_level(name, known)
        chosen.update(names)
    return [name for name in known if name in chosen]


def unknown_level(name: str, known: list[str]) -> RequestError:
    """The error for a level that a backbone lacks; names the nearest one that it has."""
    todo = advice(name, [*known, *LAYER_SETS, "every"])
    if re.fullmatch(r"block\.\d+", name):  # too deep: by its digits, block.12 would be nearest to block.2
        todo = f"Did you mean {known[-2]!r}?"
    sets = ", ".join(LAYER_SETS)
    return RequestError("models.unknown_level", name=name, first=known[0], last=known[-2], sets=sets, advice=todo)


def short_levels(levels: Sequence[str]) -> str:
    """Names of levels as a text, with ranges for consecutive ones.

    >>> short_levels(["block.1", "block.2", "block.3", "block.6", "final"])
    '1-3, 6, final'
    """
    parts: list[list[str]] = []
    for level in (level.removeprefix("block.") for level in levels):
        if parts and level.isdigit() and parts[-1][-1].isdigit() and int(level) == int(parts[-1][-1]) + 1:
            parts[-1] = [parts[-1][0], level]
        else:
            parts.append([level])
    return ", ".join("-".join(part) for part in parts)
