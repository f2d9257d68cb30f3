"""How large a named probe is on the tokens of a backbone: shapes and counts, before anything is read or trained."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from math import prod
from typing import Any

from layerbank.probes import HEAD_KINDS, Head, ProbeError, make_probe

from ..errors import RequestError
from ..models.layers import FINAL, short_levels
from .probe_names import EVERY, NamedProbe, TopSettings, probe_names, resolve_probe

SIZE_COLUMNS = ("probe", "levels", "kinds", "head", "heads", "tokens", "parameters", "before the classifier")
RowShape = Callable[[str, str], tuple[int, ...]]  # (level, kind) -> (D,) or (t, D)


def head_of(named: NamedProbe, num_tokens: int) -> Head:
    """The head of a named probe that sees so many tokens: one head a token where the name says no number."""
    kind = HEAD_KINDS[named.head]
    return Head(
        kind=named.head,
        num_heads=(named.num_heads or num_tokens) if kind.heads else 0,
        num_levels=len(named.levels) if kind.levels else 0,
    )


def token_shape(named: NamedProbe, row_shape: RowShape) -> tuple[int, ...]:
    """(T, D) of the tokens stacked and padded to the widest, or (F,) concatenated.

    Args:
        named: which levels and kinds.
        row_shape: of one image's tokens at a level and kind, such as `Backbone.row_shape`.

    >>> from .probe_names import resolve_probe
    >>> shape = lambda level, kind: (8,) if level == "final" else (12,)
    >>> token_shape(resolve_probe("alf", 4), shape), token_shape(resolve_probe("linear-all", 4), shape)
    ((8, 12), (88,))
    """
    shapes = [row_shape(level, kind) for level in named.levels for kind in named.kinds]
    if HEAD_KINDS[named.head].flat:
        return (sum(prod(shape) for shape in shapes),)
    return (sum(prod(shape[:-1]) for shape in shapes), max(shape[-1] for shape in shapes))


def leave_out_unfit(probes: Iterable[NamedProbe], row_shape: RowShape) -> list[NamedProbe]:
    """Probes whose families hold only what a backbone has: a grid finer than its patches is no candidate.

    Raises:
        RequestError: nothing of a family is left.
    """
    return [replace(probe, candidates=_fitting(probe, row_shape)) if probe.candidates else probe for probe in probes]


def _fitting(probe: NamedProbe, row_shape: RowShape) -> tuple[NamedProbe, ...]:
    fitting, refusal = [], None
    for one in probe.candidates:
        try:
            token_shape(one, row_shape)
            fitting.append(one)
        except RequestError as error:
            refusal = refusal or error
    if refusal is not None and not fitting:
        raise refusal
    return tuple(fitting)


def check_heads(probes: Iterable[NamedProbe], row_shape: RowShape) -> None:
    """Refuse heads that the width of the tokens does not allow, hours before they would be trained.

    Raises:
        RequestError: which probe, and what its head wants.
    """
    for named in (one for probe in probes for one in probe.family):
        if HEAD_KINDS[named.head].heads:
            shape = token_shape(named, row_shape)
            try:
                make_probe(head_of(named, shape[0]), shape, num_classes=1)
            except ProbeError as error:
                raise RequestError(
                    where=f"--probe {named.name}", expected=error.expected, got=error.got, todo=error.todo
                ) from error


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
        pattern: of names, * for anything; a name that is listed nowhere, such as `alf-grid7-h2`, is looked at as it is.
        depth, embed_dim, num_patches: of the backbone.
        num_classes: of the data.
        reference_quirks: as in `resolve_probe`.

    Returns:
        One record a name: levels, kinds, head, num_heads, token_shape and numbers of parameters, null where the head does not fit
        the width, and for kNN, which keeps its training tokens.

    Raises:
        RequestError: nothing matches.
    """

    def row_shape(level: str, kind: str) -> tuple[int, ...]:
        if kind.startswith("grid"):
            return (int(kind.removeprefix("grid")) ** 2, embed_dim)
        return (num_patches, embed_dim) if kind == "patch" else (embed_dim,)

    names = fnmatch.filter(probe_names(), pattern) or [pattern]
    counted: dict[tuple[Head, tuple[int, ...]], tuple[int | None, int | None]] = {}
    described = []
    for name in names:
        every = name.endswith(f"@{EVERY}")
        named = resolve_probe(name.replace(EVERY, FINAL) if every else name, depth, reference_quirks=reference_quirks)
        shape = token_shape(named, row_shape)
        head = head_of(named, shape[0])
        if (head, shape) not in counted:
            counted[head, shape] = _count_parameters(head, shape, num_classes)
        # of the smallest set of levels these are at most what its base has
        num_members = named.derived.num_members if isinstance(named.derived, TopSettings) else 1
        of_all, before = (None if count is None else num_members * count for count in counted[head, shape])
        described.append(
            {
                "name": name,
                "levels": ["each"] if every else list(named.levels),
                "kinds": list(named.kinds),
                "head": named.head,
                "num_heads": head.num_heads or None,
                "token_shape": list(shape),
                "num_parameters": of_all,
                "num_parameters_before_classifier": before,
            }
        )
    return described


def size_table(described: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """Lines under SIZE_COLUMNS; runs of levels are shortened to 1-11."""
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


def _count_parameters(head: Head, shape: tuple[int, ...], num_classes: int) -> tuple[int | None, int | None]:
    """All parameters, and those before the classifier."""
    if head.kind == "knn":
        return None, None
    try:
        probe = make_probe(head, shape, num_classes)
    except ProbeError:
        return None, None
    of_all, of_classifier = (sum(p.numel() for p in part.parameters()) for part in (probe, probe.classifier))
    return of_all, of_all - of_classifier


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"
