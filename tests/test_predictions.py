"""Accuracies of saved predictions are scikit-learn's and those of the trainer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from messages import raises
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, top_k_accuracy_score

from layerbank import RequestError, WorkError
from layerbank.data.duplicates import duplicates_of, find_duplicates
from layerbank.data.image_set import ImageSet
from layerbank.data.splits.split_record import SplitRecord
from layerbank.probes.metrics import balanced_accuracy, top_k_accuracy
from layerbank.statistics.predictions import Predictions, accuracies, read_predictions, require_same_images


def predictions(num_samples: int = 60, num_classes: int = 8, seed: int = 0) -> Predictions:
    generator = np.random.default_rng(seed)
    return Predictions(
        sample_ids=np.array([f"image {row}" for row in range(num_samples)]),
        labels=generator.integers(num_classes, size=num_samples),
        logits=generator.normal(size=(num_samples, num_classes)).astype(np.float32),
    )


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 50), st.integers(2, 9), st.integers(0, 1000))
def test_they_are_those_of_the_trainer(num_samples: int, num_classes: int, seed: int) -> None:
    made = predictions(num_samples, num_classes, seed)
    logits, labels = torch.from_numpy(made.logits), torch.from_numpy(made.labels)
    found = accuracies(made)
    assert found.balanced == pytest.approx(balanced_accuracy(logits.argmax(1), labels, num_classes).item())
    assert found.top1 == pytest.approx(top_k_accuracy(logits, labels, 1).item())
    assert found.top5 == pytest.approx(top_k_accuracy(logits, labels, 5).item())


def test_they_are_those_of_scikit_learn() -> None:
    made = predictions()
    found = accuracies(made)
    assert found.balanced == pytest.approx(balanced_accuracy_score(made.labels, made.predicted))
    assert found.top5 == pytest.approx(top_k_accuracy_score(made.labels, made.logits, k=5, labels=range(8)))


def test_macro_f1_and_classes_are_those_of_the_confusion_matrix() -> None:
    made = predictions(200)
    confusion = confusion_matrix(made.labels, made.predicted, labels=range(8))
    hits = confusion.diagonal()
    found = accuracies(made)
    assert found.of_class == pytest.approx(hits / confusion.sum(1))
    assert found.macro_f1 == pytest.approx(np.mean(2 * hits / (confusion.sum(0) + confusion.sum(1))))


def test_a_class_that_does_not_occur_counts_nowhere_and_is_nan() -> None:
    made = Predictions(
        sample_ids=np.array(["a", "b"]), labels=np.array([0, 0]), logits=np.array([[1, 0], [0, 1]], dtype=np.float32)
    )
    found = accuracies(made)
    assert (found.balanced, found.top1, found.top5) == (0.5, 0.5, 1.0)
    assert found.macro_f1 == pytest.approx(2 / 3)
    assert np.isnan(found.of_class).tolist() == [False, True]


def test_without_images_there_is_no_accuracy() -> None:
    with raises("statistics.no_images", RequestError):
        accuracies(predictions(0))


def test_saved_predictions_come_back(tmp_path: Path) -> None:
    made = predictions()
    np.savez(tmp_path / "test.npz", sample_ids=made.sample_ids, labels=made.labels, logits=made.logits)
    read = read_predictions(tmp_path)
    require_same_images(made, read)
    np.testing.assert_array_equal(read.logits, made.logits)


@pytest.mark.parametrize("content", [None, b"", b"not a zip", b"PK\x03\x04 cut off"])
def test_missing_or_damaged_predictions_are_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "test.npz").write_bytes(content)
    with raises("statistics.bad_predictions", WorkError, path=tmp_path / "test.npz"):
        read_predictions(tmp_path)


def test_an_archive_without_logits_is_damaged(tmp_path: Path) -> None:
    np.savez(tmp_path / "test.npz", sample_ids=np.array(["a"]), labels=np.array([0]))
    with raises("statistics.bad_predictions", WorkError) as refused:
        read_predictions(tmp_path)
    assert "logits" in refused.error.got


def test_other_images_are_not_paired() -> None:
    one = predictions()
    other = Predictions(sample_ids=one.sample_ids[::-1], labels=one.labels, logits=one.logits)
    with raises("statistics.other_images", RequestError, row=0, sample_id="image 0", other_id="image 59"):
        require_same_images(one, other)
    with raises("statistics.other_number_of_images", RequestError, num_images=60, got=59):
        require_same_images(one, predictions(59))


def hashes(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.uint64)


def test_test_images_that_are_training_images_are_found_by_their_bytes() -> None:
    found = find_duplicates(
        hashes(5, 2**64 - 1, 7, 7), ["a", "b", "c", "d"], np.array([0, 1, 2, 3]),
        hashes(7, 1, 2**64 - 1), ["x", "y", "z"], np.array([2, 0, 0]),
    )  # fmt: skip
    assert found.pairs == (("x", "c"), ("z", "b"))
    assert found.num_relabelled == 1
    assert found.warning == "2 of 3 test images (66.7 %) are also training images, 1 with another label"


def test_splits_without_common_images_give_no_warning() -> None:
    found = find_duplicates(hashes(1), ["a"], np.array([0]), hashes(2), ["b"], np.array([0]))
    assert (found.pairs, found.warning) == ((), "")


def record(split: str, *values: int) -> SplitRecord:
    images = ImageSet(
        hashes=hashes(*values), rule1_hashes=None, is_known=np.ones(len(values), dtype=np.bool_), keeps_order=False
    )
    return SplitRecord(
        dataset="photos",
        split=split,
        ids=[f"{split} {row}" for row in range(len(values))],
        labels=np.zeros(len(values), dtype=np.int64),
        class_names=["a"],
        images=images,
    )


def test_splits_are_compared_image_by_image_without_tokens_and_an_unreadable_image_equals_none() -> None:
    """A hash of 0 is of an image that could not be read."""
    found = duplicates_of(record("train", 5, 0, 7, 5), record("test", 0, 5, 8, 7, 7))
    assert found.num_test == 4
    assert found.pairs == (("test 1", "train 0"), ("test 3", "train 2"), ("test 4", "train 2"))
    assert duplicates_of(record("train", 0), record("test", 0, 1)).pairs == ()
