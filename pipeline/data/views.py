"""Augmented views of an image: view 0 is the image as the model evaluates it, view v > 0 a random crop of it, mirrored at random.

The seed of a view depends on the image's content hash and the view's number alone, not on names, on the order of work or on how
many views there are, so the first views of a larger number equal those of a smaller one.

A source returns images, not pixels at the model's size, so this module only draws the box of a view;
`extraction/decoding.py` crops it.
"""

from __future__ import annotations

import math
import random
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..errors import RequestError

VIEW_RULE = "2"
"""Version of drawing and cropping a view, part of a cache's identity: raise it when any view changes."""

MOST_VIEWS = 65_535  # a store keeps the number of a view in 16 bits
RATIOS = (3 / 4, 4 / 3)
ATTEMPTS = 10
VIEW_SEED = "layerbank.view"
"""Key of an image's `info` for the seed of its view."""


@dataclass(frozen=True, kw_only=True)
class ViewRule:
    """Parameters of views: torchvision's RandomResizedCrop to the model's size, then a mirror image half of the time.

    Args:
        num_views: k, augmented views an image beside the centre one, from 1 to 65,535.
        min_scale: smallest share of the image's area that a crop keeps, in (0, 1].
        flip: mirror half of the views.

    Raises:
        RequestError: a number out of its range.
    """

    num_views: int
    min_scale: float = 0.08
    flip: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.num_views <= MOST_VIEWS or not 0 < self.min_scale <= 1:
            raise RequestError("data.bad_views", num_views=self.num_views, min_scale=f"{self.min_scale:g}")

    def describe(self) -> str:
        """Canonical text of how views are drawn, part of the identity of their rows; how many there are is none.

        >>> ViewRule(num_views=4).describe()
        'views, rule 2: crop 0.08-1 of the area, ratio 3/4-4/3, to the size; mirrored 1/2'
        """
        mirrored = "; mirrored 1/2" if self.flip else ""
        crop = f"crop {self.min_scale:g}-1 of the area, ratio 3/4-4/3, to the size"
        return f"views, rule {VIEW_RULE}: {crop}{mirrored}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ViewRule:
        """The rule that `to_dict` wrote.

        Raises:
            RequestError: a key that this version does not know.
        """
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            known = ", ".join(field.name for field in fields(cls))
            raise RequestError("data.unknown_view_keys", keys=", ".join(unknown), known=known)
        return cls(**values)


def draw_view(size: tuple[int, int], rule: ViewRule, seed: int) -> tuple[tuple[int, int, int, int], bool]:
    """Draw the box of a view and whether it is mirrored.

    The area is uniform in [min_scale, 1] of the image's, the ratio of width to height log-uniform in [3/4, 4/3]; a box that does
    not fit is drawn again, up to ten times, then the middle of the image is taken at the nearest ratio: torchvision's
    RandomResizedCrop, with numbers of Python's own generator, whose stream is promised not to change.

    Args:
        size: width and height of the image in pixels.
        rule: parameters of the views.
        seed: seed of this view.

    Returns:
        left, top, right, bottom in pixels, and whether to mirror.
    """
    uniform = random.Random(seed).random
    width, height = size
    mirrored = uniform() < 0.5 and rule.flip
    for _ in range(ATTEMPTS):
        area = width * height * (rule.min_scale + (1 - rule.min_scale) * uniform())
        ratio = math.exp(math.log(RATIOS[0]) + (math.log(RATIOS[1]) - math.log(RATIOS[0])) * uniform())
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(uniform() * (width - w + 1)), int(uniform() * (height - h + 1))
            return (left, top, left + w, top + h), mirrored
    ratio = min(max(width / height, RATIOS[0]), RATIOS[1])
    w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
    left, top = (width - w) // 2, (height - h) // 2
    return (left, top, left + w, top + h), mirrored
