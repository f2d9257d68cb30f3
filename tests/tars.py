"""Tars of images, as WebDataset has them."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def encoded_image(seed: int, format: str = "png") -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, format)
    return buffer.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]], format: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def with_labels(root: Path, **members: list[bytes]) -> Path:
    """A training shard whose samples have an image and these members."""
    content: list[tuple[str, bytes]] = []
    for number in range(3):
        content.append((f"{number}.png", encoded_image(number)))
        content += [(f"{number}.{extension}", values[number]) for extension, values in members.items()]
    write_tar(root / "train" / "0.tar", content)
    return root
