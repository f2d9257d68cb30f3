"""Shuffled orders in which to read rows: the same for the same seed on every run and machine.

The decision taken here: a shuffle sorts rows by raw 64-bit draws of PCG64. numpy guarantees that stream for ever, and
guarantees nothing about `Generator.permutation`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


def chunk_shuffle(rows: Rows, *, block_rows: int, buffer_blocks: int, seed: int, epoch: int = 0) -> Rows:
    """Shuffle for stores larger than memory: row blocks in random order, rows shuffled within a buffer of some row blocks.

    While a buffer is read, `buffer_blocks` row blocks are touched and no others. With a buffer of all row blocks every order is
    equally likely.

    Args:
        rows: ``[n]`` row numbers.
        block_rows: R of the store, see `TokenStore.block_rows`.
        buffer_blocks: row blocks that fit in memory together, at least 1.
        seed: at least 0.
        epoch: changes the order for the same seed.

    Returns:
        ``[n]`` the same rows in another order.

    >>> chunk_shuffle(np.arange(8), block_rows=2, buffer_blocks=4, seed=0)
    array([3, 2, 1, 6, 0, 7, 4, 5])
    """
    rows = np.sort(rows)  # the order must not depend on the order of the argument
    blocks = rows // block_rows
    num_blocks = int(blocks[-1]) + 1 if len(rows) else 0
    rank = np.empty(num_blocks, dtype=np.int64)
    rank[_permutation(num_blocks, seed, epoch, stream=1)] = np.arange(num_blocks)
    buffers = rank[blocks] // buffer_blocks
    shuffled = _permutation(len(rows), seed, epoch)
    return rows[shuffled[np.argsort(buffers[shuffled], kind="stable")]]


def spread_shuffle(rows: Rows, *, block_rows: int, buffer_blocks: int, seed: int, epoch: int = 0) -> Rows:
    """Shuffle for stores sorted by class: each buffer has one row block, at random, of each of `buffer_blocks` equal parts.

    So every buffer is a sample of the whole store; arguments and result as in `chunk_shuffle`.

    >>> spread_shuffle(np.arange(16), block_rows=2, buffer_blocks=4, seed=0)[:8] // 4
    array([0, 0, 3, 2, 1, 1, 3, 2])
    """
    rows = np.sort(rows)
    present, block = np.unique(rows // block_rows, return_inverse=True)
    num_blocks = len(present)
    num_parts = max(min(buffer_blocks, num_blocks), 1)
    part = np.arange(num_blocks) * num_parts // max(num_blocks, 1)
    by_part = _permutation(num_blocks, seed, epoch, stream=1)
    by_part = by_part[np.argsort(part[by_part], kind="stable")]
    firsts = np.concatenate(([0], np.cumsum(np.bincount(part, minlength=num_parts))))
    buffer = np.empty(num_blocks, dtype=np.int64)
    buffer[by_part] = np.arange(num_blocks) - firsts[part[by_part]]
    shuffled = _permutation(len(rows), seed, epoch)
    return rows[shuffled[np.argsort(buffer[block[shuffled]], kind="stable")]]


def _permutation(size: int, seed: int, epoch: int, stream: int = 0) -> Rows:
    draws = np.random.PCG64(np.random.SeedSequence((seed, epoch, stream))).random_raw(size)
    return np.argsort(draws, kind="stable").astype(np.int64)
