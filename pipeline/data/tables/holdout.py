"""Which images are held out for testing where the data do not say it: a fraction of each class, chosen by a seed.

Images are ordered by a hash of seed and id, and the first ones of each class are held out. So the choice is the same on every
machine, and an image that is added moves few others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

SPLITS = ("train", "test")


def hold_out(
    ids: Sequence[str],
    classes: Sequence[Hashable],
    fraction: float,
    *,
    seed: int = 0,
    groups: Sequence[Hashable] | None = None,
) -> NDArray[np.bool_]:
    """Choose the images of the test split.

    Args:
        ids: N sample ids.
        classes: [N] class of each; equal values are one class.
        fraction: share of each class to hold out, rounded; of two images or more at least one and not all.
        seed: another seed chooses other images.
        groups: [N] group of each, such as a patient: all images of a group come to the same side, and the shares of the classes are
            as close to the fraction as a choice of groups in random order makes them. None makes each image its own group.

    Returns:
        [N] True for a test image.

    >>> int(hold_out([f"{number}.png" for number in range(6)], ["cat", "dog"] * 3, 1 / 3).sum())
    2
    """
    if groups is None:
        return _images(ids, classes, fraction, seed)
    return _whole_groups(classes, fraction, seed, groups)


def _images(ids: Sequence[str], classes: Sequence[Hashable], fraction: float, seed: int) -> NDArray[np.bool_]:
    rows_of: dict[Hashable, list[int]] = {}
    for row in _shuffled(ids, seed):
        rows_of.setdefault(classes[row], []).append(row)
    is_test = np.zeros(len(ids), dtype=bool)
    for rows in rows_of.values():
        count = round(fraction * len(rows))
        is_test[rows[: min(max(count, 1), len(rows) - 1)]] = True
    return is_test


def _whole_groups(
    classes: Sequence[Hashable], fraction: float, seed: int, groups: Sequence[Hashable]
) -> NDArray[np.bool_]:
    """Take a group if the classes of the test images then come closer to the fraction, in the sum of their distances."""
    counts: dict[Hashable, Counter[Hashable]] = {}
    for group, of_class in zip(groups, classes, strict=True):
        counts.setdefault(group, Counter())[of_class] += 1
    lacking = {of_class: fraction * count for of_class, count in Counter(classes).items()}
    names = list(counts)
    chosen: set[Hashable] = set()
    for number in _shuffled([str(name) for name in names], seed):
        added = counts[names[number]]
        if sum(abs(lacking[one] - count) - abs(lacking[one]) for one, count in added.items()) < 0:
            chosen.add(names[number])
            for one, count in added.items():
                lacking[one] -= count
    return np.array([group in chosen for group in groups], dtype=bool)


def _shuffled(names: Sequence[str], seed: int) -> list[int]:
    """Numbers of the names in an order that depends on them and on the seed alone."""
    keys = [xxh3_64_intdigest(f"{seed}/{name}".encode(errors="surrogatepass")) for name in names]
    order: list[int] = np.argsort(np.array(keys, dtype=np.uint64), kind="stable").tolist()
    return order
