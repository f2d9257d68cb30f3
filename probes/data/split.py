"""The validation split: the same fraction of every stratum, such as a class, and no image or group of images on both sides.

Images are held out, not rows. A source may hold several views of an image (cached augmentations): all rows of a held-out image
leave the training, and it is scored by its first row, the centre view. So the same images are held out with and without views.
Images of one group, such as copies of a file, are held out together. Where every image is its own group, groups change nothing.

A source may bring validation images of its own (`ValidatedSource`): then these are held out, and nothing else.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import DataError, SettingError
from ..seeds import make_generator
from .token_source import GroupedSource, TokenSource, ValidatedSource, ViewedSource, training_rows


def split_rows(source: TokenSource, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Rows to train on, and rows to choose a setting on.

    Args:
        source: N rows, of fewer images if it is a `ViewedSource`, in groups if it is a `GroupedSource`.
        fraction: fraction of the images to hold out, in (0, 1).
        seed: seed of the split.

    Returns:
        all rows of the kept images, and the centre row of each held-out image; sorted, int64.

    Raises:
        SettingError: the fraction is out of range.
        DataError: no stratum, such as a class, has two groups of images.
    """
    centre, strata, groups = _images_of(source)
    if isinstance(source, ValidatedSource) and source.is_validation is not None:
        held_out = source.is_validation[centre]
        if groups is not None:  # a copy of a training image chooses no setting
            held_out = held_out & ~torch.isin(groups, groups[~held_out])
        if not held_out.any():
            raise DataError("probes.nothing_to_choose_by", num_images=int(source.is_validation[centre].sum()))
        return training_rows(source), centre[held_out]
    kept, held_out = split_stratified(strata, fraction, seed, groups)
    if not isinstance(source, ViewedSource):
        return kept, held_out
    trained = torch.isin(source.images, source.images[centre[kept]])
    return trained.nonzero().squeeze(1), centre[held_out]


def _images_of(source: TokenSource) -> tuple[Tensor, Tensor, Tensor | None]:
    """Of each image: its centre row, its stratum, and its group if there are groups."""
    strata = source.task.strata(source.targets)
    centre = centre_rows(source.images) if isinstance(source, ViewedSource) else torch.arange(len(strata))
    groups = source.groups if isinstance(source, GroupedSource) else None
    return centre, strata[centre], None if groups is None else groups[centre]


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


def split_stratified(labels: Tensor, fraction: float, seed: int, groups: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Hold out the same fraction of every class, and each group as a whole.

    Groups are taken in a shuffled order, each by the class of its first image there. A class holds out the groups that fit into
    round(fraction * n) of its n images: at least one, the smallest if none fits, where it has two groups; at least one is kept.

    Args:
        labels: [N] int64.
        fraction: fraction to hold out, in (0, 1).
        seed: seed of the split.
        groups: [N] int64, the group of each image; None if each image is one.

    Returns:
        rows to train on and rows held out, sorted, int64.

    Raises:
        SettingError: the fraction is out of range.
        DataError: no stratum, such as a class, has two groups of images.

    >>> kept, held_out = split_stratified(torch.tensor([0, 1, 0, 1, 0, 1, 0, 1, 2]), 0.25, seed=0)
    >>> len(kept), sorted(torch.tensor([0, 1, 0, 1, 0, 1, 0, 1, 2])[held_out].tolist())
    (7, [0, 1])
    >>> split_stratified(torch.zeros(6, dtype=torch.int64), 0.5, seed=0, groups=torch.tensor([8, 9, 7, 9, 9, 7]))[1].tolist()
    [1, 3, 4]
    """
    if not 0 < fraction < 1:
        raise SettingError("probes.wrong_fraction", fraction=fraction)
    shuffled = torch.randperm(len(labels), generator=make_generator(seed, "validation split"))
    group_of, leads = (torch.arange(len(labels)), shuffled) if groups is None else _number_groups(groups, shuffled)
    sizes, classes = torch.bincount(group_of), labels[leads]
    by_class = group_of[leads[classes.argsort(stable=True)]]
    is_held = torch.zeros(len(sizes), dtype=torch.bool)
    for of_class in torch.split(by_class, torch.unique(classes, return_counts=True)[1].tolist()):
        is_held[of_class[_held_out(sizes[of_class].tolist(), fraction)]] = True
    held_out = is_held[group_of]
    if len(leads) < len(labels):  # groups of images of several classes can leave nothing of a class to train on
        held_classes, kept_classes = (set(torch.unique(labels[rows]).tolist()) for rows in (held_out, ~held_out))
        for label in sorted(held_classes - kept_classes):
            held_out &= group_of != group_of[labels == label][0]
    if not bool(held_out.any()):
        raise DataError("probes.nothing_to_hold_out", num_images=len(labels), num_classes=len(torch.unique(labels)))
    return (~held_out).nonzero().squeeze(1), held_out.nonzero().squeeze(1)


def num_moved(labels: Tensor, fraction: float, seed: int, groups: Tensor) -> int:
    """Number of images in groups of several that `split_stratified` puts on another side than it would without groups."""
    with_groups, without = (split_stratified(labels, fraction, seed, some)[1] for some in (groups, None))
    images, counts = torch.unique(torch.cat([with_groups, without]), return_counts=True)
    _, group_of, sizes = torch.unique(groups, return_inverse=True, return_counts=True)
    return int((sizes[group_of[images[counts == 1]]] > 1).sum())


def _number_groups(groups: Tensor, shuffled: Tensor) -> tuple[Tensor, Tensor]:
    """Groups numbered from 0, [N], and the image of each group that comes first in an order of the images."""
    names, group_of = torch.unique(groups, return_inverse=True)
    places = torch.arange(len(groups))
    first = torch.full_like(names, len(groups)).scatter_reduce_(0, group_of[shuffled], places, "amin")
    return group_of, shuffled[first.sort().values]


def _held_out(sizes: list[int], fraction: float) -> list[int]:
    """Places of the groups of a class that are held out, of groups of these sizes in their order.

    >>> _held_out([1, 1, 1, 1], 0.5), _held_out([3, 1, 1, 5], 0.2), _held_out([9, 8], 0.2), _held_out([4], 0.5)
    ([0, 1], [1, 2], [1], [])
    """
    if len(sizes) < 2:
        return []
    num_images, held_out = sum(sizes), []
    room = min(max(1, round(fraction * num_images)), num_images - 1)
    for place, size in enumerate(sizes):
        if size <= room:
            held_out.append(place)
            room -= size
        if not room:
            break
    return held_out or [sizes.index(min(sizes))]
