"""Beyond the paper: the smallest set of levels, the best settings of a bank."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from messages import raises

from layerbank import RequestError
from layerbank.probing.selection import Levels, TrainSubsets, Validated, best_members, smallest_levels

LABELS = np.arange(400) % 4
LEVELS = ("block.1", "block.2", "block.3", "final")


def trained(solves: dict[str, range], asked: list[Sequence[Levels]] | None = None) -> TrainSubsets:
    """Every level solves the images of its range; a set of levels solves what any of its levels does."""

    def train(candidates: Sequence[Levels]) -> list[Validated]:
        if asked is not None:
            asked.append(candidates)
        return [
            Validated(
                levels=levels,
                hits=np.isin(np.arange(400), np.concatenate([np.array(solves[level]) for level in levels])),
                labels=LABELS,
            )
            for levels in candidates
        ]

    return train


def test_the_smallest_set_whose_gap_to_the_best_is_within_the_interval_is_taken() -> None:
    solves = {"block.1": range(200), "block.2": range(10), "block.3": range(100, 396), "final": range(4)}
    found = smallest_levels(LEVELS, trained(solves))
    assert [one.levels for one in found.path[:2]] == [("block.3",), ("block.1", "block.3")]
    assert found.chosen.levels == ("block.1", "block.3")
    assert found.chosen.accuracy == found.best.accuracy == 0.99
    assert found.gap.value == 0


def test_a_gap_that_is_noise_is_no_reason_for_another_level() -> None:
    solves = {"block.1": range(300), "block.2": range(300, 302), "block.3": range(8), "final": range(4)}
    found = smallest_levels(LEVELS, trained(solves))
    assert found.best.levels == ("block.1", "block.2")
    assert found.chosen.levels == ("block.1",)
    assert found.gap.low <= 0 < found.gap.value


def test_every_round_is_asked_for_at_once_and_counted() -> None:
    asked: list[Sequence[Levels]] = []
    found = smallest_levels(LEVELS, trained(dict.fromkeys(LEVELS, range(10)), asked))
    assert [len(one) for one in asked] == [4, 3, 2, 1]
    assert found.num_trained == 10
    assert [len(one.levels) for one in found.path] == [1, 2, 3, 4]
    assert found.path[-1].levels == LEVELS
    assert found.chosen.levels == ("final",)  # the deepest of equals


@settings(deadline=None)
@given(st.permutations(range(8)), st.integers(0, 100))
def test_no_single_level_beats_the_first_step_and_the_path_never_falls_where_levels_only_add(
    order: list[int], seed: int
) -> None:
    generator = np.random.default_rng(seed)
    solves = {level: range(*sorted(generator.integers(0, 401, 2).tolist())) for level in LEVELS}
    found = smallest_levels(LEVELS, trained(solves))
    singles = trained(solves)([(level,) for level in LEVELS])
    assert found.path[0].accuracy == max(one.accuracy for one in singles)
    accuracies = [one.accuracy for one in found.path]
    assert accuracies == sorted(accuracies)
    exhaustive = max(one.accuracy for size in range(1, 5) for one in trained(solves)(list(combinations(LEVELS, size))))
    assert found.best.accuracy == exhaustive


def test_without_levels_there_is_nothing_to_choose() -> None:
    with raises("probing.no_levels", RequestError):
        smallest_levels([], trained({}))


def test_members_are_the_best_on_validation_without_the_diverged() -> None:
    assert best_members([None, 0.2, 0.9, 0.0, 0.9], 3) == [2, 4, 1]
    assert best_members([None, 0.2], 5) == [1]


@pytest.mark.parametrize("validation", [[None, None], []])
def test_an_ensemble_of_diverged_settings_is_refused(validation: list[float | None]) -> None:
    with raises("probing.no_finished_setting", RequestError, num_settings=len(validation)):
        best_members(validation, 1)


def test_an_ensemble_without_members_is_refused() -> None:
    with raises("probing.too_few_members", RequestError, k=0):
        best_members([0.5], 0)
