"""Streamed batches are as good a sample of the classes as resident ones, however the rows are sorted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ordered_tokens import OrderedTokens, accuracy

from layerbank.cache import spread_shuffle
from layerbank.probes import (
    ArraySource,
    l2_normalize,
)
from layerbank.probing.tokens.placement import FEWEST_BUFFER_ROWS, MOST_BUFFER_ROWS
from layerbank.probing.tokens.stretches import Stretches, choose_stretches, unevenness

BUFFERS = (FEWEST_BUFFER_ROWS, 2048, MOST_BUFFER_ROWS)


def choose(labels: np.ndarray, buffer_rows: int) -> Stretches:
    return choose_stretches(torch.from_numpy(labels), torch.arange(len(labels)), buffer_rows)


def by_class(num_classes: int, num_rows: int) -> np.ndarray:
    return np.arange(num_rows) * num_classes // num_rows


@given(
    st.sets(st.integers(0, 500)).map(lambda rows: np.array(sorted(rows), dtype=np.int64)),
    st.integers(0, 2**63),
    st.integers(0, 50),
    st.integers(1, 40),
    st.integers(1, 9),
)
def test_a_spread_order_is_a_permutation_whose_buffers_have_a_block_of_each_part(
    rows: np.ndarray, seed: int, epoch: int, block_rows: int, buffer_blocks: int
) -> None:
    order = spread_shuffle(rows, block_rows=block_rows, buffer_blocks=buffer_blocks, seed=seed, epoch=epoch)
    np.testing.assert_array_equal(np.sort(order), rows)
    present = np.unique(rows // block_rows)
    blocks = list(dict.fromkeys(np.searchsorted(present, order // block_rows).tolist()))
    num_parts = min(buffer_blocks, len(present))
    buffers = [blocks[start : start + num_parts] for start in range(0, len(blocks), num_parts)] if num_parts else []
    for buffer in buffers[:-2]:  # the last two may lack a block of a smaller part
        assert sorted(block * num_parts // len(present) for block in buffer) == list(range(num_parts))


def test_the_spread_orders_of_a_seed_are_these_for_ever() -> None:
    order = spread_shuffle(np.arange(12), block_rows=2, buffer_blocks=3, seed=7)
    assert order.tolist() == [3, 11, 4, 10, 2, 5, 6, 9, 0, 8, 7, 1]


@pytest.mark.parametrize("num_classes", [2, 10, 1000])
@pytest.mark.parametrize("buffer_rows", BUFFERS)
def test_stretches_stay_long_where_the_order_is_mixed(num_classes: int, buffer_rows: int) -> None:
    longest = min(64, buffer_rows // 16)
    for seed in range(5):
        labels = np.random.default_rng(seed).permutation(by_class(num_classes, 20_000))
        assert choose(labels, buffer_rows) == Stretches(rows=longest, in_buffer=buffer_rows // longest)


@pytest.mark.parametrize(
    ("num_classes", "lengths"), [(10, (8, 16, 32)), (100, (2, 8, 16)), (1000, (1, 2, 4))], ids=["10", "100", "1000"]
)
def test_stretches_are_short_and_spread_where_rows_are_sorted_by_class(
    num_classes: int, lengths: tuple[int, ...]
) -> None:
    labels = by_class(num_classes, 50_000)
    chosen = [choose(labels, buffer_rows) for buffer_rows in BUFFERS]
    assert tuple(one.rows for one in chosen) == lengths
    assert all(one.spread for one in chosen)
    for one, buffer_rows in zip(chosen, BUFFERS, strict=True):
        assert one.rows * one.in_buffer == buffer_rows
        assert unevenness(labels, one.rows, one.in_buffer) <= 1.25


@pytest.mark.parametrize("num_together", [10, 100])
def test_stretches_are_spread_where_classes_come_in_groups(num_together: int) -> None:
    """As of an archive whose shards were shuffled, each alone."""
    shuffle = np.random.default_rng(0).permutation
    labels = np.concatenate([shuffle(part) for part in np.array_split(by_class(1000, 50_000), 1000 // num_together)])
    chosen = choose(labels, MOST_BUFFER_ROWS)
    assert chosen.spread
    assert chosen.rows > choose(by_class(1000, 50_000), MOST_BUFFER_ROWS).rows


def test_views_of_an_image_stay_together_and_do_not_count_as_sorted() -> None:
    images = torch.arange(20_000).repeat_interleave(3)
    labels = torch.randint(10, (20_000,), generator=torch.Generator().manual_seed(0)).repeat_interleave(3)
    assert choose_stretches(labels, images, 2048) == Stretches(rows=64, in_buffer=32)
    assert choose_stretches(labels.sort().values, images, FEWEST_BUFFER_ROWS).rows >= 3


def test_class_counts_of_a_buffer_vary_no_more_than_those_of_a_random_sample() -> None:
    """What `unevenness` predicts, counted."""
    labels = by_class(100, 51_200)
    for buffer_rows in BUFFERS[:2]:
        stretches = choose(labels, buffer_rows)
        order = stretches.shuffle(torch.arange(len(labels)), 0, 0).numpy()
        counts = np.stack([np.bincount(labels[part], minlength=100) for part in order.reshape(-1, buffer_rows)])
        assert counts.var(0).mean() < 1.3 * buffer_rows / 100


NUM_CLASSES, WIDTH = 400, 32


@pytest.fixture(scope="module")
def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    """Of 400 classes, sorted."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.from_numpy(by_class(NUM_CLASSES, 16_000))
    centres = torch.randn(NUM_CLASSES, WIDTH, generator=generator)
    return l2_normalize(centres[labels] + 2 * torch.randn(len(labels), WIDTH, generator=generator)), labels


def test_a_probe_streamed_from_a_sorted_store_is_as_good_as_one_from_memory(
    tokens: tuple[torch.Tensor, torch.Tensor],
) -> None:
    """With the smallest buffer; long stretches from anywhere lose more than seeds differ."""
    resident = score(ArraySource(*tokens, NUM_CLASSES))
    chosen = choose_stretches(tokens[1], torch.arange(len(tokens[1])), FEWEST_BUFFER_ROWS)
    streamed = score(OrderedTokens(*tokens, NUM_CLASSES, chosen))
    long = score(OrderedTokens(*tokens, NUM_CLASSES, Stretches(rows=16, in_buffer=16)))
    noise = max(float(np.std(resident, ddof=1)), 0.002)
    assert np.mean(streamed) > np.mean(resident) - 3 * noise
    assert np.mean(long) < np.mean(resident) - 6 * noise


def score(source: ArraySource) -> list[float]:
    """The accuracy of three seeds on the rows of the training."""
    return [accuracy(source, source, seed, epochs=4, batch_size=512) for seed in range(3)]
