"""The bootstrap draws what a naive one draws, and its intervals are scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from messages import raises
from scipy import stats
from sklearn.metrics import balanced_accuracy_score

from layerbank import RequestError
from layerbank.probing.bootstrap import (
    NUM_RESAMPLES,
    Interval,
    class_mean,
    difference_interval,
    intervals,
    resampled_means,
    seed_interval,
)


def example(num_images: int = 300) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    labels = generator.choice(4, num_images, p=[0.6, 0.2, 0.15, 0.05])
    easy = generator.random(num_images)
    hits = np.stack([easy < 0.7, easy + generator.normal(0, 0.1, num_images) < 0.6, easy < 0.2])
    return hits, labels


def accuracy_interval(hits: np.ndarray, labels: np.ndarray, num_resamples: int = 2000, seed: int = 0) -> Interval:
    (found,) = intervals(hits[None].astype(float), labels, num_resamples=num_resamples, seed=seed)
    return found


def test_draws_have_the_distribution_of_resampling_images_within_classes() -> None:
    hits, labels = example()
    ours = resampled_means(hits.astype(float), labels, num_resamples=8000, seed=1)
    generator = np.random.default_rng(2)
    naive = []
    for _ in range(4000):
        rows = np.concatenate([generator.choice(np.flatnonzero(labels == c), (labels == c).sum()) for c in range(4)])
        naive.append([np.mean([one[rows][labels[rows] == c].mean() for c in range(4)]) for one in hits])
    np.testing.assert_allclose(ours.mean(0), np.mean(naive, 0), atol=2e-3)
    np.testing.assert_allclose(np.cov(ours.T), np.cov(np.array(naive).T), rtol=0.08, atol=2e-5)  # the pairing is kept


def test_with_one_class_the_interval_is_scipys() -> None:
    hits, labels = example()[0][0], np.zeros(300, dtype=np.int64)
    ours = accuracy_interval(hits, labels, num_resamples=9999)
    theirs = stats.bootstrap((hits.astype(float),), np.mean, method="percentile", rng=np.random.default_rng(3))
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.006)


def test_the_interval_of_a_difference_is_scipys_paired_one() -> None:
    hits, labels = example()[0], np.zeros(300, dtype=np.int64)
    difference = hits[0].astype(float) - hits[1]
    (ours,) = intervals(difference[None], labels, num_resamples=9999)
    theirs = stats.bootstrap(
        (hits[0].astype(float), hits[1].astype(float)),
        lambda x, y, axis: (x - y).mean(axis),
        paired=True,
        method="percentile",
        rng=np.random.default_rng(3),
    )
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.006)


def test_the_value_is_the_balanced_accuracy_itself_and_lies_within() -> None:
    hits, labels = example()
    predicted = np.where(hits[0], labels, (labels + 1) % 4)
    interval = accuracy_interval(hits[0], labels)
    assert interval.value == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert interval.low < interval.value < interval.high
    assert not interval.holds_zero


def test_many_probes_at_once_have_the_intervals_of_each_alone() -> None:
    hits, labels = example()
    values = np.stack([*hits.astype(float), hits[0].astype(float) - hits[1]])
    together = intervals(values, labels)
    alone = [accuracy_interval(one, labels) for one in hits]
    alone.append(difference_interval(hits[0], hits[1], labels))
    for one, other in zip(together, alone, strict=True):
        assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high), abs=1e-12)


def test_the_interval_over_several_classes_is_scipys() -> None:
    """Every class resampled on its own, as scipy does with several samples; ends of 9,999 resamples vary by 0.002."""
    hits, labels = example()
    of_class = [hits[0][labels == label].astype(float) for label in range(4)]
    theirs = stats.bootstrap(
        of_class,
        lambda *classes, axis: np.mean([one.mean(axis) for one in classes], axis=0),
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(3),
    ).confidence_interval
    ours = accuracy_interval(hits[0], labels, num_resamples=9999)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.008)


def test_classes_count_alike_whatever_their_numbers() -> None:
    hits, labels = example()
    assert class_mean(hits[0], labels) == pytest.approx(np.mean([hits[0][labels == one].mean() for one in range(4)]))
    assert class_mean(np.array([True, False]), np.array([7, 9])) == 0.5


def test_a_probe_does_not_differ_from_itself() -> None:
    hits, labels = example()
    interval = difference_interval(hits[0], hits[0], labels)
    assert (interval.value, interval.low, interval.high, interval.holds_zero) == (0, 0, 0, True)


def test_a_perfect_probe_has_no_spread_over_images() -> None:
    interval = accuracy_interval(np.ones(20, dtype=bool), np.arange(20) % 3)
    assert (interval.low, interval.high) == pytest.approx((1, 1))


def test_the_same_seed_gives_the_same_draws() -> None:
    hits, labels = example()
    one, same, other = (resampled_means(hits.astype(float), labels, seed=seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_without_images_there_is_nothing_to_resample() -> None:
    with raises("probing.no_images_to_resample", RequestError):
        intervals(np.zeros((1, 0)), np.zeros(0, dtype=np.int64))


def test_seeds_are_resampled_as_scipy_does_and_diverged_ones_left_out() -> None:
    values = np.array([71.0, 72.5, np.nan, 70.2, 73.1])
    interval = seed_interval(values)
    finite = values[np.isfinite(values)]
    theirs = stats.bootstrap(
        (finite,), np.mean, n_resamples=NUM_RESAMPLES, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert (interval.value, interval.low, interval.high) == pytest.approx((finite.mean(), theirs.low, theirs.high))


@pytest.mark.parametrize(("values", "value"), [([70.0], 70.0), ([70.0, np.nan], 70.0), ([np.nan], np.nan)])
def test_one_seed_has_a_value_and_no_interval(values: list[float], value: float) -> None:
    interval = seed_interval(np.array(values))
    assert interval.value == pytest.approx(value, nan_ok=True)
    assert np.isnan([interval.low, interval.high]).all()
    assert interval.holds_zero
