"""What test images that are also training images do to the accuracies of a data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cache import TokenCache

from .duplicates import Duplicates, duplicates_of
from .predictions import Predictions, accuracies, read_predictions
from .scores import Case


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


def find_repeated(train: Path, test: Path, folders: Mapping[tuple[Case, str], Path]) -> Repeated:
    """Compare two stores, and judge the probes that were tested on the second without what it shares with the first.

    Args:
        train, test: stores of the two splits.
        folders: of rows whose predictions can be read.

    Raises:
        CacheError: a store cannot be read.
    """
    duplicates = duplicates_of(TokenCache.open(train, num_views=0), TokenCache.open(test, num_views=0))
    shared = [test_id for test_id, _ in duplicates.pairs]
    without = {}
    if shared:
        for place, folder in folders.items():
            said = read_predictions(folder)
            kept = ~np.isin(said.sample_ids, shared)
            rest = Predictions(sample_ids=said.sample_ids[kept], labels=said.labels[kept], logits=said.logits[kept])
            left = 100 * accuracies(rest).balanced if kept.any() else float("nan")
            without[place] = (100 * accuracies(said).balanced, left)
    return Repeated(duplicates=duplicates, without=without)
