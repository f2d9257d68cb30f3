"""Orders are permutations, and the same for a seed on every run."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from layerbank.cache import chunk_shuffle, spread_shuffle

exact_shuffle = partial(chunk_shuffle, block_rows=1, buffer_blocks=1 << 40)  # one buffer of all rows
subsets = st.sets(st.integers(0, 500)).map(lambda rows: np.array(sorted(rows), dtype=np.int64))
seeds = st.integers(0, 2**63)


@given(subsets, seeds, st.integers(0, 50), st.integers(1, 100), st.integers(1, 9))
def test_every_order_is_a_permutation_of_its_rows(
    rows: np.ndarray, seed: int, epoch: int, block_rows: int, buffer_blocks: int
) -> None:
    for order in (
        exact_shuffle(rows, seed=seed, epoch=epoch),
        spread_shuffle(rows, block_rows=block_rows, buffer_blocks=buffer_blocks, seed=seed, epoch=epoch),
        chunk_shuffle(rows, block_rows=block_rows, buffer_blocks=buffer_blocks, seed=seed, epoch=epoch),
    ):
        assert order.dtype == np.int64
        np.testing.assert_array_equal(np.sort(order), rows)


def test_the_orders_of_a_seed_are_these_for_ever() -> None:
    rows = np.arange(12)
    assert exact_shuffle(rows, seed=7).tolist() == [6, 3, 11, 4, 10, 9, 0, 2, 8, 7, 5, 1]
    assert exact_shuffle(rows, seed=7, epoch=1).tolist() == [11, 1, 3, 2, 10, 7, 8, 4, 5, 9, 0, 6]
    assert chunk_shuffle(rows, block_rows=3, buffer_blocks=2, seed=7).tolist() == [6, 3, 4, 8, 7, 5, 11, 10, 9, 0, 2, 1]


def test_another_process_gets_the_same_order() -> None:
    code = "import numpy as np; from layerbank.cache import chunk_shuffle as shuffle; print(shuffle(np.arange(100), "
    code += "block_rows=1, buffer_blocks=100, seed=3).tolist())"
    root = Path(__file__).parent.parent
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == str(exact_shuffle(np.arange(100), seed=3).tolist())


@given(subsets, seeds)
def test_an_order_does_not_depend_on_how_the_rows_were_listed(rows: np.ndarray, seed: int) -> None:
    np.testing.assert_array_equal(exact_shuffle(rows[::-1], seed=seed), exact_shuffle(rows, seed=seed))


def test_seeds_and_epochs_give_different_orders() -> None:
    orders = {tuple(exact_shuffle(np.arange(30), seed=s, epoch=e)) for s in range(5) for e in range(5)}
    assert len(orders) == 25


@given(st.integers(1, 400), st.integers(1, 60), st.integers(1, 6), seeds)
def test_a_buffer_touches_no_more_blocks_than_it_may(
    num_rows: int, block_rows: int, buffer_blocks: int, seed: int
) -> None:
    rows = np.arange(num_rows)
    order = chunk_shuffle(rows, block_rows=block_rows, buffer_blocks=buffer_blocks, seed=seed)
    blocks = order // block_rows
    seen: list[set[int]] = [set()]
    for block in blocks:
        if block not in seen[-1]:
            if len(seen[-1]) == buffer_blocks:
                seen.append(set())
            seen[-1].add(int(block))
    assert sum(len(buffer) for buffer in seen) == len(set(blocks.tolist()))  # none is read twice


def test_a_buffer_of_all_blocks_mixes_them_all() -> None:
    order = chunk_shuffle(np.arange(4000), block_rows=100, buffer_blocks=40, seed=0)
    assert len(set((order[:200] // 100).tolist())) > 30


def test_an_exact_shuffle_prefers_no_place() -> None:
    firsts = np.array([exact_shuffle(np.arange(10), seed=seed)[0] for seed in range(4000)])
    counts = np.bincount(firsts, minlength=10)
    assert abs(counts - 400).max() < 5 * np.sqrt(400)
