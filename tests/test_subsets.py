"""Subsets and folds: nested, of equal shares, without a group in two."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from layerbank.data.splits.subsets import draw_order, first_of_each, fold_of_each
from layerbank.probes import ArraySource, split_rows, training_rows


@st.composite
def images(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Strata and groups of some images."""
    count = draw(st.integers(4, 60))
    numbers = st.lists(st.integers(0, 3), min_size=count, max_size=count)
    groups = st.lists(st.integers(0, 11), min_size=count, max_size=count)
    return np.array(draw(numbers)), np.array(draw(groups), dtype=np.uint64)


@given(images(), st.integers(2, 5))
def test_no_group_is_in_two_folds_nor_on_both_sides_of_the_validation_split_within_a_fold(
    given: tuple[np.ndarray, np.ndarray], num_folds: int
) -> None:
    strata, groups = given
    folds = fold_of_each(strata, num_folds, draw_order([str(one) for one in range(len(strata))], 0, groups), groups)
    assert all(len(set(folds[groups == group])) == 1 for group in np.unique(groups))
    if len(np.unique(groups)) >= num_folds:
        assert set(folds) == set(range(num_folds))
    for fold in set(folds):
        inside, labels = folds != fold, torch.from_numpy(strata)
        if len(np.unique(groups[inside])) < 2 * 4:
            continue
        names = torch.from_numpy(groups.astype(np.int64))[inside]
        source = ArraySource(torch.ones(int(inside.sum()), 2), labels[inside], 4, groups=names)
        kept, held_out = split_rows(source, 0.3, 0)
        assert not set(names[kept].tolist()) & set(names[held_out].tolist())


@given(images(), st.booleans(), st.integers(0, 3))
def test_subsets_of_one_draw_are_nested_and_have_what_is_asked_of_each_class(
    given: tuple[np.ndarray, np.ndarray], is_grouped: bool, seed: int
) -> None:
    strata, groups = given
    order = draw_order([str(one) for one in range(len(strata))], seed, groups if is_grouped else None)
    assert sorted(order.tolist()) == list(range(len(strata)))
    counts, before = np.bincount(strata, minlength=4), set[int]()
    for shots in (1, 2, 5, 60):
        chosen = first_of_each(strata, order, np.minimum(counts, shots))
        assert np.bincount(strata[chosen], minlength=4).tolist() == np.minimum(counts, shots).tolist()
        assert before <= set(chosen.tolist())
        before = set(chosen.tolist())


@given(images(), st.integers(2, 5))
def test_folds_have_equal_sizes_and_equal_shares_of_each_class(
    given: tuple[np.ndarray, np.ndarray], num_folds: int
) -> None:
    strata, _ = given
    folds = fold_of_each(strata, num_folds, draw_order([str(one) for one in range(len(strata))], 0))
    for members in (folds, *(folds[strata == one] for one in np.unique(strata))):
        counts = np.bincount(members, minlength=num_folds)
        assert counts.max() - counts.min() <= 1


def test_groups_are_shared_out_to_folds_of_about_equal_size() -> None:
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 100, 2000).astype(np.uint64)
    strata = (groups % 4).astype(np.int64)
    folds = fold_of_each(strata, 5, draw_order([str(one) for one in range(2000)], 0, groups), groups)
    assert np.bincount(folds).tolist() == pytest.approx([400] * 5, rel=0.06)
    assert np.bincount(folds[strata == 1]).tolist() == pytest.approx([(strata == 1).sum() / 5] * 5, rel=0.15)


def test_images_to_choose_by_are_held_out_alone_and_never_trained_on() -> None:
    marks = torch.tensor([False, True, False, True, False])
    labels = torch.tensor([0, 1, 1, 0, 0])
    source = ArraySource(torch.ones(5, 2), labels, 2, is_validation=marks)
    kept, held_out = split_rows(source, 0.5, 0)
    assert (kept.tolist(), held_out.tolist()) == ([0, 2, 4], [1, 3])
    assert training_rows(source).tolist() == [0, 2, 4]
