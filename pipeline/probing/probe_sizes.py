"""Shapes of tokens and numbers of parameters of probes on a backbone, before anything is read or trained."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from math import prod
from typing import Any

from layerbank.probes import HEADS, Head, ProbeError, make_probe

from ..errors import RequestError
from ..models.layers import FINAL, short_levels
from .probe_spec import EVERY, ProbeSpec, TopSettings, parse_probe, probe_names

SIZE_COLUMNS = ("probe", "levels", "kinds", "head", "heads", "tokens", "parameters", "before the classifier")
RowShape = Callable[[str, str], tuple[int, ...]]  # (level, kind) -> (D,) or (t, D)


def head_of(probe: ProbeSpec, num_tokens: int) -> Head:
    """The head of a probe that reads so many tokens: one head a token where the name has no number."""
    head_type = HEADS[probe.head]
    return Head(
        kind=probe.head,
        num_heads=(probe.num_heads or num_tokens) if head_type.has_heads else 0,
        num_levels=len(probe.levels) if head_type.has_levels else 0,
    )


def token_shape(probe: ProbeSpec, row_shape: RowShape) -> tuple[int, ...]:
    """(T, D) of the tokens stacked and padded to the widest, or (F,) concatenated.

    Args:
        probe: its levels and kinds.
        row_shape: shape of one image's tokens at a level and kind, such as `Backbone.row_shape`.

    >>> from .probe_spec import parse_probe
    >>> shape = lambda level, kind: (8,) if level == "final" else (12,)
    >>> token_shape(parse_probe("alf", 4), shape), token_shape(parse_probe("linear-all", 4), shape)
    ((8, 12), (88,))
    """
    shapes = [row_shape(level, kind) for level in probe.levels for kind in probe.kinds]
    if HEADS[probe.head].flat:
        return (sum(prod(shape) for shape in shapes),)
    return (sum(prod(shape[:-1]) for shape in shapes), max(shape[-1] for shape in shapes))


def leave_out_unfit(probes: Iterable[ProbeSpec], row_shape: RowShape) -> list[ProbeSpec]:
    """Probes without the candidates that a backbone does not allow: grids finer than its patches.

    Raises:
        RequestError: a family has no candidate left.
    """
    return [replace(probe, candidates=_fitting(probe, row_shape)) if probe.candidates else probe for probe in probes]


def _fitting(probe: ProbeSpec, row_shape: RowShape) -> tuple[ProbeSpec, ...]:
    fitting, refusals = [], []
    for candidate in probe.candidates:
        try:
            token_shape(candidate, row_shape)
            fitting.append(candidate)
        except RequestError as error:
            refusals.append(error)
    if not fitting:
        raise refusals[0]
    return tuple(fitting)


def check_heads(probes: Iterable[ProbeSpec], row_shape: RowShape) -> None:
    """Refuse heads that do not fit the width of the tokens, before anything is trained.

    Raises:
        RequestError: which probe, and what its head needs.
    """
    for probe in (one for several in probes for one in several.family):
        if HEADS[probe.head].has_heads:
            shape = token_shape(probe, row_shape)
            try:
                make_probe(head_of(probe, shape[0]), shape, num_classes=1)
            except ProbeError as error:
                parts = {"expected": error.expected, "got": error.got, "todo": error.todo}
                raise RequestError("probing.head_does_not_fit", name=probe.name, **parts) from error


def describe_probes(
    pattern: str,
    *,
    depth: int,
    embed_dim: int,
    num_patches: int,
    num_classes: int,
    reference_quirks: bool = False,
) -> list[dict[str, Any]]:
    """Every probe whose name matches, on a backbone of one width.

    Args:
        pattern: pattern of names, * for anything; a name that is not in the list, such as `alf-grid7-h2`, is parsed.
        depth, embed_dim, num_patches: sizes of the backbone.
        num_classes: number of classes of the data.
        reference_quirks: as in `parse_probe`.

    Returns:
        One record a name: its shortest alias, levels, kinds, head, num_heads, token_shape and numbers of parameters, null where
        the head does not fit the width, and for kNN, which keeps its training tokens. A probe that is made by -smallest has at
        most these.

    Raises:
        RequestError: nothing matches.
    """

    def row_shape(level: str, kind: str) -> tuple[int, ...]:
        if kind.startswith("grid"):
            return (int(kind.removeprefix("grid")) ** 2, embed_dim)
        return (num_patches, embed_dim) if kind == "patch" else (embed_dim,)

    described = []
    for name in fnmatch.filter(probe_names(), pattern) or [pattern]:
        every = name.endswith(f"@{EVERY}")
        probe = parse_probe(name.replace(EVERY, FINAL) if every else name, depth, reference_quirks=reference_quirks)
        shape = token_shape(probe, row_shape)
        head = head_of(probe, shape[0])
        num_members = probe.derived.num_members if isinstance(probe.derived, TopSettings) else 1
        total, before = (
            None if count is None else num_members * count for count in _count_parameters(head, shape, num_classes)
        )
        described.append(
            {
                "name": name,
                "short_name": name if every else probe.short_name,
                "levels": ["each"] if every else list(probe.levels),
                "kinds": list(probe.kinds),
                "head": probe.head,
                "num_heads": head.num_heads or None,
                "token_shape": list(shape),
                "num_parameters": total,
                "num_parameters_before_classifier": before,
            }
        )
    return described


def size_table(described: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """Lines under SIZE_COLUMNS; runs of levels are shortened, for example to 1-11."""
    return [
        [
            one["name"],
            short_levels(one["levels"]),
            "+".join(one["kinds"]),
            one["head"],
            _count(one["num_heads"]),
            " x ".join(map(str, one["token_shape"])),
            _count(one["num_parameters"]),
            _count(one["num_parameters_before_classifier"]),
        ]
        for one in described
    ]


@lru_cache(maxsize=256)
def _count_parameters(head: Head, shape: tuple[int, ...], num_classes: int) -> tuple[int | None, int | None]:
    """The numbers of all parameters and of those before the classifier."""
    if not HEADS[head.kind].has_parameters:
        return None, None
    try:
        probe = make_probe(head, shape, num_classes)
    except ProbeError:
        return None, None
    total, classifier = (sum(p.numel() for p in part.parameters()) for part in (probe, probe.classifier))
    return total, total - classifier


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"
