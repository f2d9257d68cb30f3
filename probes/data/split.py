"""The validation split: the same fraction of every stratum, such as a class, and no image on both sides.

Images are held out, not rows. A source may hold several views of an image (cached augmentations): all rows of a held-out image
leave the training, and it is scored by its first row, the centre view. So the same images are held out with and without views.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import DataError
from ..seeds import make_generator
from .token_source import TokenSource, ViewedSource


def split_rows(source: TokenSource, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Rows to train on, and rows to choose a setting on.

    Args:
        source: N rows, of fewer images if it is a `ViewedSource`.
        fraction: fraction of the images to hold out, in (0, 1).
        seed: seed of the split.

    Returns:
        all rows of the kept images, and the centre row of each held-out image; sorted, int64.

    Raises:
        DataError: no stratum, such as a class, has two images.
    """
    strata = source.task.strata(source.labels)
    if not isinstance(source, ViewedSource):
        return split_stratified(strata, fraction, seed)
    centre = centre_rows(source.images)
    kept, held_out = split_stratified(strata[centre], fraction, seed)
    trained = torch.isin(source.images, source.images[centre[kept]])
    return trained.nonzero().squeeze(1), centre[held_out]


def centre_rows(images: Tensor) -> Tensor:
    """The first row of each image.

    Args:
        images: [N] int64, ascending: the image that each row shows.

    >>> centre_rows(torch.tensor([0, 0, 0, 2, 2, 5])).tolist()
    [0, 3, 5]
    """
    first = torch.ones(len(images), dtype=torch.bool)
    first[1:] = images[1:] != images[:-1]
    return first.nonzero().squeeze(1)


def split_stratified(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Hold out the same fraction of every class.

    round(fraction * n_c) images of a class are held out, at least one if it has two; at least one is kept.

    Args:
        labels: [N] int64.
        fraction: fraction to hold out, in (0, 1).
        seed: seed of the split.

    Returns:
        rows to train on and rows held out, sorted, int64.

    Raises:
        DataError: no stratum, such as a class, has two images.

    >>> kept, held_out = split_stratified(torch.tensor([0, 1, 0, 1, 0, 1, 0, 1, 2]), 0.25, seed=0)
    >>> len(kept), sorted(torch.tensor([0, 1, 0, 1, 0, 1, 0, 1, 2])[held_out].tolist())
    (7, [0, 1])
    """
    shuffled = torch.randperm(len(labels), generator=make_generator(seed, "validation split"))
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    sizes = torch.unique(labels, return_counts=True)[1].tolist()
    for rows in torch.split(by_class, sizes):
        count = min(max(1, round(fraction * len(rows))), len(rows) - 1)
        held_out[rows[:count]] = True
    if not bool(held_out.any()):
        raise DataError("probes.nothing_to_hold_out", num_images=len(labels), num_classes=len(sizes))
    return (~held_out).nonzero().squeeze(1), held_out.nonzero().squeeze(1)
