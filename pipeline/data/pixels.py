"""Which pixels an image has: the ground under transparent ones, the range of deep values, EXIF orientation, the size limit.

The decision taken here: a rule is part of the row hash of the images whose pixels it changes, and of no other's. So opaque 8-bit
images have one row under every rule, and what was stored before there were rules is what `LEGACY` gives. `decoding` applies a rule.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError

JPEG = b"\xff\xd8\xff"
"""The first bytes of a JPEG file."""
DROP = "drop"
"""Not a ground: transparency is ignored, and the colours below it are seen."""
COLOURS = {"white": "#ffffff", "black": "#000000"}
MOST_PIXELS = 2 * 89_478_485
"""Of an image: above this Pillow suspects an attack."""

Range = tuple[float, float]
"""The values of black and white."""


@dataclass(frozen=True, kw_only=True)
class PixelRule:
    """How stored images become pixels.

    Args:
        background: `white`, `black` or `#rrggbb`, the colour under transparent pixels; or `drop`, which ignores transparency.
        range: the values of black and white in images of more than 8 bits; None takes 0 to 65,535 for 16 bits and refuses others.
        exif_orientation: whether images are turned as their EXIF data say.
        max_pixels: width x height above which an image is refused.

    Raises:
        RequestError: another background.

    >>> PixelRule(background="white") == PixelRule(background="#FFFFFF")
    True
    """

    background: str = "white"
    range: Range | None = None
    exif_orientation: bool = False
    max_pixels: int = MOST_PIXELS

    def __post_init__(self) -> None:
        colour = COLOURS.get(self.background, self.background.lower())
        if colour != DROP and not re.fullmatch("#[0-9a-f]{6}", colour):
            raise RequestError("data.bad_background", background=repr(self.background))
        object.__setattr__(self, "background", colour)

    @property
    def text(self) -> str:
        """The rule as one line; equal rules have equal lines."""
        return " ".join(f"{name}={value}" for name, value in asdict(self).items())

    @cached_property
    def keeps_jpegs(self) -> bool:
        """Whether it changes the pixels of no JPEG file, which has neither transparency nor deep values."""
        return not self.exif_orientation and self.max_pixels == MOST_PIXELS

    def within(self, declared: Range | None) -> PixelRule:
        """The rule for data that declare a range of their own."""
        return self if declared is None else replace(self, range=declared)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


USUAL = PixelRule()
LEGACY = PixelRule(background=DROP)
"""What every image was decoded by before there were rules."""


def recorded_rule(request: Mapping[str, Any]) -> PixelRule:
    """The rule in a request that a store or a saved probe records.

    Raises:
        TypeError: it is none that `PixelRule.to_dict` wrote.
    """
    if "pixels" not in request:
        return LEGACY
    try:
        values = dict(request["pixels"])
        if (limits := values.get("range")) is not None:
            low, high = limits
            values["range"] = (float(low), float(high))
        return PixelRule(**values)
    except (ValueError, AttributeError) as error:
        raise TypeError(str(error)) from None


def parse_range(data: str, options: Mapping[str, str]) -> Range | None:
    """The values of black and white that `?range=0,4095` declares; None without it.

    Raises:
        RequestError: no two rising numbers.
    """
    if "range" not in options:
        return None
    try:
        low, high = (float(one) for one in options["range"].split(","))
    except ValueError:
        low = high = math.nan
    return require_range(data, low, high, given=repr(options["range"]))


def require_range(data: str, low: float, high: float, *, given: str) -> Range:
    """The values of black and white.

    Raises:
        RequestError: they are not finite, or do not rise.
    """
    if not -math.inf < low < high < math.inf:
        raise RequestError("data.bad_range", data=data, range=given)
    return low, high


def as_bytes(values: NDArray[Any], limits: Range) -> NDArray[np.uint8]:
    """Pixels of 8 bits from values between black and white; values outside are cut.

    Raises:
        ValueError: NaN or infinity.
    """
    low, high = limits
    scaled = (values.astype(np.float64) - low) * (255 / (high - low))
    if not np.isfinite(scaled).all():
        raise ValueError("a value that is no finite number")
    return scaled.round().clip(0, 255).astype(np.uint8)
