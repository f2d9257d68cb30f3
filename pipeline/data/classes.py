"""The classes of a training and a test split, which have no group in common.

A source knows the classes of its own split. Those of the training split decide what a probe can answer: the labels of the test
split become their numbers by name, whatever numbers they had.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError
from ..events import OnEvent, UnevenClasses, ignore
from ..quantities import few, whole_number
from .image_source import NO_LABEL, ImageSource
from .splits.parts import Part
from .splits.split_record import SplitRecord
from .task_names import MULTILABEL, REGRESSION

Labelled = ImageSource | Part | SplitRecord


def match_classes(train: ImageSource | Part, test: ImageSource | Part, on_event: OnEvent = ignore) -> None:
    """Give the test split the classes of the training split.

    Raises:
        RequestError: no labels, only one class to train on, test images of a class without training images, or a common group.
    """
    test.labels = labels_by_name(train, test)
    test.class_names = list(train.class_names)
    require_groups_apart(train, test)
    if uneven := uneven_classes(train, test):
        on_event(uneven)


def labels_by_name(train: Labelled, test: Labelled) -> NDArray[Any]:
    """The labels of the test images as those of the training split: numbers of its classes, its columns of several labels.

    Raises:
        RequestError: as `match_classes`; or two classes have one name, and the splits do not name the same classes in one order.
    """
    if {train.task, test.task} & {MULTILABEL, REGRESSION}:
        return _columns_by_name(train, test)
    for one in (train, test):
        if not one.class_names:
            raise RequestError("data.unlabelled_images", data=_name(one))
    trained, tested = (_counts(one) > 0 for one in (train, test))
    if np.count_nonzero(trained) < 2:
        raise RequestError("data.one_class", data=_name(train), names=few(_chosen(train, trained)))
    numbers = _numbers(train, test)
    is_trained = np.append(trained, False)[numbers]  # the last one stands for NO_LABEL, -1
    unknown = _chosen(test, tested & ~is_trained)
    if not unknown:
        return np.where(test.labels == NO_LABEL, NO_LABEL, numbers[test.labels])
    both = {"train": _name(train), "test": _name(test)}
    alike = {folded(name): name for name in _chosen(train, trained)}
    for name in unknown:
        if (other := alike.get(folded(name), name)) != name:
            raise RequestError("data.look_alike_classes", **both, trained=ascii(other), tested=ascii(name))
    raise RequestError("data.untrained_classes", **both, names=few(unknown), trained=few(_chosen(train, trained)))


def _columns_by_name(train: Labelled, test: Labelled) -> NDArray[Any]:
    """The numbers or labels of the test images, in the order of the columns of the training split."""
    sizes = [one.labels.shape[1:] for one in (train, test)]
    names = [list(one.class_names) for one in (train, test)]
    if train.task != test.task or sizes[0] != sizes[1] or sorted(names[0]) != sorted(names[1]):
        found = [few([one.task, *one.class_names], 8) for one in (train, test)]
        raise RequestError(
            "data.other_targets", train=_name(train), test=_name(test), trained=found[0], tested=found[1]
        )
    return test.labels[:, [names[1].index(name) for name in names[0]]] if names[0] else test.labels


def uneven_classes(train: Labelled, test: Labelled) -> UnevenClasses | None:
    """Classes that only one of the splits has images of, and those with one training image; None if there are none."""
    if train.task in (MULTILABEL, REGRESSION):
        return None
    counts = _counts(train)
    of_train, of_test = _chosen(train, counts > 0), _chosen(test, _counts(test) > 0)
    untested = tuple(name for name in of_train if name not in set(of_test))
    untrained = tuple(name for name in of_test if name not in set(of_train))
    single = tuple(_chosen(train, counts == 1))
    if not (untested or untrained or single):
        return None
    return UnevenClasses(train=_name(train), test=_name(test), untested=untested, untrained=untrained, single=single)


def look_alikes(split: Labelled) -> tuple[str, ...]:
    """Classes with images whose names differ in case, spaces, Unicode form or leading zeros alone, next to each other."""
    names = set(_chosen(split, _counts(split) > 0))  # two classes of exactly one name are meant to be two
    counts = Counter(map(folded, names))
    return tuple(sorted((name for name in names if counts[folded(name)] > 1), key=lambda name: (folded(name), name)))


def require_groups_apart(train: ImageSource | Part, test: ImageSource | Part) -> None:
    """Raise RequestError if two splits have images of one group."""
    if train.groups is None or test.groups is None:
        return
    both, of_train, of_test = np.intersect1d(train.groups, test.groups, return_indices=True)
    if len(both):
        values = {"count": len(both), "trained": train.ids[of_train[0]], "tested": test.ids[of_test[0]]}
        raise RequestError("data.groups_in_both_splits", train=_name(train), test=_name(test), **values)


def _numbers(train: Labelled, test: Labelled) -> NDArray[np.int64]:
    """[C of the test split] number of each class in the training split; NO_LABEL for one that it does not name."""
    names, others = list(train.class_names), list(test.class_names)
    if names == others:  # of 1,000 class names of ImageNet, some are given twice
        return np.arange(len(names))
    number_of = {name: number for number, name in enumerate(names)}
    for one, of_one in ((train, names), (test, others)):
        if len(set(of_one)) < len(of_one):
            twice = [name for name, count in Counter(of_one).items() if count > 1]
            raise RequestError("data.ambiguous_classes", data=_name(one), names=few(twice))
    return np.array([number_of.get(name, NO_LABEL) for name in others])


def _chosen(split: Labelled, chosen: NDArray[np.bool_]) -> list[str]:
    return [split.class_names[number] for number in np.flatnonzero(chosen).tolist()]


def _counts(split: Labelled) -> NDArray[np.int64]:
    """[C] images of each class."""
    labels = np.asarray(split.labels)
    if labels.ndim > 1 or labels.dtype.kind == "f":
        return np.count_nonzero(labels == 1, axis=0) if split.class_names else np.zeros(0, dtype=np.int64)
    return np.bincount(labels[labels != NO_LABEL], minlength=len(split.class_names))


def folded(name: str) -> str:
    """A name without its case, spaces, invisible characters, Unicode form, and the leading zeros of a number.

    >>> folded("Great\u00a0 Tit\u200b"), folded("\uff26ood"), folded("007"), folded("0")
    ('great tit', 'food', '7', '0')
    """
    letters = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    visible = "".join(one for one in letters if unicodedata.category(one) != "Cf")
    plain = " ".join(visible.split())
    return str(number) if (number := whole_number(plain)) is not None else plain


def _name(split: Labelled) -> str:
    return f"{split.name}/{split.split}"
