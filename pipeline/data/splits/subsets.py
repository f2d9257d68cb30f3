"""Subsets and folds of labelled images: by class, by group, and chosen by a hash of seed and id, so equal on every machine.

A drawn subset takes the first images of each class in one order. So subsets of one seed are nested: those of five images a class
contain those of two. In groups, such as patients, the order is that of the groups: few groups give the images of a small subset.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest


def draw_order(ids: Sequence[str], seed: int, groups: NDArray[np.uint64] | None = None) -> NDArray[np.int64]:
    """The places [N] of the images in the order in which they are drawn; images of a group stand together."""
    own = np.array([xxh3_64_intdigest(f"{seed}/{id}".encode(errors="surrogatepass")) for id in ids], dtype=np.uint64)
    if groups is None:
        return np.argsort(own, kind="stable")
    names, group_of = np.unique(groups, return_inverse=True)
    of_group = np.array([xxh3_64_intdigest(f"{seed}/{name}".encode()) for name in names.tolist()], dtype=np.uint64)
    return np.lexsort((own, of_group[group_of]))


def first_of_each(strata: NDArray[np.int64], order: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The places, ascending, of the first `counts[s]` images of each stratum s in an order of some images.

    >>> first_of_each(np.array([0, 0, 1, 1, 1]), np.array([4, 1, 0, 3, 2]), np.array([1, 2])).tolist()
    [1, 3, 4]
    """
    of_place = strata[order]
    by_stratum = np.argsort(of_place, kind="stable")
    sorted_strata = of_place[by_stratum]
    rank = np.arange(len(order)) - np.searchsorted(sorted_strata, sorted_strata)
    return np.sort(order[by_stratum[rank < counts[sorted_strata]]])


def fold_of_each(
    strata: NDArray[np.int64], num_folds: int, order: NDArray[np.int64], groups: NDArray[np.uint64] | None = None
) -> NDArray[np.int64]:
    """The fold [N] in which each image is tested: of about equal size and shares of the strata, no group in two.

    Args:
        strata: [N] numbers from 0.
        num_folds: K.
        order: [N] `draw_order`.
        groups: [N]; None makes each image its own group.

    >>> fold_of_each(np.array([0, 0, 1, 1]), 2, np.arange(4)).tolist()
    [0, 1, 0, 1]
    """
    folds = np.zeros(len(strata), dtype=np.int64)
    if groups is None:
        by_stratum = order[np.argsort(strata[order], kind="stable")]
        folds[by_stratum] = np.arange(len(strata)) % num_folds  # goes on from stratum to stratum: equal sizes
        return folds
    names, first, group_of = np.unique(groups[order], return_index=True, return_inverse=True)
    counts = np.zeros((len(names), int(strata.max(initial=0)) + 1), dtype=np.int64)
    np.add.at(counts, (group_of, strata[order]), 1)
    shares = counts / np.maximum(counts.sum(0), 1)
    taken, sizes = np.zeros((num_folds, counts.shape[1])), np.zeros(num_folds, dtype=np.int64)
    of_group = np.zeros(len(names), dtype=np.int64)
    for group in np.lexsort((first, -counts.sum(1))).tolist():  # large ones first, the small ones fill the gaps
        wanted = shares[group] > 0
        fold = min(range(num_folds), key=lambda one: (round(float(taken[one, wanted].sum()), 9), sizes[one], one))
        of_group[group] = fold
        taken[fold] += shares[group]
        sizes[fold] += counts[group].sum()
    folds[order] = of_group[group_of]
    return folds
