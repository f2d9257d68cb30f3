"""Test images that are also training images, by their content hashes.

A hash is of the encoded file: the same picture saved twice with different compression is not found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .splits.split_record import SplitRecord


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """Images that two splits share.

    Attributes:
        num_test: test images that were compared.
        pairs: (test id, id of the first training image with the same bytes), in the order of the test split.
        num_relabelled: pairs with two different labels.
    """

    num_test: int
    pairs: tuple[tuple[str, str], ...]
    num_relabelled: int

    @property
    def warning(self) -> str:
        """One line for the table, "" without pairs."""
        if not self.pairs:
            return ""
        share = 100 * len(self.pairs) / self.num_test
        relabelled = f", {self.num_relabelled} with another label" if self.num_relabelled else ""
        return f"{len(self.pairs)} of {self.num_test} test images ({share:.1f} %) are also training images{relabelled}"


def duplicates_of(train: SplitRecord, test: SplitRecord) -> Duplicates:
    """Compare the readable images of two splits."""
    return find_duplicates(*_readable(train), *_readable(test))


def find_duplicates(
    train_hashes: NDArray[np.uint64],
    train_ids: Sequence[str],
    train_labels: NDArray[Any],
    test_hashes: NDArray[np.uint64],
    test_ids: Sequence[str],
    test_labels: NDArray[Any],
) -> Duplicates:
    """Compare two splits by the hashes of their images: [N] and [M], with as many ids and labels."""
    known, first = np.unique(train_hashes, return_index=True)
    rows = np.flatnonzero(np.isin(test_hashes, known))
    partners = first[np.searchsorted(known, test_hashes[rows])]
    differ = train_labels[partners] != test_labels[rows]  # [n] or [n, K]
    return Duplicates(
        num_test=len(test_hashes),
        pairs=tuple((test_ids[row], train_ids[one]) for row, one in zip(rows.tolist(), partners.tolist(), strict=True)),
        num_relabelled=int(differ.any(axis=tuple(range(1, differ.ndim))).sum()),
    )


def _readable(split: SplitRecord) -> tuple[NDArray[np.uint64], list[str], NDArray[Any]]:
    rows = np.flatnonzero(split.images.hashes)
    return split.images.hashes[rows], [split.ids[row] for row in rows.tolist()], split.labels[rows]
