"""Small folders of real image files, and the models that read them in the tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

# used with random weights at 32 px: 4 patches
TINY_MODEL, TINY_DEPTH, TINY_WIDTH = "timm/test_vit", 6, 64
VIT_TINY = "timm/vit_tiny_patch16_224"  # 12 blocks of width 192, for probes of many levels and heads; takes three times as long


def write_photos(
    folder: Path, per_class: dict[str, int], classes: tuple[str, ...] = ("blue", "green", "red"), *, seed: int = 0
) -> Path:
    """Noisy squares of one colour a class: FOLDER/<split>/<class>/<n>.png, 40 x 40.

    Args:
        folder: where to; made if missing.
        per_class: split -> images a class.
        classes: names of the classes.
        seed: folders of one seed have images in common.
    """
    rng = np.random.default_rng(seed)
    for split, count in per_class.items():
        for label, name in enumerate(classes):
            place = folder / split / name
            place.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 120, (40, 40, 3), dtype=np.uint8)
                pixels[10:30, 10:30, 2 - label % 3] += 90
                Image.fromarray(pixels).save(place / f"{index:03}.png")
    return folder
