"""CKA in one pass over the features equals a naive one over full matrices, and reads stores through the map."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from messages import raises
from small_stores import write_small_store

from layerbank.cache import MissingArrayError
from layerbank.statistics import similarity
from layerbank.statistics.similarity import Read, levels_of, linear_similarity, rbf_similarity


def naive_cka(grams: list[np.ndarray]) -> np.ndarray:
    """The U-centred matrices of Szekely and Rizzo 2014, which give the same HSIC by another formula."""

    def centred(gram: np.ndarray) -> np.ndarray:
        n = len(gram)
        gram = gram - np.diag(np.diag(gram))
        rows = gram.sum(0)
        gram = gram - rows[:, None] / (n - 2) - rows[None] / (n - 2) + gram.sum() / ((n - 1) * (n - 2))
        return gram - np.diag(np.diag(gram))

    hsic = np.array([[(centred(one) * centred(two)).sum() for two in grams] for one in grams])
    return hsic / np.sqrt(np.outer(hsic.diagonal(), hsic.diagonal()))


def unit(tokens: np.ndarray) -> np.ndarray:
    return tokens / np.linalg.norm(tokens, axis=1, keepdims=True)


def reader(tokens: np.ndarray) -> Read:
    return lambda rows: tokens[rows]


def example(num_images: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Four levels of different widths; each has something of the one before, and a large mean."""
    generator = np.random.default_rng(seed)
    first = generator.normal(size=(num_images, 12)) + 3
    second = first @ generator.normal(size=(12, 7)) + generator.normal(size=(num_images, 7))
    third = second[:, :5] + 2 * generator.normal(size=(num_images, 5))
    return {"a": first, "b": second, "c": third, "noise": generator.normal(size=(num_images, 40))}


@settings(deadline=None, max_examples=25)
@given(num_images=st.integers(4, 60), seed=st.integers(0, 999))
def test_linear_cka_is_the_naive_one(num_images: int, seed: int) -> None:
    tokens = example(num_images, seed)
    found = linear_similarity({name: reader(x) for name, x in tokens.items()}, np.arange(num_images))
    naive = [unit(x) @ unit(x).T for x in tokens.values()]
    hsic_can_be_negative = np.isnan(found.values)
    np.testing.assert_allclose(
        found.values[~hsic_can_be_negative], naive_cka(naive)[~hsic_can_be_negative], rtol=1e-7, atol=1e-7
    )
    assert (found.kernel, found.num_images, found.seed) == ("linear", num_images, None)


def test_batches_and_memory_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = {name: reader(x) for name, x in example(500).items()}
    whole = linear_similarity(levels, np.arange(500))
    monkeypatch.setattr(similarity, "ROWS_AT_ONCE", 37)
    monkeypatch.setattr(similarity, "MEMORY_BYTES", 1)
    passes: list[int] = []
    in_one_pass = similarity._linear_hsic

    def count(*given: Any) -> dict[tuple[int, int], float]:
        passes.append(len(given[2]))
        return in_one_pass(*given)

    monkeypatch.setattr(similarity, "_linear_hsic", count)
    parts = linear_similarity(levels, np.arange(500))
    np.testing.assert_allclose(parts.values, whole.values, rtol=1e-10)
    assert passes == [1] * 10  # one pair at a time


def test_memory_does_not_grow_with_the_number_of_images() -> None:
    def read(rows: np.ndarray) -> np.ndarray:
        return np.sin(np.outer(rows + 1.0, np.arange(1, 33)))

    peaks = []
    for num_images in (3 * similarity.ROWS_AT_ONCE, 12 * similarity.ROWS_AT_ONCE):
        tracemalloc.start()
        linear_similarity({"a": read, "b": read}, np.arange(num_images))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    rows_bytes = 8 * 9 * similarity.ROWS_AT_ONCE  # the row numbers themselves, which the caller has
    assert peaks[1] < 1.02 * peaks[0] + rows_bytes


def test_a_level_is_fully_like_itself_and_independent_noise_is_like_nothing() -> None:
    found = linear_similarity({name: reader(x) for name, x in example(3000).items()}, np.arange(3000))
    np.testing.assert_allclose(found.values.diagonal(), 1)
    np.testing.assert_allclose(found.values, found.values.T)
    assert found.values[0, 1] > found.values[0, 2] > 0.05
    assert np.abs(found.values[3, :3]).max() < 0.02


def test_only_the_rows_asked_for_count() -> None:
    tokens = example(80)
    rows = np.arange(0, 80, 3)
    some = linear_similarity({name: reader(x) for name, x in tokens.items()}, rows)
    alone = linear_similarity({name: reader(x[rows]) for name, x in tokens.items()}, np.arange(len(rows)))
    np.testing.assert_allclose(some.values, alone.values)


def test_rbf_cka_is_the_naive_one_on_a_stated_seeded_subset(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = example(300)
    monkeypatch.setattr(similarity, "SIGMA", 0.4)
    found = rbf_similarity({n: reader(x) for n, x in tokens.items()}, np.arange(300), num_images=120)
    rows = np.sort(np.random.default_rng(0).choice(np.arange(300), 120, replace=False))
    grams = []
    for x in tokens.values():
        x = unit(x[rows])
        grams.append(np.exp(-((x[:, None] - x[None]) ** 2).sum(-1) / (2 * 0.4**2)))
    np.testing.assert_allclose(found.values, naive_cka(grams), rtol=1e-8, atol=1e-10)
    assert (found.kernel, found.num_images, found.seed) == ("rbf", 120, 0)


def test_the_subset_is_all_images_if_there_are_no_more() -> None:
    levels = {name: reader(x) for name, x in example(50).items()}
    found = rbf_similarity(levels, np.arange(50))
    assert (found.num_images, found.seed) == (50, None)


def test_where_all_tokens_are_alike_there_is_no_alignment() -> None:
    levels = {"same": reader(np.ones((20, 3))), "other": reader(np.random.default_rng(0).normal(size=(20, 3)))}
    values = rbf_similarity(levels, np.arange(20)).values
    assert np.isnan(values[0]).all()
    assert values[1, 1] == pytest.approx(1)


def test_three_images_are_too_few() -> None:
    for function in (linear_similarity, rbf_similarity):
        with raises("statistics.too_few_images", num_images=3):
            function({"a": reader(np.ones((3, 2)))}, np.arange(3))  # type: ignore[operator]


@pytest.mark.parametrize("storage_dtype", ["float16", "bfloat16"])
def test_levels_are_read_from_a_store_in_their_logical_dtype(tmp_path: Path, storage_dtype: str) -> None:
    tokens = write_small_store(tmp_path, storage_dtype)
    rows = np.arange(len(tokens.targets))[::-12]
    cls, grid = levels_of(tokens, "cls", ["block.0", "final"]), levels_of(tokens, "grid2", ["final"])
    assert list(cls) == ["block.0", "final"]
    stored = tokens.tokens("final", "cls").take(tokens.positions[rows])
    exact = stored if storage_dtype == "float16" else (stored.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(cls["final"](rows), exact.astype(np.float32))
    assert grid["final"](rows).shape == (50, 64)
    with pytest.raises(MissingArrayError):
        levels_of(tokens, "patch", ["final"])
