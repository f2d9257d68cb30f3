"""Data from a URI or from Python objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ..data.image_source import ImageSource
from ..data.in_memory import MemorySource, stored_image
from ..data.pixels import MOST_PIXELS, PixelRule, Range, require_range
from ..data.sources import check_split, open_source
from ..errors import RequestError
from ..jobs.job import Positive, typed_value
from .arguments import names_from
from .progress import Progress, listening


def open_images(
    uri: str,
    split: str = "train",
    *,
    background: str = "white",
    exif_orientation: bool = False,
    max_pixels: int = MOST_PIXELS,
    progress: Progress = True,
) -> ImageSource:
    """Open the images of one split of a data set.

    Args:
        uri: `scheme:address`, as for `--data` on the command line: `folder:photos`, `wds:DIR`, `demo:digits`, ...
        split: name of the split.
        background: the ground of transparent images: "white", "black" or "#rrggbb"; "drop" ignores transparency.
        exif_orientation: whether images are turned as their EXIF data say; TIFF files always are.
        max_pixels: width x height above which an image counts as one that cannot be read.
        progress: of the copy of data behind a URL: True shows it, False does not, a function is called with every event.

    Returns:
        N images with their ids, labels and class names; nothing is decoded yet.

    Raises:
        RequestError: an unknown scheme, no such data or split, data that cannot be used as they are, or an unknown background.

    >>> import layerbank as lb
    >>> images = lb.open_images("demo:digits?train=40&test=20", split="train")
    >>> len(images), images.class_names[:3]
    (40, ['0', '1', '2'])
    """
    typed_value(uri, str, "open_images", "uri")
    typed_value(split, str, "open_images", "split")
    pixels = _rule_from("open_images", background, exif_orientation, max_pixels)
    with listening(progress) as on_event:
        return open_source(uri, split, on_event, pixels=pixels)


def images_from(
    images: Any,
    labels: Sequence[Any] | NDArray[Any] | None = None,
    *,
    class_names: Sequence[str] | None = None,
    ids: Sequence[str] | None = None,
    name: str = "images",
    split: str = "train",
    background: str = "white",
    value_range: tuple[float, float] | None = None,
    exif_orientation: bool = False,
    max_pixels: int = MOST_PIXELS,
) -> ImageSource:
    """Take images from Python: arrays, PIL images, encoded bytes, paths, or a torch `Dataset` of pairs.

    Args:
        images: a sequence of N images, each uint8 [H, W] or [H, W, 3], a uint8 tensor [3, H, W], a PIL image, encoded bytes or a
            path; with `value_range` arrays and tensors of any dtype; or a data set whose items are (image, label). A data set must
            give the same item every time: images are known by their content, and one that changes while tokens are computed
            stops the work.
        labels: [N] class numbers or names; None takes the labels of the pairs.
        class_names: C names; needed where labels are numbers that do not all occur.
        ids: N distinct names; None numbers the images.
        name, split: names of the data, for people and for the folders of results.
        value_range: the values of black and white in arrays, and in images of more than 8 bits; None takes arrays of uint8, and
            0 to 65,535 for images of 16 bits.
        background, exif_orientation, max_pixels: as of `open_images`.

    Raises:
        RequestError: one image in place of several, something that is no image, numbers of labels or ids that do not fit, labels
            that are neither class numbers nor names, class names that are not distinct, or a split that is no name.

    >>> import numpy as np, layerbank as lb
    >>> pixels = np.zeros((4, 32, 32, 3), np.uint8)
    >>> images = lb.images_from(pixels, ["cat", "dog", "cat", "dog"])
    >>> images.class_names, images.labels.tolist()
    (['cat', 'dog'], [0, 1, 0, 1])
    """
    where = "images_from"
    for argument, value in (("name", name), ("split", split)):
        typed_value(value, str, where, argument)
    check_split(name, split)
    if (
        isinstance(images, str | bytes | Path | Mapping)
        or not hasattr(images, "__getitem__")
        or not hasattr(images, "__len__")
    ):
        raise RequestError("api.not_images", got=type(images).__name__)
    first: Any = images[0] if len(images) else None
    pairs = labels is None and isinstance(first, tuple | list) and len(first) == 2
    rule = _rule_from(where, background, exif_orientation, max_pixels)
    if value_range is not None:
        rule = rule.within(_range_from(value_range))
    _check_first(images, first[0] if pairs else first, name, rule)
    ids, class_names = names_from(ids, where, "ids"), names_from(class_names, where, "class_names")
    source = MemorySource(images, labels, name=name, split=split, ids=ids, class_names=class_names, pairs=pairs)
    source.value_range, source.pixel_rule = rule.range, rule
    return source


def _rule_from(where: str, background: Any, exif_orientation: Any, max_pixels: Any) -> PixelRule:
    return PixelRule(
        background=typed_value(background, str, where, "background"),
        exif_orientation=typed_value(exif_orientation, bool, where, "exif_orientation"),
        max_pixels=typed_value(max_pixels, Positive, where, "max_pixels"),
    )


def _range_from(limits: Any) -> Range:
    values = typed_value(limits, tuple[float, float], "images_from", "value_range")
    return require_range("images_from, value_range", *values, given=repr(limits))


def _check_first(images: Any, first: Any, name: str, rule: PixelRule) -> None:
    """Refuse arrays that are no images, and one image in place of several."""
    if not hasattr(first, "shape"):
        return
    shape = tuple(getattr(images, "shape", ()))
    colours = shape[0] if hasattr(images, "permute") else shape[-1] if shape else 0
    if len(shape) == 2 or (len(shape) == 3 and colours in (3, 4)):
        raise RequestError("api.not_images", got=f"one image of shape {list(shape)}")
    stored_image(first, f"{name}[0]", rule)
