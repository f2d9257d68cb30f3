"""What test images that are also training images do to the accuracies of a data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from layerbank.cache import TokenCache

from ..probing.bootstrap import class_mean
from .duplicates import Duplicates, duplicates_of
from .scores import Case
from .tested import Tested


@dataclass(frozen=True, kw_only=True)
class Repeated:
    """Of one data set.

    Attributes:
        duplicates: what its two splits share.
        without: (case, probe) -> balanced accuracy in percent with and without those images; empty if nothing is shared, and NaN
            without if nothing is left.
    """

    duplicates: Duplicates
    without: Mapping[tuple[Case, str], tuple[float, float]]

    @property
    def warning(self) -> str:
        """One line, "" if nothing is shared."""
        return self.duplicates.warning


def find_repeated(train: Path, test: Path, tested: Mapping[Case, Tested]) -> Repeated:
    """Compare two stores, and judge the probes that were tested on the second without what it shares with the first.

    Args:
        train, test: stores of the two splits.
        tested: cases whose test images are those of the second.

    Raises:
        CacheError: a store cannot be read.
    """
    duplicates = duplicates_of(TokenCache.open(train, num_views=0), TokenCache.open(test, num_views=0))
    shared = [test_id for test_id, _ in duplicates.pairs]
    without = {}
    for case, of_case in tested.items() if shared else ():
        kept = ~np.isin(of_case.sample_ids, shared)
        for probe, hits in of_case.hits.items():
            left = 100 * class_mean(hits[kept], of_case.labels[kept]) if kept.any() else float("nan")
            without[case, probe] = (100 * of_case.accuracies[probe].balanced, left)
    return Repeated(duplicates=duplicates, without=without)
