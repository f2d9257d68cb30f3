"""Level names and layer sets are those of PROTOCOL section 1."""

from __future__ import annotations

import pytest
from messages import raises

from layerbank import RequestError
from layerbank.models.layers import LAYER_SETS, choose_levels, layer_set, level_names


def _blocks(*indices: int) -> list[str]:
    return [f"block.{index}" for index in indices] + ["final"]


def test_a_backbone_has_a_level_a_block_and_final() -> None:
    assert level_names(12) == _blocks(*range(12))
    assert len(level_names(24)) == 25


@pytest.mark.parametrize(
    ("name", "depth", "expected"),
    [
        ("last", 12, _blocks()),
        ("last", 24, _blocks()),
        ("mid", 12, _blocks(6)),
        ("mid", 24, _blocks(12)),
        ("quarterly", 12, _blocks(3, 6, 9)),
        ("quarterly", 24, _blocks(6, 12, 18)),
        ("quarterly", 27, _blocks(6, 13, 20)),
        ("all", 12, _blocks(*range(1, 12))),
        ("all", 24, _blocks(*range(1, 24))),
    ],
)
def test_layer_sets_are_the_protocols(name: str, depth: int, expected: list[str]) -> None:
    assert layer_set(name, depth) == expected


@pytest.mark.parametrize(
    ("name", "tokens"), [("last", (2, 2)), ("mid", (4, 4)), ("quarterly", (8, 8)), ("all", (24, 48))]
)
def test_two_kinds_a_level_make_the_protocols_number_of_tokens(name: str, tokens: tuple[int, int]) -> None:
    assert (2 * len(layer_set(name, 12)), 2 * len(layer_set(name, 24))) == tokens


@pytest.mark.parametrize("depth", range(1, 8))
def test_sets_of_shallow_backbones_repeat_no_level_and_stay_in_order(depth: int) -> None:
    for name in LAYER_SETS:
        levels = layer_set(name, depth)
        assert levels == [level for level in level_names(depth) if level in levels]


def test_an_option_names_a_set_or_levels_and_ranges_in_any_order() -> None:
    assert choose_levels("quarterly", 12) == _blocks(3, 6, 9)
    assert choose_levels("final, block.3,block.1-2,block.3", 12) == _blocks(1, 2, 3)
    assert choose_levels("block.0", 12) == ["block.0"]


@pytest.mark.parametrize(
    ("text", "got", "near"),
    [
        ("block.12", "block.12", "block.11"),
        ("finale", "finale", "final"),
        ("block.3-1", "block.3-1", "block.3"),
    ],
)
def test_an_unknown_level_is_answered_with_the_nearest_name(text: str, got: str, near: str) -> None:
    sets = "last, mid, quarterly, all"
    with raises(
        "models.unknown_level", name=got, first="block.0", last="block.11", sets=sets, advice=f"Did you mean {near!r}?"
    ):
        choose_levels(text, 12)


def test_an_unknown_set_is_refused() -> None:
    with raises("models.unknown_layer_set", RequestError, name="middle", names="last, mid, quarterly, all"):
        layer_set("middle", 12)
