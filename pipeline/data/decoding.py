"""Encoded bytes or stored pixels become RGB images, in the same way for all sources, by a `PixelRule`.

* Transparent pixels are seen before the background of the rule. An image with an alpha channel that is opaque everywhere is as one
  without. CMYK is converted without a colour profile, as `convert("RGB")` of torchvision's and timm's loaders does.
* The EXIF orientation is **not** applied by default, as there, so that published numbers stay comparable. TIFF files are always
  turned as they say: Pillow does that as it reads them.
* Grey values of 16 bits are scaled to 8 bits from 0 to 65,535, or from the range of the rule; those of 32 bits and floats need one.
* Only the formats below are opened: Pillow has readers for others that start programs, such as Ghostscript for EPS.

Pillow does not compare the checksums in PNG files, so a damaged or unwritten end would be decoded as black; they are compared here.
"""

from __future__ import annotations

import io
import re
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from .pixels import DROP, JPEG, MOST_PIXELS, PixelRule, as_bytes

FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")  # of `folder.EXTENSIONS`; Pillow calls PGM PPM
LARGEST_RATIO = 256
"""Of the sides of an image: models resize the shorter side, so one of 1 x 20,000 pixels would take gigabytes."""
FEW_LEVELS = 16
_PNG = b"\x89PNG\r\n\x1a\n"
_ORIENTATION = 0x0112  # of EXIF
_TURNS = (
    Image.Transpose.FLIP_LEFT_RIGHT,  # 2
    Image.Transpose.ROTATE_180,
    Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
)
_OPENING = threading.Lock()  # Pillow's limit is one for the process


def decode_rgb(stored: bytes | NDArray[np.uint8], rule: PixelRule) -> tuple[Image.Image, str]:
    """The RGB image of encoded bytes, or of pixels [H, W] or [H, W, 3], and what `changes_of` says of it."""
    if not isinstance(stored, bytes):
        return to_rgb(Image.fromarray(stored), rule), changes_of(stored, rule)
    with _opened(stored) as image:
        depth = _depth_of(image)
        changes = _changes(image, rule, depth)
        return to_rgb(image, rule, depth), changes


@dataclass(frozen=True)
class _Depth:
    """What Pillow forgets of a file once it reads the pixels.

    Attributes:
        most: largest grey value, which Pillow scales to 65,535.
        has_deep_colours: whether it has several bands of 16 bits, of which Pillow reads the upper 8.
    """

    most: int = 65535
    has_deep_colours: bool = False


def _depth_of(image: Image.Image) -> _Depth:
    of_tiles = [tile[3] for tile in getattr(image, "tile", ())]
    most = [one[1] for one in of_tiles if image.format == "PPM" and isinstance(one, tuple)]
    if _is_deep(image):
        return _Depth(most=most[0] if most and image.mode == "I" else 65535)
    return _Depth(has_deep_colours=any(one > 255 for one in most) or any(";16" in str(one) for one in of_tiles))


def to_rgb(image: Image.Image, rule: PixelRule, depth: _Depth | None = None) -> Image.Image:
    """The RGB image of one of any mode, and of this depth, which is known before its pixels are read.

    Raises:
        ValueError: it is too large or too narrow, or nothing says which of its values are black and white.
    """
    width, height = image.size
    if width * height > rule.max_pixels:
        raise ValueError(f"{width} x {height} pixels: more than {rule.max_pixels:,}")
    if max(width, height) > LARGEST_RATIO * min(width, height):
        raise ValueError(f"{width} x {height} pixels: one side is more than {LARGEST_RATIO} times the other")
    depth = depth or _depth_of(image)
    if rule.range is not None and depth.has_deep_colours:
        raise ValueError("colours of 16 bits, of which the upper 8 are read: a range is for grey images")
    turn = _turn_of(image, rule)
    if _is_deep(image):
        rgb = Image.fromarray(_deep_as_bytes(image, rule, depth.most)).convert("RGB")
    elif rule.background != DROP and _is_transparent(image):
        ground = Image.new("RGBA", image.size, rule.background)
        rgb = Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
    elif image.mode == "P" and "transparency" in image.info:
        rgb = image.convert("RGBA").convert("RGB")  # the pixels of convert("RGB"), without Pillow's warning
    else:
        rgb = image.convert("RGB")
    return rgb if turn is None else rgb.transpose(turn)


def changes_of(stored: bytes | memoryview | NDArray[Any], rule: PixelRule) -> str:
    """The parts of a rule that decide the pixels of this image, as its row hash has them; "" for none.

    None decides those of an image that is opaque, of 8 bits, upright and of a usual size, nor of one that cannot be decoded. Only
    images with an alpha channel are decoded here.
    """
    if isinstance(stored, np.ndarray):
        return _size_change(stored.shape[1], stored.shape[0], rule)
    if rule.keeps_jpegs and (stored[: len(JPEG)] == JPEG or _is_plain_png(stored)):
        return ""  # nearly every image
    try:
        with _opened(bytes(stored)) as image:
            return _changes(image, rule, _depth_of(image))
    except MemoryError:
        raise
    except Exception:  # damaged bytes make Pillow raise anything; `decode_rgb` gives the reason
        return ""


def _changes(image: Image.Image, rule: PixelRule, depth: _Depth) -> str:
    size = _size_change(*image.size, rule)
    if image.width * image.height > rule.max_pixels:
        return size
    if _is_deep(image):
        is_ranged = rule.range is not None or _needs_range(image)
    else:
        is_ranged = rule.range is not None and depth.has_deep_colours
    parts = [size, f"range={rule.range}" if is_ranged else ""]
    if _turn_of(image, rule) is not None:
        parts.append("exif_orientation")
    if rule.background != DROP and not _is_deep(image) and _is_transparent(image):
        parts.append(f"background={rule.background}")
    return " ".join(filter(None, parts))


def _size_change(width: int, height: int, rule: PixelRule) -> str:
    fits, fits_usually = (width * height <= most for most in (rule.max_pixels, MOST_PIXELS))
    return "" if fits == fits_usually else "large" if fits else "too large"


def _is_plain_png(stored: bytes | memoryview) -> bool:
    """Whether it is a PNG file without transparency, of 8 bits at most."""
    if stored[: len(_PNG)] != _PNG or len(stored) < 26 or stored[24] > 8 or stored[25] not in (0, 2, 3):
        return False  # bits, and grey, RGB or palette
    place = len(_PNG)
    while (kind := bytes(stored[place + 4 : place + 8])) not in (b"IDAT", b"tRNS", b""):
        place += int.from_bytes(stored[place : place + 4], "big") + 12
    return kind == b"IDAT"


def _is_deep(image: Image.Image) -> bool:
    """Whether it is a grey image of more than 8 bits."""
    return image.mode == "F" or image.mode.startswith("I")


def _needs_range(image: Image.Image) -> bool:
    """Whether a deep image has other values than 0 to 65,535; Pillow opens some of 16 bits as "I", which holds 32."""
    return image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM"))


def _deep_as_bytes(image: Image.Image, rule: PixelRule, most: int) -> NDArray[np.uint8]:
    if rule.range is None and _needs_range(image):
        raise ValueError("values of 32 bits or floats, of which nothing says what is black and white: ?range=LOW,HIGH")
    values = np.asarray(image)
    if rule.range is None:
        return (values.astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8)
    if most < 65535:  # Pillow has scaled the values of the file to 16 bits
        values = (values * (most / 65535)).round()
    return as_bytes(values, rule.range)


def _is_transparent(image: Image.Image) -> bool:
    """Whether a pixel is not opaque."""
    has_band = image.getbands()[-1] in "Aa"
    if not has_band and "transparency" not in image.info:
        return False
    alpha = image.getchannel(image.getbands()[-1]) if has_band else image.convert("RGBA").getchannel("A")
    lowest, _ = alpha.getextrema()
    return int(lowest) < 255  # type: ignore[arg-type]  # a channel has numbers


def _turn_of(image: Image.Image, rule: PixelRule) -> Image.Transpose | None:
    if not rule.exif_orientation or image.format == "TIFF":  # which Pillow has turned
        return None
    orientation = image.getexif().get(_ORIENTATION, 1)
    return _TURNS[orientation - 2] if orientation in range(2, 9) else None


@contextmanager
def _opened(stored: bytes) -> Iterator[Image.Image]:
    if not stored:
        raise ValueError("no bytes")
    if stored.startswith(_PNG):
        _check_png(stored)
    with _OPENING:
        usual, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # the rule has the limit
        try:
            opened = Image.open(io.BytesIO(stored), formats=FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = usual
    with opened as image:
        yield image


def is_flat(image: Image.Image) -> bool:
    """Whether an RGB image has fewer than 16 levels of brightness in each band: a single colour, or deep values cut to 8 bits.

    >>> is_flat(Image.new("RGB", (50, 40), "navy")), is_flat(Image.linear_gradient("L").convert("RGB"))
    (True, False)
    """
    # nearly every image has more levels in a few of its pixels
    return _spread(image.resize((16, 16), Image.Resampling.NEAREST)) < FEW_LEVELS and _spread(image) < FEW_LEVELS


def _spread(image: Image.Image) -> int:
    return int(np.ptp(image.getextrema(), axis=1).max())


def _check_png(stored: bytes) -> None:
    """Raise ValueError unless the file is whole and the checksums of its chunks are right."""
    view, place = memoryview(stored), len(_PNG)
    while True:
        length, kind = int.from_bytes(view[place : place + 4], "big"), bytes(view[place + 4 : place + 8])
        end = place + 12 + length
        if end > len(view):
            raise ValueError(f"the PNG file ends in the chunk at byte {place}")
        if zlib.crc32(view[place + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            raise ValueError(f"the PNG chunk at byte {place} fails its checksum")
        if kind == b"IEND":
            return
        place = end


def failure_reason(error: Exception) -> str:
    """Why an image failed, in words that are the same on every run: no addresses, no absolute paths."""
    if isinstance(error, UnidentifiedImageError):
        return f"bytes in none of the formats {', '.join(FORMATS)}"
    if isinstance(error, OSError) and error.strerror and error.filename:
        return error.strerror
    return re.sub(r" at 0x[0-9a-fA-F]+", "", str(error)) or type(error).__name__
