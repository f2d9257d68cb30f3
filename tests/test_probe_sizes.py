"""How large a named probe is, before anything is read."""

from __future__ import annotations

import pytest
from messages import raises

from layerbank import RequestError
from layerbank.probing.probe_sizes import check_heads, describe_probes, head_of, size_table, token_shape
from layerbank.probing.probe_spec import parse_probe, parse_probes, probe_names


def row_shape(level: str, kind: str) -> tuple[int, ...]:
    """A backbone of width 24 with 2 x 2 patches whose final level is narrower, as CLIP's is."""
    width = 16 if level == "final" else 24
    return {"cls": (width,), "ap": (width,), "patch": (4, width), "grid2": (4, width)}[kind]


def test_shapes_are_those_of_stacked_or_concatenated_tokens() -> None:
    assert token_shape(parse_probe("alf", 12), row_shape) == (24, 24)
    assert token_shape(parse_probe("aat", 12), row_shape) == (5, 16)
    assert token_shape(parse_probe("linear-mid", 12), row_shape) == (2 * 24 + 2 * 16,)


def test_one_head_a_token_where_the_name_says_no_number() -> None:
    assert head_of(parse_probe("alf", 12), 24).num_heads == 24
    assert head_of(parse_probe("alf-h8", 12), 24).num_heads == 8
    assert head_of(parse_probe("linear-all", 12), 720).num_heads == 0
    assert head_of(parse_probe("alf-embed", 12), 24).num_levels == 12


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("alf-h25", "num_heads <= embed_dim"),
        ("cae@3-h7", "num_heads that divides embed_dim"),
        ("ep-mid-h5", "num_heads that divides the quotient"),
        ("aim", "num_heads that divides embed_dim"),  # its 12 heads do not divide 16
    ],
)
def test_heads_that_the_width_does_not_allow_are_refused_with_the_name_of_the_probe(name: str, expected: str) -> None:
    with raises("probing.head_does_not_fit", RequestError, name=name) as refused:
        check_heads(parse_probes(["linear-all", name], 12), row_shape)
    assert expected in refused.error.expected


def test_what_is_listed_is_every_name_with_the_parameters_that_the_paper_counts() -> None:
    described = {
        one["name"]: one for one in describe_probes("*", depth=12, embed_dim=384, num_patches=256, num_classes=10)
    }
    assert list(described) == probe_names()
    alf = described["alf"]
    assert described["attn-all"]["short_name"] == "alf"
    assert (alf["num_parameters_before_classifier"], alf["num_parameters"]) == (1_183_488, 1_183_488 + 3850)
    assert (alf["token_shape"], alf["num_heads"]) == ([24, 384], 24)
    assert described["aat-quarterly"]["token_shape"] == [4 * 257, 384]
    assert described["cae@every"]["num_parameters_before_classifier"] == 4 * 384**2 + 8 * 384
    assert described["knn-all"]["num_parameters"] is None


def test_a_pattern_chooses_among_the_names_and_a_name_that_no_list_holds_is_read() -> None:
    sizes = {"depth": 24, "embed_dim": 32, "num_patches": 9, "num_classes": 3}
    assert [one["name"] for one in describe_probes("alf-?p", **sizes)] == ["alf-ap"]
    (grid,) = describe_probes("alf-grid3-mid-h4", **sizes)
    assert (grid["token_shape"], grid["num_heads"], grid["levels"]) == ([20, 32], 4, ["block.12", "final"])
    (quirky,) = describe_probes("aat-quarterly", **sizes, reference_quirks=True)
    assert quirky["levels"] == ["block.3", "block.6", "block.9", "final"]
    (unfit,) = describe_probes("aim", **{**sizes, "embed_dim": 20})
    assert unfit["num_parameters"] is None
    lines = size_table([grid, unfit])
    assert lines[0] == ["alf-grid3-mid-h4", "12, final", "cls+grid3", "attentive", "4", "20 x 32", "8,611", "8,512"]
    assert lines[1][-2:] == ["-", "-"]
    with raises("probing.unknown_probe", name="nothing*"):
        describe_probes("nothing*", **sizes)
