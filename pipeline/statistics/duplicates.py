"""Accuracies without the test images that are also training images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ..probing.bootstrap import class_mean
from .scores import Case
from .tested import Tested

if TYPE_CHECKING:
    from ..data.duplicates import Duplicates  # and with it zarr, which statistics of rows do without


def accuracies_without(
    duplicates: Duplicates, tested: Mapping[Case, Tested]
) -> dict[tuple[Case, str], tuple[float, float]]:
    """Balanced accuracies with and without the images that two splits share.

    Args:
        duplicates: duplicates between the two splits of the cases.
        tested: the cases.

    Returns:
        (case, probe) -> percent with and without those images; empty without pairs, NaN where no image is left.
    """
    shared = [test_id for test_id, _ in duplicates.pairs]
    found = {}
    for case, one in tested.items() if shared else ():
        kept = ~np.isin(one.sample_ids, shared)
        for probe, hits in one.hits.items():
            left = 100 * class_mean(hits[kept], one.labels[kept]) if kept.any() else float("nan")
            found[case, probe] = (100 * one.accuracies[probe].balanced, left)
    return found
