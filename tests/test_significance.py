"""Tests of significance equal scipy's and naive ones, also where there is little or nothing to test."""

from __future__ import annotations

from itertools import product
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from layerbank.statistics.scores import Case, Score, Table, table_of
from layerbank.statistics.significance import adjust, compare_with, mcnemar


def table(**columns: list[float]) -> Table:
    return table_of(
        Score(model="vit", dataset=f"data {line}", probe=probe, percent=value)
        for probe, values in columns.items()
        for line, value in enumerate(values)
    )


def naive_wilcoxon(differences: list[float]) -> float:
    """P(W+ >= observed) over all 2^n signs: the definition."""
    ranks = stats.rankdata(np.abs(differences))
    observed = ranks[np.array(differences) > 0].sum()
    sums = [np.dot(signs, ranks) for signs in product((0, 1), repeat=len(ranks))]
    return float(np.mean([one >= observed - 1e-9 for one in sums]))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(-40, 60).filter(bool), min_size=1, max_size=9, unique_by=abs))
def test_wilcoxon_is_its_definition_for_few_pairs_without_ties(differences: list[int]) -> None:
    values = [float(one) for one in differences]
    [found] = compare_with(table(ref=[0.0] * len(values), alf=values), "ref")
    assert found.p_value == pytest.approx(naive_wilcoxon(values))


@pytest.mark.parametrize("num_pairs", [12, 40, 70])
def test_wilcoxon_is_scipys_with_random_data(num_pairs: int) -> None:
    generator = np.random.default_rng(num_pairs)
    one, two = generator.normal(50, 5, num_pairs), generator.normal(51, 5, num_pairs)
    [found] = compare_with(table(ref=one.tolist(), alf=two.tolist()), "ref")
    assert found.p_value == pytest.approx(stats.wilcoxon(two, one, alternative="greater").pvalue)
    assert (found.num_pairs, found.num_ties, found.median) == (num_pairs, 0, pytest.approx(np.median(two - one)))


def test_equal_differences_share_their_ranks() -> None:
    [found] = compare_with(table(ref=[0.0] * 6, alf=[1, 1, 1, 1, -1, 2]), "ref")
    assert found.p_value == pytest.approx(naive_wilcoxon([1, 1, 1, 1, -1, 2]))


def test_pairs_without_a_difference_are_counted_and_left_out() -> None:
    [found] = compare_with(table(ref=[1.0] * 8, alf=[1, 1, 2, 3, 4, 5, 6, 0.5]), "ref")
    assert (found.num_pairs, found.num_ties) == (8, 2)
    assert found.p_value == pytest.approx(naive_wilcoxon([1, 2, 3, 4, 5, -0.5]))


def test_where_nothing_differs_there_is_no_evidence() -> None:
    [found] = compare_with(table(ref=[1.0, 2.0], alf=[1.0, 2.0]), "ref")
    assert (found.p_value, found.q_value, found.num_ties, found.significant) == (1.0, 1.0, 2, False)


def test_diverged_pairs_are_left_out_and_without_pairs_p_is_nan() -> None:
    nan = float("nan")
    one, two = compare_with(table(ref=[1.0] * 3, one=[2, nan, 3], two=[nan] * 3), "ref")
    assert (one.num_pairs, two.num_pairs) == (2, 0)
    assert np.isnan([two.p_value, two.q_value, two.median]).all()
    assert one.q_value == one.p_value  # the probe that cannot be tested is no comparison
    assert not two.significant


def test_four_pairs_can_never_be_significant_and_five_can() -> None:
    [four] = compare_with(table(ref=[0.0] * 4, alf=[1, 2, 3, 4]), "ref")
    [five] = compare_with(table(ref=[0.0] * 5, alf=[1, 2, 3, 4, 5]), "ref")
    assert (four.decidable, five.decidable) == (False, True)
    assert (four.p_value, five.p_value) == (1 / 16, 1 / 32)


def test_the_alternative_can_be_turned_round() -> None:
    worse = table(ref=[0.0] * 5, alf=[-1, -2, -3, -4, -5])
    assert compare_with(worse, "ref", alternative="less")[0].p_value == 1 / 32
    assert compare_with(worse, "ref", alternative="two-sided")[0].p_value == 1 / 16


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_fdr_is_that_of_benjamini_and_hochberg(p_values: list[float]) -> None:
    """q_i = min over p_j >= p_i of p_j m / rank_j."""
    ordered = sorted(p_values)
    m = len(ordered)
    naive = [min([1.0, *(ordered[j] * m / (j + 1) for j in range(m) if ordered[j] >= p)]) for p in p_values]
    assert adjust(p_values) == pytest.approx(naive)


def test_fdr_of_nothing_is_nothing() -> None:
    assert adjust([]) == []
    assert np.isnan(adjust([float("nan")])).all()


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemar_exact_is_the_binomial_sum(pairs: list[tuple[bool, bool]]) -> None:
    first, second = np.array(pairs).T
    found = mcnemar(first, second)
    b, c = sum(x and not y for x, y in pairs), sum(y and not x for x, y in pairs)
    assert (found.only_first, found.only_second) == (b, c)
    n = b + c
    assert found.exact == pytest.approx(min(1.0, 2 * sum(comb(n, k) for k in range(min(b, c) + 1)) / 2**n))


@pytest.mark.parametrize(("b", "c"), [(121, 59), (59, 121), (700, 700), (0, 9), (3000, 2500), (1, 4000)])
def test_mcnemar_exact_is_scipys_binomial_test(b: int, c: int) -> None:
    first, second = np.array([True] * b + [False] * c), np.array([False] * b + [True] * c)
    assert mcnemar(first, second).exact == pytest.approx(stats.binomtest(b, b + c).pvalue, rel=1e-9)


def test_mcnemar_corrected_is_the_published_example() -> None:
    """Discordant pairs 121 and 59: chi^2 = (62 - 1)^2 / 180 = 20.67, p = 5.45e-6."""
    first = np.array([True] * 121 + [False] * 59 + [True] * 200)
    second = np.array([False] * 121 + [True] * 59 + [True] * 200)
    assert mcnemar(first, second).corrected == pytest.approx(stats.chi2.sf(61**2 / 180, 1))
    assert mcnemar(first, second).corrected == pytest.approx(5.45e-6, rel=0.01)


def test_mcnemar_of_two_equal_probes_is_no_evidence() -> None:
    hits = np.array([True, False])
    assert (mcnemar(hits, hits).exact, mcnemar(hits, hits).corrected) == (1.0, 1.0)


def test_draws_and_folds_of_a_data_set_are_no_data_sets_of_their_own() -> None:
    cases = tuple(Case("vit", f"cells (5 folds, no. {number})", 0) for number in range(1, 8))
    values = np.array([[50.0, 60.0 + number] for number in range(7)])
    table = Table(cases=cases, probes=("linear-cls", "alf"), values=values)
    (found,) = compare_with(table, "linear-cls")
    assert (found.num_pairs, found.median, found.decidable) == (1, 13.0, False)
