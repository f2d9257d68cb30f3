"""The classes of a training and a test split.

A source knows the classes of its own split. Those of the training split decide what a probe can answer: the labels of the test
split become their numbers by name, whatever numbers they had.
"""

from __future__ import annotations

import unicodedata

import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError
from ..events import OnEvent, UnevenClasses, ignore
from ..quantities import few
from .image_source import NO_LABEL, ImageSource
from .split_record import SplitRecord

Labelled = ImageSource | SplitRecord


def match_classes(train: ImageSource, test: ImageSource, on_event: OnEvent = ignore) -> None:
    """Give the test split the classes of the training split.

    Raises:
        RequestError: no labels, only one class to train on, or test images of a class without training images.
    """
    test.labels = labels_by_name(train, test)
    test.class_names = list(train.class_names)
    if uneven := uneven_classes(train, test):
        on_event(uneven)


def labels_by_name(train: Labelled, test: Labelled) -> NDArray[np.int64]:
    """The labels of the test images [N], as numbers of the classes of the training split.

    Raises:
        RequestError: as `match_classes`.
    """
    for one in (train, test):
        if not one.class_names:
            raise RequestError("data.unlabelled_images", data=_name(one))
    counts = _counts(train)
    if np.count_nonzero(counts) < 2:
        names = few([name for name, count in zip(train.class_names, counts, strict=True) if count])
        raise RequestError("data.one_class", data=_name(train), names=names)
    trained = {name: number for number, name in enumerate(train.class_names) if counts[number]}
    numbers = np.array([trained.get(name, NO_LABEL) for name in test.class_names])
    tested = _counts(test) > 0
    if unknown := [test.class_names[number] for number in np.flatnonzero(tested & (numbers == NO_LABEL)).tolist()]:
        alike = {_folded(name): name for name in trained}
        if look_alike := next((name for name in unknown if _folded(name) in alike), None):
            both = {"trained": ascii(alike[_folded(look_alike)]), "tested": ascii(look_alike)}
            raise RequestError("data.look_alike_classes", train=_name(train), test=_name(test), **both)
        names, trained_names = few(unknown), few(list(trained))
        raise RequestError(
            "data.untrained_classes", train=_name(train), test=_name(test), names=names, trained=trained_names
        )
    return np.where(test.labels == NO_LABEL, NO_LABEL, numbers[test.labels])


def uneven_classes(train: Labelled, test: Labelled) -> UnevenClasses | None:
    """Classes that only one of the splits has images of, and those with one training image; None if there are none."""
    names = [
        {name: int(count) for name, count in zip(one.class_names, _counts(one), strict=True) if count}
        for one in (train, test)
    ]
    untested = tuple(name for name in names[0] if name not in names[1])
    untrained = tuple(name for name in names[1] if name not in names[0])
    single = tuple(name for name, count in names[0].items() if count == 1)
    if not (untested or untrained or single):
        return None
    return UnevenClasses(train=_name(train), test=_name(test), untested=untested, untrained=untrained, single=single)


def _counts(split: Labelled) -> NDArray[np.int64]:
    """[C] images of each class."""
    labels = np.asarray(split.labels)
    return np.bincount(labels[labels != NO_LABEL], minlength=len(split.class_names))


def _folded(name: str) -> str:
    """A name without its case and Unicode form."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold()).strip()


def _name(split: Labelled) -> str:
    return f"{split.name}/{split.split}"
