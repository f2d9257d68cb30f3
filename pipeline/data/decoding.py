"""Encoded bytes or stored pixels become RGB images, in the same way for all sources.

* `convert("RGB")`, as the folder loaders of torchvision and timm do: alpha is dropped, not composited, and CMYK is converted
  without a colour profile.
* The EXIF orientation is **not** applied, as there, so that published numbers stay comparable.
* Only the formats below are opened: Pillow has readers for others that start programs, such as Ghostscript for EPS.
* 16-bit grey images are scaled to 8 bits; Pillow's own conversion clips at 255, which leaves them white.
"""

from __future__ import annotations

import io
import re

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")  # of `folder.EXTENSIONS`; Pillow calls PGM PPM


def decode_rgb(stored: bytes | NDArray[np.uint8]) -> Image.Image:
    """The RGB image of encoded bytes, or of pixels [H, W] or [H, W, 3]."""
    if not isinstance(stored, bytes):
        return Image.fromarray(stored).convert("RGB")
    if not stored:
        raise ValueError("no bytes")
    with Image.open(io.BytesIO(stored), formats=FORMATS) as image:
        if image.mode.startswith("I"):  # 16-bit grey; older Pillow opens it as 32-bit "I"
            eight_bits = np.asarray(image).astype(np.int64).clip(0, 65535) >> 8
            return Image.fromarray(eight_bits.astype(np.uint8)).convert("RGB")
        if image.mode == "P" and "transparency" in image.info:
            return image.convert("RGBA").convert("RGB")  # the pixels of convert("RGB"), without Pillow's warning
        return image.convert("RGB")


def failure_reason(error: Exception) -> str:
    """Why an image failed, in words that are the same on every run: no addresses, no absolute paths."""
    if isinstance(error, UnidentifiedImageError):
        return f"bytes in none of the formats {', '.join(FORMATS)}"
    if isinstance(error, OSError) and error.strerror and error.filename:
        return error.strerror
    return re.sub(r" at 0x[0-9a-fA-F]+", "", str(error)) or type(error).__name__
