"""Probes by name: which tokens each reads, and with which head.

    linear-cls, linear-ap             one kind of `final`, a linear layer (linear-cls is the reference of all gains)
    linear-{set}                      cls + ap of a layer set, concatenated, a linear layer
    attn-{set}, alf = attn-all        cls + ap of a layer set, stacked, attention with one head a token
    linear-{set}-cls, alf-ap, ...     the same on one of the two kinds
    linear-grid{g}, linear-patch, ... the tokens of alf-grid{g} and of aat, concatenated, a linear layer; also -{set} and @k
    ridge-*, logreg-*, knn-*          the tokens of linear-*, solved: closed form, L-BFGS, nearest neighbours
    alf-grid{g}, alf-grid{g}-{set}    cls + g x g cells of a layer set, stacked, attention with 24 heads (48 from depth 24)
    aat                               cls + every patch of `final`, attention with 8 heads
    aat-quarterly                     cls + every patch of the quarterly set, 24 heads, dropout 0.5, weight decay 1, jitter p 0.9
    best, best-ap, best-grid2         the best on validation of attn-{set} and alf-grid{g}-{set}, for every set and g of 2 and 4;
                                      of attn-{set} only; of attn-{set} and alf-grid2-{set}. Chosen with lr, weight decay, dropout
    linear@k, linear-ap@k, aat@k      the same on one level: k is a block's number, `final`, `every` for one probe a level, or
                                      `best` for the level that is best on validation, the deepest of equals
    ridge@k, logreg-ap@k, knn@k, ...  one level, solved; also with `every` or `best`
    alf-smallest, {probe}-smallest    the smallest set of the probe's levels that is as good as the best on validation, within its
                                      confidence interval: levels are added one by one, by the setting that the probe chose
    alf-top5, {probe}-top{k}          the k settings of the probe that are best on validation, averaged in probability

Heads of other studies (`probes/README.md` has one row each); without a set, the first read `final` and the second all:

    {head}, {head}-{set}, {head}@k    cls + every patch, stacked; {head} is cae, aim, ep, vjepa, map, abmilp or simpool
    {head}, {head}-{set}              cls + ap, stacked; {head} is alf-embed or scalar-mix

A layer set is last, mid, quarterly or all (`models/layers.py`). Any name of a head with heads may end with -h{H}: `alf-h8` is
alf with 8 heads. A head of a plug-in has names of one of these forms.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..errors import RequestError, advice
from ..models.layers import FINAL, LAYER_SETS, layer_set, level_names
from ..quantities import whole_number

if TYPE_CHECKING:
    from layerbank.probes import Form, HeadType

    from ..registry import Registry

REFERENCE = "linear-cls"
DEMO_PROBES = ("linear-cls", "linear-last", "linear-all", "attn-last", "alf", "alf-grid2")
EVERY, BEST = "every", "best"  # in place of a level
WIDTH, TOKEN_AXIS = "width", "token-axis"  # the axis of normalisation: D, or, as a quirk, the tokens of a level
FAMILIES = {"best": (2, 4), "best-ap": (), "best-grid2": (2,)}  # the grids among their candidates
KINDS = ("cls", "ap")  # that a name may choose from
_ANY_DEPTH = 12  # for names of probes on a backbone that is not open yet
DEEP = 24  # blocks from which heads have the second of their default numbers


@dataclass(frozen=True, kw_only=True)
class SmallestLevels:
    """The smallest set of the base's levels that is good enough on validation."""

    base: ProbeSpec


@dataclass(frozen=True, kw_only=True)
class TopSettings:
    """The ensemble of the base's settings that are best on validation."""

    base: ProbeSpec
    num_members: int


@dataclass(frozen=True, kw_only=True)
class ProbeSpec:
    """A probe on a backbone of a given depth. The key of a result row digests all fields, the name as written included.

    Attributes:
        name: as the user wrote it.
        head: a name in `layerbank.probes.HEADS`.
        levels: the levels it reads, shallow to deep.
        kinds: the kinds it reads at every level.
        num_heads: None means one head a token, or no heads.
        normalize: `width`, each token over its channels, or `token-axis`, each channel over the tokens of a level.
        depth: number of blocks of the backbone; None if unknown.
        protocol: fields of the training protocol that it changes.
        candidates: probes among which one is chosen on validation, in the order in which they win ties; its own head, levels and
            kinds are then those of the first. Empty for a single probe.
        derived: how it is made from a finished probe; its own head, levels and kinds are then that probe's.
    """

    name: str
    head: str
    levels: tuple[str, ...]
    kinds: tuple[str, ...]
    num_heads: int | None = None
    normalize: str = WIDTH
    depth: int | None = None
    protocol: Mapping[str, object] = field(default_factory=dict)
    candidates: tuple[ProbeSpec, ...] = ()
    derived: SmallestLevels | TopSettings | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ProbeSpec:
        """Return the probe that a probe.json holds.

        Raises:
            KeyError, TypeError: values that no probe has.
        """
        named = cls(**{**values, "levels": tuple(values["levels"]), "kinds": tuple(values["kinds"])})
        texts = (named.name, named.head, named.normalize, *named.levels, *named.kinds)
        if not (named.levels and named.kinds and all(isinstance(text, str) for text in texts)):
            raise TypeError("a probe without levels or kinds, or with names that are no texts")
        return named

    @property
    def family(self) -> tuple[ProbeSpec, ...]:
        """The probes that are trained for it."""
        return self.candidates or (self,)

    @property
    def arrays(self) -> list[tuple[str, str]]:
        """Every (level, kind) that is read for it, each once."""
        pairs = ((level, kind) for one in self.family for level in one.levels for kind in one.kinds)
        return list(dict.fromkeys(pairs))

    @property
    def short_name(self) -> str:
        """The canonical name: the shortest of its aliases. A family has one name only.

        >>> [parse_probe(name, 12).short_name for name in ("attn-all", "aat@final", "linear-last-cls", "cae-last-h8")]
        ['alf', 'aat', 'linear-cls', 'cae']
        """
        if self.derived is not None:
            ending = f"top{self.derived.num_members}" if isinstance(self.derived, TopSettings) else "smallest"
            return f"{self.derived.base.short_name}-{ending}"
        if self.candidates or self.depth is None:
            return self.name
        levels = [self.levels[0].removeprefix("block.")]
        grids = [kind for kind in self.kinds if kind.startswith("grid")]
        names = [name for form in _heads()[self.head].forms for name in _expand(form, grids, levels)]
        if self.num_heads is not None:
            names += [f"{name}-h{self.num_heads}" for name in names]
        for name in sorted(names, key=len):
            for quirks in (False, True):
                if replace(parse_probe(name, self.depth, reference_quirks=quirks), name=self.name) == self:
                    return name
        return self.name


def parse_probes(
    names: Iterable[str], depth: int, *, num_heads: Sequence[int] = (), reference_quirks: bool = False
) -> list[ProbeSpec]:
    """Parse names, `...@every` as one probe a level; each name once, in the order given.

    Args:
        names: of probes.
        depth: number of blocks of the backbone.
        num_heads: train each probe whose head has heads once with each of these numbers, unless its name has a number.
        reference_quirks: as in `parse_probe`.

    Raises:
        RequestError: no probe has that name.

    >>> [probe.name for probe in parse_probes(["linear@every", "linear@1"], 2)]
    ['linear@0', 'linear@1', 'linear@final']
    >>> [probe.name for probe in parse_probes(["linear-cls", "alf", "aat-h2"], 12, num_heads=(4, 8))]
    ['linear-cls', 'alf-h4', 'alf-h8', 'aat-h2']
    """
    levels = [level.removeprefix("block.") for level in level_names(depth)]
    parsed: dict[str, ProbeSpec] = {}
    for name in names:
        every = f"@{EVERY}" in _words(name)
        for single in [name.replace(f"@{EVERY}", f"@{level}") for level in levels] if every else [name]:
            probe = parse_probe(single, depth, reference_quirks=reference_quirks)
            counts = num_heads if _heads()[probe.head].has_heads and not _split_heads(single)[1] else ()
            for one in [_with_heads(probe, count) for count in counts] or [probe]:
                parsed.setdefault(one.name, one)
    return list(parsed.values())


def parse_probe(name: str, depth: int, *, reference_quirks: bool = False) -> ProbeSpec:
    """Parse the name of one probe.

    Args:
        name: such as `alf`, `linear-quarterly`, `aat@8` or `alf-h8`.
        depth: number of blocks of the backbone.
        reference_quirks: read and normalise tokens as the authors' code does: the quarterly set is blocks 3, 6 and 9 of any
            backbone, and where every patch is read, each channel is normalised over the tokens of a level.

    Raises:
        RequestError: no probe has that name, or it gives a number of heads to a head without heads.

    >>> probe = parse_probe("alf-grid2-mid", 12)
    >>> probe.head, probe.levels, probe.kinds, probe.num_heads
    ('attentive', ('block.6', 'final'), ('cls', 'grid2'), 24)
    """
    stem, suffix = _split_heads(name)
    base, _, ending = stem.rpartition("-")
    num_members = _count(ending, "top")
    if base and (ending == "smallest" or num_members is not None):
        return _derive(name, parse_probe(base + suffix, depth, reference_quirks=reference_quirks), num_members)
    probe = _parse_stem(stem, depth, reference_quirks)
    if reference_quirks and "patch" in probe.kinds:
        probe = replace(probe, normalize=TOKEN_AXIS)
    if not suffix:
        return probe
    if not _heads()[probe.head].has_heads:
        raise RequestError("probing.head_without_heads", name=name, stem=stem, head=probe.head)
    return _with_heads(probe, int(suffix.removeprefix("-h")))


def check_names(names: Iterable[str]) -> None:
    """Refuse names of probes that no backbone has, before one is opened; which levels there are depends on its depth.

    Raises:
        RequestError: an unknown name, or one with an ending that its probe cannot have.
    """
    for name in names:
        try:
            parse_probes([name], _ANY_DEPTH)
        except RequestError as error:
            if error.key != "probing.no_such_level":
                raise


def probe_names() -> list[str]:
    """Every name, with 2 in place of any g of a grid, and `every` and `best` in place of any level."""
    names = [name for head_type in _heads().values() for form in head_type.forms for name in _expand(form)]
    names += FAMILIES
    return names + [
        f"{base}-{ending}" for base in ("alf", "alf-grid2", "linear-all") for ending in ("smallest", "top5")
    ]


def _heads() -> Registry[HeadType]:
    """All heads; they import torch, which this module must not."""
    from layerbank.probes import HEADS

    return HEADS


def _parse_stem(stem: str, depth: int, quirks: bool) -> ProbeSpec:
    """Parse a name without its number of heads."""
    if stem in FAMILIES:
        names = [f"attn-{layers}" for layers in LAYER_SETS]
        names += [f"alf-grid{grid}-{layers}" for grid in FAMILIES[stem] for layers in LAYER_SETS]
        return _family(stem, names, depth, quirks)
    words = _words(stem)
    for head_type in _heads().values():
        for form in head_type.forms:
            found = _match(form, words)
            if found is not None:
                return _read(stem, head_type, form, found, depth, quirks)
    raise _unknown(stem)


def _match(form: Form, words: Sequence[str]) -> dict[str, str] | None:
    """The words that stand in the place of {layers}, {kind}, {grid} and {level}; None if the words are not of this form."""
    places = _words(form.text)
    if len(places) != len(words):
        return None
    found = {}
    for place, word in zip(places, words, strict=True):
        level = word.removeprefix("@")
        fits = {
            "{layers}": word in LAYER_SETS,
            "{kind}": word in KINDS,
            "{grid}": _count(word, "grid") is not None,
            "@{level}": level != word and (whole_number(level) is not None or level in (FINAL, BEST)),
        }
        if not fits.get(place, place == word):
            return None
        if place in fits:
            found[place.strip("@{}")] = level
    return found


def _read(name: str, head_type: HeadType, form: Form, found: Mapping[str, str], depth: int, quirks: bool) -> ProbeSpec:
    """The probe of a name of a form."""
    known, stem, number = level_names(depth), name.partition("@")[0], found.get("level")
    if number == BEST:
        levels = [level.removeprefix("block.") for level in reversed(known)]
        return _family(name, [f"{stem}@{level}" for level in levels], depth, quirks)
    if number is None:
        levels = layer_set(found.get("layers", form.layers), depth, reference_quirks=quirks)
    else:
        levels = [FINAL if number == FINAL else f"block.{int(number)}"]
    if not set(levels) <= set(known):
        raise RequestError("probing.no_such_level", name=name, stem=stem, level=number, last=depth - 1)
    num_heads = form.num_heads or head_type.num_heads
    return ProbeSpec(
        name=name,
        head=head_type.name,
        levels=tuple(levels),
        kinds=(*form.kinds, *(found[slot] for slot in ("kind", "grid") if slot in found)),
        num_heads=num_heads[depth >= DEEP] if isinstance(num_heads, tuple) else None,
        depth=depth,
        protocol=dict(form.protocol),
    )


def _family(name: str, candidates: Iterable[str], depth: int, quirks: bool) -> ProbeSpec:
    """The choice among some probes; those of equal tokens, such as sets of a shallow backbone, are one candidate."""
    each: dict[tuple[tuple[str, ...], tuple[str, ...]], ProbeSpec] = {}
    for candidate in candidates:
        probe = parse_probe(candidate, depth, reference_quirks=quirks)
        each.setdefault((probe.levels, probe.kinds), probe)
    family = tuple(each.values())
    return replace(family[0], name=name, candidates=family)


def _derive(name: str, base: ProbeSpec, num_members: int | None) -> ProbeSpec:
    """The probe that is made from a finished one: an ensemble of some members, or the smallest set of its levels."""
    head_type = _heads()[base.head]
    if base.candidates or base.derived:
        raise RequestError("probing.derived_from_choice", name=name, base=base.name)
    if num_members is None:
        num_levels = len(base.levels)
        if num_levels == 1 or not head_type.removable_levels:
            raise RequestError(
                "probing.levels_not_removable", name=name, base=base.name, head=base.head, num_levels=num_levels
            )
        return replace(base, name=name, derived=SmallestLevels(base=base))
    if head_type.is_solved:
        raise RequestError("probing.no_settings", name=name, base=base.name, head=base.head)
    return replace(base, name=name, derived=TopSettings(base=base, num_members=num_members))


def _with_heads(probe: ProbeSpec, num_heads: int) -> ProbeSpec:
    name = f"{probe.name}-h{num_heads}"
    if probe.derived is not None:
        base = _with_heads(probe.derived.base, num_heads)
        return replace(base, name=name, derived=replace(probe.derived, base=base))
    candidates = tuple(_with_heads(one, num_heads) for one in probe.candidates)
    return replace(probe, name=name, num_heads=num_heads, candidates=candidates)


def _unknown(stem: str) -> RequestError:
    for head in _heads().broken:
        if stem.startswith(head):
            _heads().require(head)
    examples = ", ".join(DEMO_PROBES)
    return RequestError("probing.unknown_probe", name=stem, examples=examples, advice=advice(stem, probe_names()))


def _expand(form: Form, grids: Sequence[str] = ("grid2",), levels: Sequence[str] = (EVERY, BEST)) -> list[str]:
    """All names of a form."""
    names = [form.text]
    for slot, values in (("{layers}", LAYER_SETS), ("{kind}", KINDS), ("{grid}", grids), ("{level}", levels)):
        names = [name.replace(slot, value) for name in names for value in (values if slot in name else ("",))]
    return names


def _split_heads(name: str) -> tuple[str, str]:
    """A name without its number of heads, and the number's word: ("alf", "-h8"), ("alf", "")."""
    stem, _, word = name.rpartition("-")
    return (stem, f"-{word}") if stem and _count(word, "h") is not None else (name, "")


def _words(text: str) -> list[str]:
    """The words of a name or form; the one after @ keeps it: linear-ap@3 -> linear, ap, @3."""
    return text.replace("@", "-@").split("-")


def _count(word: str, prefix: str) -> int | None:
    """The number after a prefix: 8 for h8; None if the word is something else."""
    number = word.removeprefix(prefix)
    return whole_number(number) if number != word and not number.startswith("0") else None
