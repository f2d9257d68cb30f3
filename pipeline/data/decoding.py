"""Encoded bytes or stored pixels become RGB images, in the same way for all sources.

* `convert("RGB")`, as the folder loaders of torchvision and timm do: alpha is dropped, not composited, and CMYK is converted
  without a colour profile.
* The EXIF orientation is **not** applied, as there, so that published numbers stay comparable.
* Only the formats below are opened: Pillow has readers for others that start programs, such as Ghostscript for EPS.
* 16-bit grey images are scaled to 8 bits; Pillow's own conversion clips at 255, which leaves them white.

Pillow does not compare the checksums in PNG files, so a damaged or unwritten end would be decoded as black; they are compared here.
"""

from __future__ import annotations

import io
import re
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")  # of `folder.EXTENSIONS`; Pillow calls PGM PPM
LARGEST_RATIO = 256
"""Of the sides of an image: models resize the shorter side, so one of 1 x 20,000 pixels would take gigabytes."""
FEW_LEVELS = 16
_PNG = b"\x89PNG\r\n\x1a\n"


def decode_rgb(stored: bytes | NDArray[np.uint8]) -> Image.Image:
    """The RGB image of encoded bytes, or of pixels [H, W] or [H, W, 3]."""
    if not isinstance(stored, bytes):
        return to_rgb(_checked(Image.fromarray(stored)))
    if not stored:
        raise ValueError("no bytes")
    if stored.startswith(_PNG):
        _check_png(stored)
    with Image.open(io.BytesIO(stored), formats=FORMATS) as image:
        return to_rgb(_checked(image))


def _checked(image: Image.Image) -> Image.Image:
    if max(image.size) > LARGEST_RATIO * min(image.size):
        raise ValueError("{} x {} pixels: one side is more than {} times the other".format(*image.size, LARGEST_RATIO))
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """The RGB image of one of any mode."""
    if image.mode.startswith("I"):  # 16-bit grey; older Pillow opens it as 32-bit "I"
        eight_bits = np.asarray(image).astype(np.int64).clip(0, 65535) >> 8
        return Image.fromarray(eight_bits.astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")  # the pixels of convert("RGB"), without Pillow's warning
    return image.convert("RGB")


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
