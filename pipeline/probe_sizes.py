"""How large a named probe is on the tokens of a backbone: arithmetic on shapes, before anything is read or trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import prod

from probes import HEAD_KINDS, Head, ProbeError, make_probe

from .errors import RequestError
from .probe_names import NamedProbe

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


def check_heads(probes: Iterable[NamedProbe], row_shape: RowShape) -> None:
    """Refuse heads that the width of the tokens does not allow, hours before they would be trained.

    Raises:
        RequestError: which probe, and what its head wants.
    """
    for named in probes:
        if HEAD_KINDS[named.head].heads:
            shape = token_shape(named, row_shape)
            try:
                make_probe(head_of(named, shape[0]), shape, num_classes=1)
            except ProbeError as error:
                raise RequestError(
                    where=f"--probe {named.name}", expected=error.expected, got=error.got, todo=error.todo
                ) from error
