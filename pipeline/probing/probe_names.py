"""The probes by name: which tokens each reads, and with which head. PROTOCOL's table as code.

    linear-cls, linear-ap             one kind of `final`, a linear layer (linear-cls is the reference of all gains)
    linear-{set}                      cls + ap of a layer set, concatenated, a linear layer
    attn-{set}, alf = attn-all        cls + ap of a layer set, stacked, attention with one head a token
    linear-{set}-cls, alf-ap, ...     the same on one of the two kinds
    ridge-*, logreg-*, knn-*          the tokens of linear-* by other means: closed form, L-BFGS, nearest neighbours
    alf-grid{g}, alf-grid{g}-{set}    cls + g x g cells of a layer set, stacked, attention with 24 heads (48 for depth 24)
    aat                               cls + every patch of `final`, attention with 8 heads
    aat-quarterly                     cls + every patch of the quarterly set, 24 heads, dropout 0.5, weight decay 1, jitter p 0.9
    best, best-ap, best-grid2         the best on validation of attn-{set} and alf-grid{g}-{set}, for every set and g of 2 and 4;
                                      of attn-{set} only; of attn-{set} and alf-grid2-{set}. Chosen with lr, weight decay, dropout
    linear@k, linear-ap@k, aat@k      the same on one level: k is a block's number, `final`, `every` for one probe a level, or
                                      `best` for the level that is best on validation, the deepest of equals
    ridge@k, logreg-ap@k, knn@k, ...  one level by other means, `every` or `best` of them likewise
    alf-smallest, {probe}-smallest    the smallest set of the probe's levels that is as good as the best on validation, within its
                                      confidence interval: levels are added one by one, by the setting that the probe chose
    alf-top5, {probe}-top{k}          the k settings of the probe that are best on validation, averaged in probability

Heads of other studies, `probes/README.md` has one row each; without a set, the first reads `final` and the second all:

    {head}, {head}-{set}, {head}@k    cls + every patch, stacked; {head} is cae, aim, ep, vjepa, map, abmilp or simpool
    {head}, {head}-{set}              cls + ap, stacked; {head} is alf-embed or scalar-mix

A layer set is last, mid, quarterly or all (`models/layers.py`). Any name of a head with heads may end with -h{H}: `alf-h8` is
alf with 8 of them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..errors import RequestError
from ..models.layers import FINAL, LAYER_SETS, layer_set, level_names

REFERENCE = "linear-cls"
DEMO_PROBES = ("linear-cls", "linear-last", "linear-all", "attn-last", "alf", "alf-grid2")
EVERY = "every"
WIDTH, TOKEN_AXIS = "width", "token-axis"  # over what tokens are normalised: D, or, a quirk, the tokens of a level

_SETS = "|".join(LAYER_SETS)
_FLAT = "linear|ridge|logreg|knn"  # heads on concatenated tokens
_SOLVED = ("ridge", "logreg", "knn")
_ONE_KIND = re.compile(rf"({_FLAT})-(cls|ap)")
_LAYER_SET = re.compile(rf"({_FLAT}|attn)-({_SETS})(?:-(cls|ap))?")
_GRID = re.compile(rf"alf-grid([1-9]\d*)(?:-({_SETS}))?")
_BEST = re.compile(r"best(|-ap|-grid2)")
_DERIVED = re.compile(r"(.+)-(smallest|top([1-9]\d*))")
_NUM_HEADS = re.compile(r"(.+)-h([1-9]\d*)")

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
HEADS_WITH_HEADS = ("attentive", "alf-embed", *(head for head, choice in _OVER_PATCHES.items() if choice))
_ZOO = re.compile(rf"({'|'.join((*_OVER_PATCHES, *_OVER_LEVELS))})(?:-({_SETS}))?")
_LEVEL = re.compile(rf"((?:{_FLAT})(?:-ap)?|aat|{'|'.join(_OVER_PATCHES)})@(\d+|{FINAL})")
_BEST_LEVEL = re.compile(rf"((?:{_FLAT})(?:-ap)?|aat|{'|'.join(_OVER_PATCHES)})@best")
_SHRINKING = ("linear", "attentive")  # heads to which a level is no more than tokens to read


@dataclass(frozen=True, kw_only=True)
class SmallestLevels:
    """The smallest set of the base's levels that is good enough on validation."""

    base: NamedProbe


@dataclass(frozen=True, kw_only=True)
class TopSettings:
    """The ensemble of the base's settings that are best on validation."""

    base: NamedProbe
    num_members: int


@dataclass(frozen=True, kw_only=True)
class NamedProbe:
    """What a probe's name means for a backbone of a given depth.

    Attributes:
        name: as the user wrote it.
        head: a kind of `layerbank.probes.Head`; `linear`, `ridge`, `logreg` and `knn` read concatenated tokens.
        levels: the levels it reads, shallow to deep.
        kinds: the kinds it reads at every level.
        num_heads: None means one head a token, where the head has heads.
        normalize: `width`, each token over its channels, or `token-axis`, each channel over the tokens of a level.
        depth: number of blocks of the backbone; None where nobody said.
        protocol: what it changes of the training protocol, field by field.
        candidates: probes among which one is chosen on validation, in the order in which they win ties; its own head, levels and
            kinds are then those of the first. Empty: it is what it says.
        derived: how it is made of another, finished probe; its own head, levels and kinds are then that one's.
    """

    name: str
    head: str
    levels: tuple[str, ...]
    kinds: tuple[str, ...]
    num_heads: int | None = None
    normalize: str = WIDTH
    depth: int | None = None
    protocol: Mapping[str, object] = field(default_factory=dict)
    candidates: tuple[NamedProbe, ...] = ()
    derived: SmallestLevels | TopSettings | None = None

    @property
    def family(self) -> tuple[NamedProbe, ...]:
        """What is trained for it."""
        return self.candidates or (self,)

    @property
    def arrays(self) -> list[tuple[str, str]]:
        """Every (level, kind) that is read for it, each once."""
        pairs = ((level, kind) for one in self.family for level in one.levels for kind in one.kinds)
        return list(dict.fromkeys(pairs))


def resolve_probes(
    names: Iterable[str], depth: int, *, num_heads: Sequence[int] = (), reference_quirks: bool = False
) -> list[NamedProbe]:
    """Read names, `...@every` being one probe a level, each once and in the order given.

    Args:
        names: of probes.
        depth: number of blocks of the backbone.
        num_heads: train each probe whose head has heads once with each of these numbers; a name that says its own keeps it.
        reference_quirks: as in `resolve_probe`.

    Raises:
        RequestError: no probe has that name.

    >>> [probe.name for probe in resolve_probes(["linear@every", "linear@1"], 2)]
    ['linear@0', 'linear@1', 'linear@final']
    >>> [probe.name for probe in resolve_probes(["linear-cls", "alf", "aat-h2"], 12, num_heads=(4, 8))]
    ['linear-cls', 'alf-h4', 'alf-h8', 'aat-h2']
    """
    singles: list[str] = []
    for name in names:
        base, suffix = _split_heads(name)
        stem, at, level = base.partition("@")
        levels = [one.removeprefix("block.") for one in level_names(depth)] if level == EVERY else [level]
        singles += [f"{stem}{at}{one}{suffix}" for one in levels]
    resolved: dict[str, NamedProbe] = {}
    for name in singles:
        probe = resolve_probe(name, depth, reference_quirks=reference_quirks)
        counts = num_heads if probe.head in HEADS_WITH_HEADS and not _split_heads(name)[1] else ()
        for one in [_with_heads(probe, count) for count in counts] or [probe]:
            resolved.setdefault(one.name, one)
    return list(resolved.values())


def resolve_probe(name: str, depth: int, *, reference_quirks: bool = False) -> NamedProbe:
    """Read the name of one probe.

    Args:
        name: such as `alf`, `linear-quarterly`, `aat@8` or `alf-h8`.
        depth: number of blocks of the backbone.
        reference_quirks: read and normalise tokens as the authors' code does: the quarterly set is blocks 3, 6 and 9 of any
            backbone, and where every patch is read, each channel is normalised over the tokens of a level.

    Raises:
        RequestError: no probe has that name, or it has no heads to count.

    >>> probe = resolve_probe("alf-grid2-mid", 12)
    >>> probe.head, probe.levels, probe.kinds, probe.num_heads
    ('attentive', ('block.6', 'final'), ('cls', 'grid2'), 24)
    """
    base, suffix = _split_heads(name)
    if match := _DERIVED.fullmatch(base):
        of = resolve_probe(match[1] + suffix, depth, reference_quirks=reference_quirks)
        return _derive(name, of, int(match[3]) if match[3] else None)
    probe = _resolve_base(base, depth, reference_quirks)
    if probe is None:
        raise _unknown(name)
    if reference_quirks and "patch" in probe.kinds:
        probe = replace(probe, normalize=TOKEN_AXIS)
    if not suffix:
        return probe
    if probe.head not in HEADS_WITH_HEADS:
        raise RequestError(
            where=f"--probe {name}",
            expected="a probe whose head has heads, such as alf, attn-last, aat or cae",
            got=f"{base}, whose head has none",
            todo=f"Name it {base}.",
        )
    return _with_heads(probe, int(suffix.removeprefix("-h")))


def probe_names() -> list[str]:
    """Every name, with 2 standing for any g of a grid and `every` for any level."""
    flat = _FLAT.split("|")
    names = [f"{head}-{kind}" for head in flat for kind in ("cls", "ap")]
    names += [
        f"{head}-{layers}{kind}" for head in (*flat, "attn") for layers in LAYER_SETS for kind in ("", "-cls", "-ap")
    ]
    names += ["alf", "alf-cls", "alf-ap", "alf-grid2", *(f"alf-grid2-{layers}" for layers in LAYER_SETS)]
    names += ["aat", "aat-quarterly", "best", "best-ap", "best-grid2"]
    zoo = (*_OVER_PATCHES, *_OVER_LEVELS)
    names += [f"{head}{layers}" for head in zoo for layers in ("", *(f"-{layers}" for layers in LAYER_SETS))]
    one_level = (*(f"{head}{kind}" for head in flat for kind in ("", "-ap")), "aat", *_OVER_PATCHES)
    names += [f"{stem}@{which}" for which in (EVERY, "best") for stem in one_level]
    return names + [f"{base}-{kind}" for base in ("alf", "alf-grid2", "linear-all") for kind in ("smallest", "top5")]


def _best(name: str, depth: int, finest: int, quirks: bool) -> NamedProbe:
    """The family of `best`: every layer set over cls + ap, and over cls + g x g cells for g up to the finest."""
    names = [f"attn-{layers}" for layers in LAYER_SETS]
    names += [f"alf-grid{g}-{layers}" for g in (2, 4) if g <= finest for layers in LAYER_SETS]
    family = [resolve_probe(one, depth, reference_quirks=quirks) for one in names]
    # sets of a shallow backbone may coincide: each once
    each = {(one.levels, one.kinds): one for one in reversed(family)}
    candidates = tuple(one for one in family if each[one.levels, one.kinds] is one)
    return replace(candidates[0], name=name, candidates=candidates)


def _best_level(name: str, stem: str, depth: int, quirks: bool) -> NamedProbe:
    """The family of one probe a level, the deepest first."""
    levels = [one.removeprefix("block.") for one in reversed(level_names(depth))]
    candidates = tuple(resolve_probe(f"{stem}@{level}", depth, reference_quirks=quirks) for level in levels)
    return replace(candidates[0], name=name, candidates=candidates)


def _derive(name: str, base: NamedProbe, num_members: int | None) -> NamedProbe:
    if num_members is None:
        expected, fits = (
            "a linear or attentive probe of several levels, such as alf or linear-all",
            len(base.levels) > 1,
        )
        fits = fits and base.head in _SHRINKING
        derived: SmallestLevels | TopSettings = SmallestLevels(base=base)
    else:
        expected, fits = "a probe that is trained with several settings, such as alf", base.head not in _SOLVED
        derived = TopSettings(base=base, num_members=num_members)
    if not fits or base.candidates or base.derived:
        is_what = f"the head {base.head} on {len(base.levels)} level{'s' if len(base.levels) > 1 else ''}"
        raise RequestError(
            where=f"--probe {name}",
            expected=expected,
            got=f"{base.name}, {'a choice among probes' if base.candidates or base.derived else is_what}",
            todo=f"Name another probe, or {base.name} itself.",
        )
    return replace(base, name=name, derived=derived)


def _split_heads(name: str) -> tuple[str, str]:
    """A name without its number of heads, and that: ("alf", "-h8"), ("alf", "")."""
    match = _NUM_HEADS.fullmatch(name)
    return (match[1], f"-h{match[2]}") if match else (name, "")


def _with_heads(probe: NamedProbe, num_heads: int) -> NamedProbe:
    name = f"{probe.name}-h{num_heads}"
    if probe.derived is not None:
        base = _with_heads(probe.derived.base, num_heads)
        return replace(base, name=name, derived=replace(probe.derived, base=base))
    candidates = tuple(_with_heads(one, num_heads) for one in probe.candidates)
    return replace(probe, name=name, num_heads=num_heads, candidates=candidates)


def _resolve_base(name: str, depth: int, quirks: bool) -> NamedProbe | None:
    """A name without a number of heads; None where no probe has it."""

    def levels_of(layers: str) -> tuple[str, ...]:
        return tuple(layer_set(layers, depth, reference_quirks=quirks))

    if match := _BEST.fullmatch(name):
        finest = {"": 4, "-ap": 1, "-grid2": 2}[match[1]]
        return _best(name, depth, finest, quirks)
    if match := _BEST_LEVEL.fullmatch(name):
        return _best_level(name, match[1], depth, quirks)
    if match := _ONE_KIND.fullmatch(name):
        return NamedProbe(name=name, head=match[1], levels=(FINAL,), kinds=(match[2],), depth=depth)
    if match := _LAYER_SET.fullmatch(re.sub("^alf(?=$|-cls$|-ap$)", "attn-all", name)):
        head = "attentive" if match[1] == "attn" else match[1]
        kinds = (match[3],) if match[3] else ("cls", "ap")
        return NamedProbe(name=name, head=head, levels=levels_of(match[2]), kinds=kinds, depth=depth)
    if match := _GRID.fullmatch(name):
        return NamedProbe(
            name=name,
            head="attentive",
            levels=levels_of(match[2] or "all"),
            kinds=("cls", f"grid{match[1]}"),
            num_heads=_many_heads(depth),
            depth=depth,
        )
    if match := _ZOO.fullmatch(name):
        over_levels = match[1] in _OVER_LEVELS
        return NamedProbe(
            name=name,
            head=match[1],
            levels=levels_of(match[2] or ("all" if over_levels else "last")),
            kinds=("cls", "ap" if over_levels else "patch"),
            num_heads=_heads_over_patches(match[1], depth),
            depth=depth,
        )
    if name == "aat-quarterly":
        return NamedProbe(
            name=name,
            head="attentive",
            levels=levels_of("quarterly"),
            kinds=("cls", "patch"),
            num_heads=_many_heads(depth),
            depth=depth,
            protocol={"dropouts": (0.5,), "weight_decays": (1.0,), "jitter_probability": 0.9},
        )
    match = _LEVEL.fullmatch("aat@final" if name == "aat" else name)
    return _resolve_level(name, match[1], match[2], depth) if match else None


def _resolve_level(name: str, stem: str, number: str, depth: int) -> NamedProbe:
    level = FINAL if number == FINAL else f"block.{int(number)}"
    if level not in level_names(depth):
        raise RequestError(
            where=f"--probe {name}",
            expected=f"a level of this backbone: 0 to {depth - 1}, or {FINAL}",
            got=number,
            todo=f"Name one of them, {stem}@{EVERY} for a probe a level, or {stem}@best for the best on validation.",
        )
    head = stem.removesuffix("-ap")
    if head in _FLAT.split("|"):
        kinds: tuple[str, ...] = ("ap" if stem.endswith("-ap") else "cls",)
        return NamedProbe(name=name, head=head, levels=(level,), kinds=kinds, depth=depth)
    return NamedProbe(
        name=name,
        head="attentive" if stem == "aat" else stem,
        levels=(level,),
        kinds=("cls", "patch"),
        num_heads=8 if stem == "aat" else _heads_over_patches(stem, depth),
        depth=depth,
    )


def _unknown(name: str) -> RequestError:
    nearest = difflib.get_close_matches(_split_heads(name)[0], probe_names(), n=1)
    return RequestError(
        where="--probe",
        expected="a name that `layerbank probes` lists, such as " + ", ".join(DEMO_PROBES),
        got=repr(name),
        todo=f"Did you mean {nearest[0]!r}?" if nearest else "See `layerbank probes`.",
    )


def _many_heads(depth: int) -> int:
    """The paper's heads for as many tokens as two kinds of all levels have."""
    return 48 if depth >= 24 else 24


def _heads_over_patches(head: str, depth: int) -> int | None:
    choice = _OVER_PATCHES.get(head)
    return choice[depth >= 24] if choice else None
