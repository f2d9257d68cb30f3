"""Photographs to decode: crops of the two that come with scikit-learn, 224 to 500 pixels a side, as JPEG."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images


def make_jpegs(count: int, **options: Any) -> list[bytes]:
    """Encoded crops, the same ones for the same count.

    Args:
        count: how many.
        options: of Pillow's JPEG writer.
    """
    rng = np.random.default_rng(0)
    photographs = load_sample_images().images  # [427, 640, 3] uint8, two of them
    encoded = []
    for number in range(count):
        photograph = photographs[number % 2]
        height, width = (int(rng.integers(224, limit)) for limit in (427, 500))
        top, left = int(rng.integers(0, 427 - height + 1)), int(rng.integers(0, 640 - width + 1))
        buffer = io.BytesIO()
        Image.fromarray(photograph[top : top + height, left : left + width]).save(buffer, "JPEG", **options)
        encoded.append(buffer.getvalue())
    return encoded


def write_jpegs(folder: Path, count: int) -> Path:
    """FOLDER/train/{0,1}/<n>.jpg, quality 90, colours at half resolution, as cameras and data sets have them."""
    for number, encoded in enumerate(make_jpegs(count, quality=90)):
        place = folder / "train" / str(number % 2)
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:05}.jpg").write_bytes(encoded)
    return folder
