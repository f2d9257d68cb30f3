"""The probes by name: which tokens each reads, and with which head. PROTOCOL's table as code.

    linear-cls, linear-ap            one kind of `final`, a linear layer (linear-cls is the reference of all gains)
    linear-{set}                     cls + ap of a layer set, concatenated, a linear layer
    attn-{set}, alf = attn-all       cls + ap of a layer set, stacked, attention with one head a token
    alf-grid{g}, alf-grid{g}-{set}   cls + g x g cells of a layer set, stacked, attention with 24 heads (48 for depth 24)

Heads of other studies, `probes/README.md` has one row each; without a set, the first reads `final` and the second all:

    {head}, {head}-{set}             cls + patch, stacked; {head} is cae, aim, ep, vjepa, map, abmilp or simpool
    {head}, {head}-{set}             cls + ap, stacked; {head} is alf-embed or scalar-mix

A layer set is last, mid, quarterly or all (`pipeline.layers`).
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from .errors import RequestError
from .layers import LAYER_SETS, layer_set

REFERENCE = "linear-cls"
DEMO_PROBES = ("linear-cls", "linear-last", "linear-all", "attn-last", "alf", "alf-grid2")

_SETS = "|".join(LAYER_SETS)
_ONE_KIND = re.compile(r"linear-(cls|ap)")
_CLS_AP = re.compile(rf"(linear|attn)-({_SETS})")
_GRID = re.compile(rf"alf-grid([1-9]\d*)(?:-({_SETS}))?")

# head -> num_heads for a depth below 24 and from 24 on, where D is 1024 and 12 does not divide it; None: no heads, or one a token
_OVER_PATCHES: dict[str, tuple[int, int] | None] = {
    "cae": (8, 8),
    "aim": (12, 16),
    "ep": (32, 32),
    "vjepa": (12, 16),
    "map": (12, 16),
    "abmilp": None,
    "simpool": None,
}
_OVER_LEVELS = ("alf-embed", "scalar-mix")
_ZOO = re.compile(rf"({'|'.join((*_OVER_PATCHES, *_OVER_LEVELS))})(?:-({_SETS}))?")


@dataclass(frozen=True, kw_only=True)
class NamedProbe:
    """What a probe's name means for a backbone of a given depth.

    Attributes:
        name: as the user wrote it.
        head: a kind of `probes.Head`.
        levels: the levels it reads, shallow to deep.
        kinds: the kinds it reads at every level.
        num_heads: None means one head a token, where the head has heads.
    """

    name: str
    head: str
    levels: tuple[str, ...]
    kinds: tuple[str, ...]
    num_heads: int | None = None


def resolve_probe(name: str, depth: int) -> NamedProbe:
    """Read a probe's name.

    Args:
        name: such as `alf` or `linear-quarterly`.
        depth: number of blocks of the backbone.

    Raises:
        RequestError: no probe has that name.

    >>> resolve_probe("alf-grid2-mid", 12)  # doctest: +NORMALIZE_WHITESPACE
    NamedProbe(name='alf-grid2-mid', head='attentive', levels=('block.6', 'final'), kinds=('cls', 'grid2'), num_heads=24)
    """
    if match := _ONE_KIND.fullmatch(name):
        return NamedProbe(name=name, head="linear", levels=("final",), kinds=(match[1],))
    if match := _CLS_AP.fullmatch("attn-all" if name == "alf" else name):
        head = "linear" if match[1] == "linear" else "attentive"
        return NamedProbe(name=name, head=head, levels=tuple(layer_set(match[2], depth)), kinds=("cls", "ap"))
    if match := _GRID.fullmatch(name):
        levels = tuple(layer_set(match[2] or "all", depth))
        num_heads = 48 if depth >= 24 else 24
        kinds = ("cls", f"grid{match[1]}")
        return NamedProbe(name=name, head="attentive", levels=levels, kinds=kinds, num_heads=num_heads)
    if match := _ZOO.fullmatch(name):
        head = match[1]
        over_levels = head in _OVER_LEVELS
        levels = tuple(layer_set(match[2] or ("all" if over_levels else "last"), depth))
        choice = _OVER_PATCHES.get(head)
        kinds = ("cls", "ap" if over_levels else "patch")
        heads = choice[depth >= 24] if choice else None
        return NamedProbe(name=name, head=head, levels=levels, kinds=kinds, num_heads=heads)
    known = probe_names()
    nearest = difflib.get_close_matches(name, known, n=1)
    raise RequestError(
        where="--probe",
        expected="one of " + ", ".join(known),
        got=repr(name),
        todo=f"Did you mean {nearest[0]!r}?" if nearest else "See `layerbank probe --help`.",
    )


def probe_names() -> list[str]:
    """Every name, with 2 standing for any g of a grid."""
    names = ["linear-cls", "linear-ap"]
    names += [f"linear-{s}" for s in LAYER_SETS] + [f"attn-{s}" for s in LAYER_SETS] + ["alf", "alf-grid2"]
    names += [f"alf-grid2-{s}" for s in LAYER_SETS]
    for head in (*_OVER_PATCHES, *_OVER_LEVELS):
        names += [head, *(f"{head}-{s}" for s in LAYER_SETS)]
    return names
