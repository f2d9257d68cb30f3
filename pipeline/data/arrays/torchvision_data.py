"""`torchvision:NAME?root=DIR`: a data set of torchvision that lies on the disk. Nothing is downloaded.

Images are decoded by torchvision and known by their pixels, so they are decoded once more to identify them. Ids are their numbers.
A data set without splits has a fraction of each class held out with `?split=0.2`; other options are arguments of its class.
"""

from __future__ import annotations

import inspect
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import RequestError, advice, first_line
from ...quantities import whole_number
from ..image_source import ImageSource
from ..in_memory import MemorySource
from ..patterns import no_such_split, parse_options
from ..sources import DataSource
from ..tables.split_column import WHOLE, parse_held_out, rows_held_out

OWN = ("root", "split", "seed")
NOT_ASKED = {
    "self",
    "root",
    "split",
    "train",
    "download",
    "transform",
    "target_transform",
    "transforms",
    "kwargs",
    "loader",
}
DATA_SETS = (
    *(
        "CIFAR10",
        "CIFAR100",
        "MNIST",
        "FashionMNIST",
        "KMNIST",
        "QMNIST",
        "SVHN",
        "USPS",
        "STL10",
        "SEMEION",
        "ImageFolder",
    ),
    *("Caltech101", "Caltech256", "CLEVRClassification", "Country211", "DTD", "EuroSAT", "FGVCAircraft", "Flowers102"),
    *(
        "Food101",
        "GTSRB",
        "Imagenette",
        "ImageNet",
        "INaturalist",
        "OxfordIIITPet",
        "PCAM",
        "Places365",
        "RenderedSST2",
    ),
    *("StanfordCars", "SUN397"),
)
"""Data sets of one class an image, which read images, numbers and texts, or check a pickle's digest first; LSUN would unpickle a
file of the current folder."""
LABELS = ("targets", "labels", "_labels")  # where data sets keep them; of others every item is decoded


def open_torchvision(address: str, split: str) -> ImageSource:
    """The images of one split.

    Raises:
        RequestError: no such data set, no data in `root`, another split, or images without one class each.
    """
    from torchvision import datasets  # type: ignore[import-untyped]

    name = address.partition("?")[0]
    if name not in DATA_SETS or not hasattr(datasets, name):
        raise RequestError("data.unknown_torchvision_data", name=name, advice=advice(name, DATA_SETS))
    kind: Any = getattr(datasets, name)
    arguments = inspect.signature(kind.__init__).parameters
    known = [*OWN, *(one for one in arguments if one not in NOT_ASKED)]
    _, options = parse_options("torchvision", address, known)
    if not options.get("root"):
        raise RequestError("data.no_torchvision_root", name=name)
    root, data = os.path.expanduser(options["root"]), f"torchvision:{address}"
    given: dict[str, Any] = {}
    for one in options.keys() - {*OWN}:
        given[one] = options[one] if (number := whole_number(options[one])) is None else number
    has_splits = "split" in arguments or "train" in arguments
    held_out = parse_held_out(options, data, has_splits=has_splits, has_columns=False)
    if "split" in arguments:
        given["split"] = split
    elif "train" in arguments:
        if split not in ("train", "test"):
            raise no_such_split(data, split, root, ["train", "test"])
        given["train"] = split == "train"
    elif held_out is None and split != WHOLE:
        raise RequestError("data.no_torchvision_split", data=data, split=split)
    try:
        dataset = kind(root, **given)
    except Exception as error:  # damaged files make the classes raise anything: struct.error, EOFError, KeyError
        reason = first_line(error)
        raise RequestError("data.torchvision_failed", name=name, split=split, root=root, reason=reason) from error
    labels = _labels_of(dataset, has_arguments=not options.keys() <= {*OWN})
    rows = np.arange(len(labels))
    if held_out is not None:
        rows = rows_held_out([str(row) for row in rows], labels.tolist(), split, held_out, data=data)
    return _TorchvisionSource(name, dataset, rows, labels[rows], split)


class _TorchvisionSource(MemorySource):
    """Some rows of a data set."""

    def __init__(self, name: str, dataset: Any, rows: NDArray[np.int64], labels: NDArray[Any], split: str) -> None:
        from torch.utils.data import Subset

        super().__init__(
            Subset(dataset, rows.tolist()),
            labels,
            name=name,
            split=split,
            ids=[str(row) for row in rows.tolist()],
            class_names=_class_names(dataset, labels),
            pairs=True,
        )


def _labels_of(dataset: Any, *, has_arguments: bool) -> NDArray[Any]:
    """[N] labels as the items have them; arguments such as `target_types` may ask for others than the data set keeps."""
    for name in () if has_arguments else LABELS:
        kept = getattr(dataset, name, None)
        if kept is not None and np.shape(kept)[:1] == (len(dataset),):
            return np.asarray(kept)
    return np.asarray([dataset[row][1] for row in range(len(dataset))])


def _class_names(dataset: Any, labels: NDArray[Any]) -> list[str] | None:
    """The names that a data set gives its classes, if each class has one of its own."""
    names = getattr(dataset, "classes", None)
    if not (isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)):
        return None
    fits = (
        labels.dtype.kind in "iu" and len(set(names)) == len(names) and labels.min() >= 0 and labels.max() < len(names)
    )
    return list(names) if fits else None


TORCHVISION = DataSource(
    form="torchvision:NAME?root=DIR",
    meaning="a data set of torchvision on the disk; nothing is downloaded",
    example="torchvision:CIFAR10?root=data",
    open=open_torchvision,
)
