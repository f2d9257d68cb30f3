"""Accuracies equal scikit-learn's, for one probe and for many at once."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    cohen_kappa_score,
    f1_score,
    r2_score,
    roc_auc_score,
    top_k_accuracy_score,
)
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import mean_absolute_error as sklearn_mae
from sklearn.metrics import root_mean_squared_error as sklearn_rmse

from layerbank.probes.metrics import (
    balanced_accuracy,
    class_macro_f1,
    cohen_kappa,
    label_macro_f1,
    log_loss,
    macro_auroc,
    mean_absolute_error,
    mean_average_precision,
    pearson,
    r2,
    root_mean_squared_error,
    spearman,
    top_k_accuracy,
)


@settings(deadline=None)
@given(num_samples=st.integers(1, 40), num_classes=st.integers(1, 8), seed=st.integers(0, 10_000))
def test_balanced_accuracy_is_that_of_scikit_learn(num_samples: int, num_classes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (num_samples,), generator=generator)
    predictions = torch.randint(num_classes, (3, num_samples), generator=generator)
    ours = balanced_accuracy(predictions, labels, num_classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class that is predicted but does not occur: we agree on the number
        theirs = [balanced_accuracy_score(labels, row) for row in predictions]
    assert ours.tolist() == pytest.approx(theirs)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_accuracy_is_that_of_scikit_learn(k: int) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(7, (60,), generator=generator)
    logits = torch.randn(4, 60, 7, generator=generator)
    theirs = [top_k_accuracy_score(labels, rows, k=k, labels=range(7)) for rows in logits.numpy()]
    assert top_k_accuracy(logits, labels, k).tolist() == pytest.approx(theirs)


def test_top_five_of_three_classes_is_always_right() -> None:
    assert top_k_accuracy(torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), 5).item() == 1


def test_without_samples_there_is_no_accuracy() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    assert balanced_accuracy(nothing, nothing, 3).isnan()
    assert top_k_accuracy(torch.zeros(0, 3), nothing, 1).isnan()


SIZES = {"num_samples": st.integers(2, 40), "num_classes": st.integers(2, 6), "seed": st.integers(0, 10_000)}


@settings(deadline=None)
@given(**SIZES)
def test_metrics_of_classes_are_those_of_scikit_learn(num_samples: int, num_classes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (num_samples,), generator=generator)
    predictions = torch.randint(num_classes, (3, num_samples), generator=generator)
    logits = torch.randn(num_samples, num_classes, generator=generator)
    occurring = labels.unique().tolist()
    f1 = [f1_score(labels, row, labels=occurring, average="macro", zero_division=0) for row in predictions]
    assert class_macro_f1(predictions, labels, num_classes).tolist() == pytest.approx(f1)
    for quadratic in (False, True):
        ours = cohen_kappa(predictions, labels, num_classes, quadratic=quadratic)
        for row, found in zip(predictions, ours.tolist(), strict=True):
            if len(torch.cat([labels, row]).unique()) > 1:  # scikit-learn has no number for a single class
                weights = "quadratic" if quadratic else None
                theirs = cohen_kappa_score(labels, row, labels=range(num_classes), weights=weights)
                assert found == pytest.approx(theirs)
    theirs = sklearn_log_loss(labels, logits.double().softmax(1), labels=range(num_classes))
    assert log_loss(logits, labels).item() == pytest.approx(theirs)


@settings(deadline=None)
@given(**SIZES, num_levels=st.integers(1, 50), share_known=st.floats(0, 1))
def test_metrics_of_scores_are_those_of_scikit_learn_with_ties_and_unknown_labels(
    num_samples: int, num_classes: int, seed: int, num_levels: int, share_known: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(num_levels, (num_samples, num_classes), generator=generator).double()
    positive = torch.rand(num_samples, num_classes, generator=generator) < 0.4
    known = torch.rand(num_samples, num_classes, generator=generator) <= share_known
    areas, precisions, f1 = [], [], []
    for column in range(num_classes):
        rows = known[:, column]
        truth, given = positive[rows, column].numpy(), scores[rows, column].numpy()
        if truth.any():
            precisions.append(average_precision_score(truth, given))
            f1.append(f1_score(truth, given > num_levels / 2, zero_division=0))
            if not truth.all():
                areas.append(roc_auc_score(truth, given))
    for ours, theirs in (
        (macro_auroc(scores, positive, known), areas),
        (mean_average_precision(scores, positive, known), precisions),
        (label_macro_f1(scores > num_levels / 2, positive, known), f1),
    ):
        assert ours.isnan() if not theirs else ours.item() == pytest.approx(sum(theirs) / len(theirs))


@settings(deadline=None)
@given(num_samples=st.integers(2, 40), num_levels=st.integers(1, 30), seed=st.integers(0, 10_000))
def test_metrics_of_numbers_are_those_of_scikit_learn_and_scipy(num_samples: int, num_levels: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(num_levels, (num_samples, 3), generator=generator).double() / 7
    predictions = torch.randint(num_levels, (2, num_samples, 3), generator=generator).double() / 3
    theirs = {
        r2: [r2_score(targets, one) for one in predictions],
        mean_absolute_error: [sklearn_mae(targets, one) for one in predictions],
        root_mean_squared_error: [sklearn_rmse(targets, one) for one in predictions],
    }
    for correlation, scipys in ((pearson, pearsonr), (spearman, spearmanr)):
        columns = [[(one[:, k].numpy(), targets[:, k].numpy()) for k in range(3)] for one in predictions]
        theirs[correlation] = [
            sum(scipys(*pair).statistic if all(len(set(x.tolist())) > 1 for x in pair) else 0 for pair in one) / 3
            for one in columns
        ]
    for metric, expected in theirs.items():
        assert metric(predictions, targets).tolist() == pytest.approx(expected, abs=1e-6)
        assert metric(predictions[0], targets).item() == pytest.approx(expected[0], abs=1e-6)


def test_a_prediction_of_equal_targets_and_a_kappa_of_one_class_have_the_numbers_that_are_documented() -> None:
    ones = torch.ones(4, 1)
    assert (r2(ones, ones).item(), r2(ones + 1, ones).item()) == (1, 0)
    assert (pearson(ones / 3, ones).item(), spearman(ones, torch.rand(4, 1)).item()) == (0, 0)
    zeros = torch.zeros(4, dtype=torch.int64)
    assert cohen_kappa(zeros, zeros, 3).item() == 0
