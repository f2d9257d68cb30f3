"""The probes by name: which tokens each reads, and with which head. PROTOCOL's table as code.

    linear-cls, linear-ap             one kind of `final`, a linear layer (linear-cls is the reference of all gains)
    linear-{set}                      cls + ap of a layer set, concatenated, a linear layer
    attn-{set}, alf = attn-all        cls + ap of a layer set, stacked, attention with one head a token
    linear-{set}-cls, alf-ap, ...     the same on one of the two kinds
    ridge-*, logreg-*, knn-*          the tokens of linear-* by other means: closed form, L-BFGS, nearest neighbours
    alf-grid{g}, alf-grid{g}-{set}    cls + g x g cells of a layer set, stacked, attention with 24 heads (48 for depth 24)
    aat                               cls + every patch of `final`, attention with 8 heads
    aat-quarterly                     cls + every patch of the quarterly set, 24 heads, dropout 0.5, weight decay 1, jitter p 0.9
    linear@k, linear-ap@k, aat@k      the same on one level: k is a block's number, `final`, or `every` for one probe a level

Heads of other studies, `probes/README.md` has one row each; without a set, the first reads `final` and the second all:

    {head}, {head}-{set}              cls + every patch, stacked; {head} is cae, aim, ep, vjepa, map, abmilp or simpool
    {head}, {head}-{set}              cls + ap, stacked; {head} is alf-embed or scalar-mix

A layer set is last, mid, quarterly or all (`pipeline.layers`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from .errors import RequestError
from .layers import FINAL, LAYER_SETS, layer_set, level_names

REFERENCE = "linear-cls"
DEMO_PROBES = ("linear-cls", "linear-last", "linear-all", "attn-last", "alf", "alf-grid2")
EVERY = "every"

_SETS = "|".join(LAYER_SETS)
_FLAT = "linear|ridge|logreg|knn"  # heads on concatenated tokens
_ONE_KIND = re.compile(rf"({_FLAT})-(cls|ap)")
_LAYER_SET = re.compile(rf"({_FLAT}|attn)-({_SETS})(?:-(cls|ap))?")
_GRID = re.compile(rf"alf-grid([1-9]\d*)(?:-({_SETS}))?")
_LEVEL = re.compile(r"(linear|linear-ap|aat)@(\d+|final)")

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
        head: a kind of `probes.Head`; `linear`, `ridge`, `logreg` and `knn` read concatenated tokens.
        levels: the levels it reads, shallow to deep.
        kinds: the kinds it reads at every level.
        num_heads: None means one head a token, where the head has heads.
        protocol: what it changes of the training protocol, field by field.
    """

    name: str
    head: str
    levels: tuple[str, ...]
    kinds: tuple[str, ...]
    num_heads: int | None = None
    protocol: Mapping[str, object] = field(default_factory=dict)


def resolve_probes(names: Iterable[str], depth: int) -> list[NamedProbe]:
    """Read names, `...@every` being one probe a level, each once and in the order given.

    Raises:
        RequestError: no probe has that name.

    >>> [probe.name for probe in resolve_probes(["linear@every", "linear@1"], 2)]
    ['linear@0', 'linear@1', 'linear@final']
    """
    singles: list[str] = []
    for name in names:
        stem, at, level = name.partition("@")
        levels = [one.removeprefix("block.") for one in level_names(depth)] if level == EVERY else [level]
        singles += [f"{stem}{at}{one}" for one in levels]
    return [resolve_probe(name, depth) for name in dict.fromkeys(singles)]


def resolve_probe(name: str, depth: int) -> NamedProbe:
    """Read the name of one probe.

    Args:
        name: such as `alf`, `linear-quarterly` or `aat@8`.
        depth: number of blocks of the backbone.

    Raises:
        RequestError: no probe has that name.

    >>> probe = resolve_probe("alf-grid2-mid", 12)
    >>> probe.head, probe.levels, probe.kinds, probe.num_heads
    ('attentive', ('block.6', 'final'), ('cls', 'grid2'), 24)
    """
    if match := _ONE_KIND.fullmatch(name):
        return NamedProbe(name=name, head=match[1], levels=(FINAL,), kinds=(match[2],))
    if match := _LAYER_SET.fullmatch(re.sub("^alf(?=$|-cls$|-ap$)", "attn-all", name)):
        head = "attentive" if match[1] == "attn" else match[1]
        kinds = (match[3],) if match[3] else ("cls", "ap")
        return NamedProbe(name=name, head=head, levels=tuple(layer_set(match[2], depth)), kinds=kinds)
    if match := _GRID.fullmatch(name):
        levels = tuple(layer_set(match[2] or "all", depth))
        kinds = ("cls", f"grid{match[1]}")
        return NamedProbe(name=name, head="attentive", levels=levels, kinds=kinds, num_heads=_many_heads(depth))
    if match := _ZOO.fullmatch(name):
        head = match[1]
        over_levels = head in _OVER_LEVELS
        levels = tuple(layer_set(match[2] or ("all" if over_levels else "last"), depth))
        choice = _OVER_PATCHES.get(head)
        kinds = ("cls", "ap" if over_levels else "patch")
        heads = choice[depth >= 24] if choice else None
        return NamedProbe(name=name, head=head, levels=levels, kinds=kinds, num_heads=heads)
    if name == "aat-quarterly":
        return NamedProbe(
            name=name,
            head="attentive",
            levels=tuple(layer_set("quarterly", depth)),
            kinds=("cls", "patch"),
            num_heads=_many_heads(depth),
            protocol={"dropouts": (0.5,), "weight_decays": (1.0,), "jitter_probability": 0.9},
        )
    if match := _LEVEL.fullmatch("aat@final" if name == "aat" else name):
        level = FINAL if match[2] == FINAL else f"block.{int(match[2])}"
        if level not in level_names(depth):
            raise RequestError(
                where=f"--probe {name}",
                expected=f"a level of this backbone: 0 to {depth - 1}, or {FINAL}",
                got=match[2],
                todo=f"Name one of them, or {match[1]}@{EVERY} for a probe a level.",
            )
        if match[1] == "aat":
            return NamedProbe(name=name, head="attentive", levels=(level,), kinds=("cls", "patch"), num_heads=8)
        kind = "ap" if match[1] == "linear-ap" else "cls"
        return NamedProbe(name=name, head="linear", levels=(level,), kinds=(kind,))
    known = probe_names()
    nearest = difflib.get_close_matches(name, known, n=1)
    raise RequestError(
        where="--probe",
        expected="one of " + ", ".join(known),
        got=repr(name),
        todo=f"Did you mean {nearest[0]!r}?" if nearest else "See `layerbank probe --help`.",
    )


def probe_names() -> list[str]:
    """Every name, with 2 standing for any g of a grid and `every` for any level."""
    flat = _FLAT.split("|")
    names = [f"{head}-{kind}" for head in flat for kind in ("cls", "ap")]
    names += [
        f"{head}-{layers}{kind}" for head in (*flat, "attn") for layers in LAYER_SETS for kind in ("", "-cls", "-ap")
    ]
    names += ["alf", "alf-cls", "alf-ap", "alf-grid2", *(f"alf-grid2-{layers}" for layers in LAYER_SETS)]
    names += ["aat", "aat-quarterly", *(f"{stem}@{EVERY}" for stem in ("linear", "linear-ap", "aat"))]
    zoo = (*_OVER_PATCHES, *_OVER_LEVELS)
    return names + [f"{head}{layers}" for head in zoo for layers in ("", *(f"-{layers}" for layers in LAYER_SETS))]


def _many_heads(depth: int) -> int:
    """The paper's heads for as many tokens as two kinds of all levels have."""
    return 48 if depth >= 24 else 24
