"""Images that a Python program holds: arrays, PIL images, encoded bytes, paths, or the items of a torch data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerbank.cache.index import read_whole

from ..errors import RequestError
from .image_source import NO_LABEL, ImageSource
from .pixels import PixelRule, as_bytes
from .task_of_values import matrix_of


class MemorySource(ImageSource):
    """Images by number; see `layerbank.images_from`.

    Args:
        items: N images, or pairs of an image and a label, by number.
        labels: [N] classes or numbers, or [N, K] of them; None where items are pairs, or there are none.
        name, split: names of the data.
        ids: N sample ids; None numbers them.
        class_names: names of the classes, in the order of their numbers; None takes the labels themselves.
        pairs: whether items are pairs of an image and a label.
    """

    def __init__(
        self,
        items: Any,
        labels: Sequence[Any] | NDArray[Any] | None,
        *,
        name: str,
        split: str,
        ids: Sequence[str] | None,
        class_names: Sequence[str] | None,
        pairs: bool,
    ) -> None:
        num_images = len(items)
        if not num_images:
            raise RequestError("data.no_items", name=name)
        self._items, self._pairs = items, pairs
        if labels is None and pairs:
            labels = _labels_of(items)
        numbers, names = _classes(labels, class_names, num_images, name)
        super().__init__(
            name=name,
            split=split,
            ids=[f"{number}" for number in range(num_images)] if ids is None else list(ids),
            labels=numbers,
            class_names=names,
            sizes=np.zeros(num_images, dtype=np.int64),
        )
        if len(self.ids) != num_images:
            raise RequestError("data.number_of_ids", name=name, images=num_images, ids=len(self.ids))

    def read(self, row: int) -> bytes | NDArray[np.uint8]:
        item = self._items[row]
        return stored_image(item[0] if self._pairs else item, f"{self.name}[{row}]", self.pixel_rule)

    def file_of(self, row: int) -> str:
        return f"item {row} of {self.name}"


def _labels_of(items: Any) -> Sequence[Any]:
    """The labels of the items of a torch data set, one by one: its `targets` need not be those, after a `target_transform`, say."""
    labels = [np.asarray(items[row][1]) for row in range(len(items))]
    return [label.item() if label.ndim == 0 else label for label in labels]


def _classes(
    labels: Sequence[Any] | NDArray[Any] | None, class_names: Sequence[str] | None, num_images: int, name: str
) -> tuple[NDArray[Any], list[str]]:
    """Labels and class names as `ImageSource` takes them; labels that are names are numbered in sorted order."""
    if labels is None and class_names is not None:
        raise RequestError("data.number_of_labels", name=name, images=num_images, shape="none")
    if labels is None:
        return np.full(num_images, NO_LABEL), []
    if class_names is not None and (twice := [one for one in class_names if list(class_names).count(one) > 1]):
        raise RequestError("data.class_names_twice", twice=", ".join(dict.fromkeys(twice)))
    try:
        values = np.asarray(labels)
    except ValueError:  # lists of different lengths
        values = np.asarray(list(labels), dtype=object)
    if values.ndim == 2 and len(values) == num_images and values.shape[1] > 1 and values.dtype.kind in "iubf":
        if class_names is not None and len(class_names) != values.shape[1]:
            raise RequestError("data.number_of_labels", name=name, images=num_images, shape=list(values.shape))
        return matrix_of(values, class_names or [])
    if values.shape != (num_images,):
        raise RequestError("data.number_of_labels", name=name, images=num_images, shape=list(values.shape))
    if values.dtype.kind in "iub" and class_names is not None:
        numbers = values.astype(np.int64)
        if numbers.min() < 0 or numbers.max() >= len(class_names):
            low, high = int(numbers.min()), int(numbers.max())
            raise RequestError("data.label_out_of_range", name=name, low=low, high=high, count=len(class_names))
        return numbers, list(class_names)
    if values.dtype.kind == "f" and class_names is None:
        return values.astype(np.float64), []
    if values.dtype.kind not in "iubU":
        raise RequestError("data.labels_of_other_type", name=name, dtype=values.dtype)
    if values.dtype.kind in "iu" and not 0 <= values.min() <= values.max() < 2**63:
        label = values.min() if values.min() < 0 else values.max()
        raise RequestError("data.negative_class_number", name=name, label=label)
    known = sorted(set(values.tolist())) if class_names is None else list(class_names)
    number_of = {value: number for number, value in enumerate(known)}
    if foreign := [value for value in values.tolist() if value not in number_of]:
        raise RequestError("data.label_without_name", name=name, label=foreign[0], names=", ".join(map(str, known[:8])))
    return np.array([number_of[value] for value in values.tolist()]), [str(value) for value in known]


def stored_image(image: Any, place: str, rule: PixelRule) -> bytes | NDArray[np.uint8]:
    """Encoded bytes, or uint8 pixels [H, W] or [H, W, 3], of other arrays and of PIL images by a rule.

    Raises:
        RequestError: something that is no image, or numbers of another dtype without a range.
        ValueError: a PIL image of values without a range, or numbers that are not finite.
    """
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | Path):
        return read_whole(image)[0]
    if hasattr(image, "convert"):  # a PIL image
        from .decoding import to_rgb

        return np.asarray(to_rgb(image, rule))
    values = np.asarray(image)
    if rule.range is not None and values.dtype.kind in "uif":
        values = as_bytes(values, rule.range)
    is_torch = hasattr(image, "permute")
    if is_torch and values.ndim == 3:
        values = values.transpose(1, 2, 0)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.dtype != np.uint8 or values.ndim not in (2, 3) or values.shape[2:] not in ((), (3,)):
        raise RequestError("data.not_an_image", place=place, dtype=values.dtype, shape=list(np.shape(image)))
    return np.ascontiguousarray(values)
