"""Accuracies equal scikit-learn's, for one probe and for many at once."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from layerbank.probes.metrics import balanced_accuracy, top_k_accuracy


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
