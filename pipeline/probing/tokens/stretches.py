"""How the order of a streamed epoch is cut: into long stretches where neighbours are of any class, into short ones elsewhere.

A buffer of shuffled rows should hold the classes as a random sample of as many rows would. In a store sorted by class it does not:
a stretch of s rows of one class counts as one draw, and the class counts of a buffer vary s times as much as those of a sample. An
attentive probe of 1,000 classes then loses a quarter of its accuracy. `unevenness` is that factor, measured on the labels.

Where it is 1 the order is mixed, and stretches stay as long as the buffer allows. Elsewhere each buffer takes one stretch out of
each of as many equal parts of the order, so that it is a systematic sample of the whole; and stretches are halved until the class
counts vary no more than in a random sample: to about B / C rows for B rows in a buffer and C classes one after the other. Stretches
of one image always reach it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from layerbank.cache import chunk_shuffle, spread_shuffle

STRETCHES = 16  # in a buffer, at least
STRETCH_ROWS = 64  # at most: 98 kB of an array of width 768; the largest buffer mixes 128 stretches
TOLERANCE = 0.25  # of the unevenness: costs less than seeds differ
DEVIATIONS = 4  # of the unevenness of shuffled labels, that are taken for chance


@dataclass(frozen=True, kw_only=True)
class Stretches:
    """How the reading order is shuffled.

    Attributes:
        rows: neighbouring rows that stay together when stretches are shuffled.
        in_buffer: stretches whose rows are shuffled together.
        spread: the stretches of a buffer are from all parts of the order, one each, and not from anywhere.
    """

    rows: int
    in_buffer: int
    spread: bool = False

    def shuffle(self, ranks: torch.Tensor, seed: int, epoch: int) -> torch.Tensor:
        """Places [N] int64 in the reading order -> [N] the same places in the order of an epoch."""
        order = spread_shuffle if self.spread else chunk_shuffle
        shuffled = order(ranks.numpy(), block_rows=self.rows, buffer_blocks=self.in_buffer, seed=seed, epoch=epoch)
        return torch.from_numpy(shuffled)


def choose_stretches(labels: torch.Tensor, images: torch.Tensor, buffer_rows: int) -> Stretches:
    """Cut a reading order so that every buffer is as good a sample of the classes as a random one.

    Args:
        labels: [N] int64, in reading order.
        images: [N] int64, in reading order, the image of each row; the views of an image stay together.
        buffer_rows: rows that are shuffled together, at least 1.

    >>> by_class, rows = torch.arange(10_000) // 100, torch.arange(10_000)
    >>> choose_stretches(by_class, rows, 1024), choose_stretches(by_class[rows * 7919 % 10_000], rows, 1024)
    (Stretches(rows=4, in_buffer=256, spread=True), Stretches(rows=64, in_buffer=16, spread=False))
    """
    longest = max(1, min(STRETCH_ROWS, buffer_rows // STRETCHES))
    usual = Stretches(rows=longest, in_buffer=buffer_rows // longest)
    first = torch.ones(len(images), dtype=torch.bool)
    first[1:] = images[1:] != images[:-1]
    classes, of_images = np.unique(labels[first].numpy(), return_inverse=True)
    if len(labels) <= buffer_rows or len(classes) < 2:
        return usual
    views = -(-len(labels) // len(of_images))

    def is_fair(stretch_rows: int, num_parts: int) -> bool:
        stretch = max(1, stretch_rows // views)
        return unevenness(of_images, stretch, num_parts) <= 1 + max(TOLERANCE, DEVIATIONS * _chance(of_images, stretch))

    if is_fair(longest, 1):
        return usual
    rows = longest
    while rows > views and not is_fair(rows, buffer_rows // rows):
        rows //= 2
    rows = max(rows, min(views, longest))
    return Stretches(rows=rows, in_buffer=buffer_rows // rows, spread=True)


def unevenness(labels: NDArray[np.int64], stretch_rows: int, num_parts: int) -> float:
    """How much more class counts vary among stretches than among as many rows chosen at random.

    A sample takes a stretch out of each of some equal parts. The mean over classes c, n_c of the rows of a sample, p_c of all:
    sum over parts of Var(n_c) / (B p_c (1 - p_c)), B rows in a sample. 1 in shuffled labels.

    Args:
        labels: [N] int64 from 0, all of which occur.
        stretch_rows: s.
        num_parts: the parts; 1 for stretches from anywhere.

    >>> round(unevenness(np.arange(64_000) // 64, 64, 1), 1), round(unevenness(np.arange(64_000) % 1000, 64, 1), 1)
    (64.0, 0.9)
    """
    num_stretches = len(labels) // stretch_rows
    labels, num_parts = labels[: num_stretches * stretch_rows], min(num_parts, num_stretches)
    num_in_class = np.bincount(labels)
    num_classes = len(num_in_class)
    stretches = np.arange(len(labels)) // stretch_rows
    pairs, counts = np.unique(stretches * num_classes + labels, return_counts=True)
    stretch_of, class_of = np.divmod(pairs, num_classes)
    in_part = np.bincount(np.arange(num_stretches) * num_parts // num_stretches)
    part_of = stretch_of * num_parts // num_stretches
    cells, inverse = np.unique(part_of * num_classes + class_of, return_inverse=True)
    sums, squares = (np.bincount(inverse, weights=weights) for weights in (counts, counts**2))
    size = in_part[cells // num_classes]
    variance = squares / size - (sums / size) ** 2
    share = num_in_class / len(labels)
    expected = stretch_rows * num_parts * share * (1 - share)
    there = expected > 0
    return float(
        np.mean(np.bincount(cells % num_classes, weights=variance, minlength=num_classes)[there] / expected[there])
    )


def _chance(labels: NDArray[np.int64], stretch_rows: int) -> float:
    """The standard deviation of the unevenness of shuffled labels, about."""
    counts = np.bincount(labels)
    num_stretches = max(len(labels) // stretch_rows, 1)
    return math.sqrt((2 / num_stretches + float(np.mean(1 / counts))) / max(len(counts) - 1, 1))
