"""What decodes JPEG fastest, and does it give Pillow's pixels?

    pip install simplejpeg opencv-python-headless imagecodecs
    python tests/benchmarks/decoders.py [--images 24] [--repeats 7]

Photographs of 224 to 500 pixels, encoded in four ways, decoded on one thread by Pillow, torchvision and whichever of the above are
installed, in turns. A decoder whose result is not a Pillow image pays for making one, because the transforms of the models take
that. The last column is the decoder together with the resize and crop of a model at 224 pixels: what a worker process does.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jpegs import make_jpegs
from PIL import Image
from timm.data.transforms_factory import create_transform

from layerbank.models.transform import split_transform

ENCODINGS: dict[str, dict[str, Any]] = {
    "quality 75": {"quality": 75},
    "quality 90": {"quality": 90},
    "95, full colour": {"quality": 95, "subsampling": 0},
    "85, progressive": {"quality": 85, "progressive": True},
}
Decoder = Callable[[bytes], Image.Image]


def decoders() -> dict[str, Decoder]:
    """Name -> encoded image to RGB image."""
    from torchvision.io import ImageReadMode, decode_jpeg

    def torchvision(encoded: bytes) -> Image.Image:
        pixels = decode_jpeg(torch.frombuffer(bytearray(encoded), dtype=torch.uint8), ImageReadMode.RGB)
        return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())

    found: dict[str, Decoder] = {
        "pillow": lambda encoded: Image.open(io.BytesIO(encoded)).convert("RGB"),
        "torchvision": torchvision,
    }
    if importlib.util.find_spec("simplejpeg"):
        import simplejpeg

        found["simplejpeg"] = lambda encoded: Image.fromarray(simplejpeg.decode_jpeg(encoded))
        found["simplejpeg, fast"] = lambda encoded: Image.fromarray(
            simplejpeg.decode_jpeg(encoded, fastdct=True, fastupsample=True)
        )
    if importlib.util.find_spec("cv2"):
        import cv2

        cv2.setNumThreads(1)
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        found["opencv"] = lambda encoded: Image.fromarray(
            cv2.cvtColor(cv2.imdecode(np.frombuffer(encoded, np.uint8), flags), cv2.COLOR_BGR2RGB)
        )
    if importlib.util.find_spec("imagecodecs"):
        import imagecodecs

        found["imagecodecs"] = lambda encoded: Image.fromarray(imagecodecs.jpeg8_decode(encoded))
    return found


def cpu_ms(work: Callable[[bytes], Any], images: list[bytes]) -> float:
    """CPU time an image."""
    start = time.thread_time()
    for encoded in images:
        work(encoded)
    return 1000 * (time.thread_time() - start) / len(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    mean = std = (0.5, 0.5, 0.5)
    whole = create_transform(
        (3, 224, 224), is_training=False, crop_pct=0.875, interpolation="bicubic", mean=mean, std=std
    )
    geometry, _ = split_transform(whole)
    found = decoders()
    print(f"{'JPEG':16} {'decoder':17} pillow / it   largest difference   with resize and crop: pillow / it")
    for encoding, options in ENCODINGS.items():
        images = make_jpegs(arguments.images, **options)
        exact = [np.asarray(found["pillow"](encoded), dtype=np.int16) for encoded in images]
        alone: dict[str, list[float]] = {name: [] for name in found}
        resized: dict[str, list[float]] = {name: [] for name in found}
        for _ in range(arguments.repeats):
            for name, decode in found.items():
                alone[name].append(cpu_ms(decode, images))
                resized[name].append(cpu_ms(lambda encoded, decode=decode: geometry(decode(encoded)), images))  # type: ignore[misc]
        for name, decode in found.items():
            difference = max(
                int(np.abs(np.asarray(decode(encoded), dtype=np.int16) - pixels).max())
                for encoded, pixels in zip(images, exact, strict=True)
            )
            ratios = [
                statistics.median(a / b for a, b in zip(times["pillow"], times[name], strict=True))
                for times in (alone, resized)
            ]
            print(f"{encoding:16} {name:17} {ratios[0]:11.2f} {difference:20} {ratios[1]:35.2f}")
    whole_ms, geometry_ms = (
        statistics.median(cpu_ms(lambda encoded, step=step: step(found["pillow"](encoded)), images) for _ in range(5))  # type: ignore[misc]
        for step in (whole, geometry)
    )
    print(f"resize, crop to bytes / the whole transform to float32, both with decoding: {geometry_ms / whole_ms:.2f}")


if __name__ == "__main__":
    main()
