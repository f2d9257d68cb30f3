"""How large a named probe is, before anything is read."""

from __future__ import annotations

import pytest

from pipeline import RequestError
from pipeline.probe_names import resolve_probe, resolve_probes
from pipeline.probe_sizes import check_heads, head_of, token_shape


def row_shape(level: str, kind: str) -> tuple[int, ...]:
    """A backbone of width 24 with 2 x 2 patches whose final level is narrower, as CLIP's is."""
    width = 16 if level == "final" else 24
    return {"cls": (width,), "ap": (width,), "patch": (4, width), "grid2": (4, width)}[kind]


def test_shapes_are_those_of_stacked_or_concatenated_tokens() -> None:
    assert token_shape(resolve_probe("alf", 12), row_shape) == (24, 24)
    assert token_shape(resolve_probe("aat", 12), row_shape) == (5, 16)
    assert token_shape(resolve_probe("linear-mid", 12), row_shape) == (2 * 24 + 2 * 16,)


def test_one_head_a_token_where_the_name_says_no_number() -> None:
    assert head_of(resolve_probe("alf", 12), 24).num_heads == 24
    assert head_of(resolve_probe("alf-h8", 12), 24).num_heads == 8
    assert head_of(resolve_probe("linear-all", 12), 720).num_heads == 0
    assert head_of(resolve_probe("alf-embed", 12), 24).num_levels == 12


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("alf-h25", "1 <= num_heads <= embed_dim"),
        ("cae@3-h7", "num_heads that divides embed_dim"),
        ("ep-mid-h5", "num_heads that divides the quotient"),
        ("aim", "num_heads that divides embed_dim"),  # its 12 heads do not divide 16
    ],
)
def test_heads_that_the_width_does_not_allow_are_refused_with_the_name_of_the_probe(name: str, expected: str) -> None:
    with pytest.raises(RequestError) as error:
        check_heads(resolve_probes(["linear-all", name], 12), row_shape)
    assert error.value.where == f"--probe {name}"
    assert expected in error.value.expected
