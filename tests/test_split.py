"""What is held out: the same share of every class, whole images, judged by their centre view."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from messages import raises

from layerbank.probes import ArraySource, DataError, Head, SettingError, TrainingProtocol, run_sweep
from layerbank.probes.data.split import centre_rows, num_moved, split_rows, split_stratified
from layerbank.probes.seeds import make_generator


@hypothesis_settings(deadline=None)
@given(counts=st.lists(st.integers(0, 30), min_size=1, max_size=6), fraction=st.floats(0.05, 0.95))
def test_the_split_holds_out_the_same_share_of_every_class(counts: list[int], fraction: float) -> None:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    if max(counts) < 2:
        with pytest.raises(DataError):
            split_stratified(labels, fraction, seed=0)
        return
    kept, held_out = split_stratified(labels, fraction, seed=0)
    assert torch.equal(torch.cat([kept, held_out]).sort().values, torch.arange(len(labels)))
    for label, count in enumerate(counts):
        share = int((labels[held_out] == label).sum())
        assert abs(share - fraction * count) <= 1
        assert share < count or count == 0
        assert share > 0 or count < 2


@hypothesis_settings(deadline=None)
@given(
    labels=st.lists(st.integers(0, 9), min_size=2, max_size=80),
    fraction=st.floats(0.05, 0.95),
    seed=st.integers(0, 2**32),
)
def test_the_images_that_are_held_out_are_the_first_of_each_class_in_one_shuffled_order(
    labels: list[int], fraction: float, seed: int
) -> None:
    of = torch.tensor(labels)
    shuffled = torch.randperm(len(of), generator=make_generator(seed, "validation split"))
    wanted: list[int] = []
    for label in set(labels):
        rows = shuffled[of[shuffled] == label].tolist()
        wanted += rows[: min(max(1, round(fraction * len(rows))), len(rows) - 1)]
    if not wanted:
        with pytest.raises(DataError):
            split_stratified(of, fraction, seed)
        return
    assert split_stratified(of, fraction, seed)[1].tolist() == sorted(wanted)


def test_the_split_depends_on_the_seed() -> None:
    labels = torch.arange(100) % 4
    one, again, other = (split_stratified(labels, 0.2, seed)[1] for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@hypothesis_settings(deadline=None)
@given(
    labels=st.lists(st.integers(0, 2), min_size=2, max_size=40),
    num_views=st.integers(0, 3),
    left_out=st.sets(st.integers(0, 39), max_size=5),
    seed=st.integers(0, 3),
)
def test_an_image_is_held_out_with_all_its_views_and_judged_by_its_centre(
    labels: list[int], num_views: int, left_out: set[int], seed: int
) -> None:
    there = [image for image in range(len(labels)) if image not in left_out]  # skipped images lack all their rows
    images = torch.tensor(there, dtype=torch.int64).repeat_interleave(num_views + 1)
    per_image = torch.tensor([labels[image] for image in there], dtype=torch.int64)
    tokens = torch.zeros(len(images), 4)
    source = ArraySource(tokens, per_image.repeat_interleave(num_views + 1), 3, images=images)
    if len(per_image) == 0 or int(per_image.bincount().max()) < 2:
        with pytest.raises(DataError):
            split_rows(source, 0.3, seed)
        return
    kept, held_out = split_rows(source, 0.3, seed)
    assert set(images[kept].tolist()).isdisjoint(images[held_out].tolist())
    assert len(kept) + (num_views + 1) * len(held_out) == len(images)
    assert set(held_out.tolist()) <= set(centre_rows(images).tolist())
    without = split_stratified(per_image, 0.3, seed)[1]
    assert images[held_out].tolist() == [there[row] for row in without.tolist()]  # the same images as without views


@hypothesis_settings(deadline=None)
@given(
    labels=st.lists(st.integers(0, 3), min_size=2, max_size=80),
    fraction=st.floats(0.05, 0.95),
    num_groups=st.integers(1, 90),
    seed=st.integers(0, 5),
)
def test_no_group_is_on_both_sides_and_no_class_loses_all_its_training_images(
    labels: list[int], fraction: float, num_groups: int, seed: int
) -> None:
    of = torch.tensor(labels)
    groups = torch.randint(num_groups, (len(of),), generator=torch.Generator().manual_seed(seed)) * 7 - 3
    try:
        kept, held_out = split_stratified(of, fraction, seed, groups)
    except DataError:
        several = [label for label in set(labels) if len(groups[of == label].unique()) > 1]
        assert not several or len(groups.unique()) < len(groups)  # images of two classes in a group
        return
    assert torch.equal(torch.cat([kept, held_out]).sort().values, torch.arange(len(of)))
    assert set(groups[kept].tolist()).isdisjoint(groups[held_out].tolist())
    assert set(of[kept].tolist()) == set(labels)
    if len(groups.unique()) == len(groups):
        assert torch.equal(held_out, split_stratified(of, fraction, seed)[1])


@hypothesis_settings(deadline=None)
@given(
    sizes=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=20), min_size=1, max_size=4),
    fraction=st.floats(0.05, 0.95),
)
def test_groups_of_one_class_keep_the_share_of_every_class_to_the_size_of_a_group(
    sizes: list[list[int]], fraction: float
) -> None:
    each = torch.tensor([size for of_class in sizes for size in of_class])
    groups = torch.arange(len(each)).repeat_interleave(each)
    num_groups = torch.tensor([len(of_class) for of_class in sizes])
    labels = torch.arange(len(sizes)).repeat_interleave(num_groups).repeat_interleave(each)
    if max(map(len, sizes)) < 2:
        with pytest.raises(DataError):
            split_stratified(labels, fraction, 0, groups)
        return
    _, held_out = split_stratified(labels, fraction, 0, groups)
    for label, of_class in enumerate(sizes):
        share = int((labels[held_out] == label).sum())
        aim = min(max(1, round(fraction * sum(of_class))), sum(of_class) - 1)
        assert share == 0 if len(of_class) == 1 else 0 < share < sum(of_class)
        assert share <= max(aim, min(of_class))
        assert len(of_class) == 1 or share > aim - max(of_class)


def test_copies_are_held_out_together_with_all_their_views_and_the_moved_ones_are_counted() -> None:
    images = torch.arange(40).repeat_interleave(3)
    of_image = torch.arange(40)
    of_image[20:] = of_image[:20]  # each image of the second half is a copy
    labels, groups = images % 2, of_image[images]
    source = ArraySource(torch.zeros(120, 4), labels, 2, images=images, groups=groups)
    kept, held_out = split_rows(source, 0.2, 0)
    assert set(groups[kept].tolist()).isdisjoint(groups[held_out].tolist())
    assert (len(kept), len(held_out)) == (96, 8)
    plain = split_stratified(labels[::3], 0.2, 0)[1].tolist()
    moved = set(images[held_out].tolist()) ^ set(plain)
    assert num_moved(labels[::3], 0.2, 0, of_image) == len(moved) > 0
    assert num_moved(labels[::3], 0.2, 0, torch.arange(40)) == 0


@pytest.mark.parametrize("fraction", [0.0, 1.0, 1.5, -0.2, float("nan")])
def test_a_fraction_that_is_none_is_refused(fraction: float) -> None:
    with raises("probes.wrong_fraction", SettingError, fraction=fraction):
        split_rows(ArraySource(torch.zeros(8, 4), torch.arange(8) % 2, 2), fraction, 0)


def test_groups_that_are_not_one_a_row_are_refused() -> None:
    for groups, got in ((torch.zeros(3).long(), "torch.int64 [3]"), (torch.zeros(4), "torch.float32 [4]")):
        with raises("probes.groups_do_not_match", DataError, num_rows=4, got=got):
            ArraySource(torch.zeros(4, 2), torch.zeros(4).long(), 1, groups=groups)
    images, groups = torch.tensor([0, 0, 1, 1]), torch.tensor([5, 6, 7, 7])
    with raises("probes.groups_do_not_match", DataError, got="an image in several groups"):
        ArraySource(torch.zeros(4, 2), torch.zeros(4).long(), 1, images=images, groups=groups)


def test_a_sweep_on_views_trains_on_all_rows_and_never_on_a_view_of_what_it_is_chosen_by() -> None:
    class Watched(ArraySource):
        taken: list[int]

        def take(self, rows: torch.Tensor) -> torch.Tensor:
            self.taken += rows.tolist()
            return super().take(rows)

    generator = torch.Generator().manual_seed(0)
    images = torch.arange(60).repeat_interleave(3)
    tokens = torch.nn.functional.normalize(torch.randn(180, 8, generator=generator), dim=1)
    train = Watched(tokens, (images % 3).clone(), 3, images=images)
    train.taken = []
    test = ArraySource(tokens[::3].clone(), images[::3] % 3, 3)
    protocol = TrainingProtocol(
        lrs=(1e-2,), weight_decays=(1e-4,), dropouts=(0.0,), epochs=1, min_steps=5, batch_size=48
    )
    phases: list[tuple[str, int]] = []
    result = run_sweep(
        Head(kind="linear"),
        train,
        lambda: test,
        protocol,
        on_event=lambda event: phases.append((event.phase, len(train.taken))),
    )
    kept, held_out = split_rows(train, 0.2, 0)
    assert (len(kept), len(held_out)) == (144, 12)
    assert result.selection is not None
    assert result.refit is not None
    assert (result.selection.num_samples, result.refit.num_samples) == (144, 180)
    selected = max(taken for phase, taken in phases if phase == "select")
    assert set(train.taken[:selected]) == set(kept.tolist())
    validated = train.taken[selected : max(taken for phase, taken in phases if phase == "validate")]
    assert validated == held_out.tolist()


def test_settings_are_not_chosen_by_copies_of_training_images() -> None:
    labels, groups = torch.arange(8) % 2, torch.tensor([0, 1, 2, 3, 0, 5, 6, 1])
    marks = torch.arange(8) >= 4
    source = ArraySource(torch.zeros(8, 4), labels, 2, groups=groups, is_validation=marks)
    kept, held_out = split_rows(source, 0.2, 0)
    assert (kept.tolist(), held_out.tolist()) == ([0, 1, 2, 3], [5, 6])
    copies = ArraySource(torch.zeros(8, 4), labels, 2, groups=torch.arange(8) % 4, is_validation=marks)
    with raises("probes.nothing_to_choose_by", DataError, num_images=4):
        split_rows(copies, 0.2, 0)
