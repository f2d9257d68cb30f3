"""A transform cut in two halves gives the bits of the whole, on every image."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2  # type: ignore[import-untyped]
from PIL import Image
from timm.data.transforms_factory import create_transform
from torchvision.transforms import CenterCrop, Compose, Normalize, Resize, ToTensor  # type: ignore[import-untyped]

from layerbank.models.transform import split_transform

IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
TRANSFORMS: dict[str, Callable[[Any], torch.Tensor]] = {
    "timm center": create_transform(
        (3, 32, 32), is_training=False, crop_pct=0.875, interpolation="bicubic", **IMAGENET
    ),
    "timm squash": create_transform((3, 32, 48), is_training=False, crop_mode="squash", **IMAGENET),
    "timm border": create_transform((3, 32, 32), is_training=False, crop_mode="border", **IMAGENET),
    "open_clip": image_transform_v2(PreprocessCfg(size=32), is_train=False),
    "open_clip longest": image_transform_v2(PreprocessCfg(size=32, resize_mode="longest"), is_train=False),
    "grey std": Compose([Resize(32), CenterCrop(32), ToTensor(), Normalize([0.5], [0.5])]),
}


def picture(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_halves_together_give_the_bits_of_the_whole(name: str) -> None:
    transform = TRANSFORMS[name]
    geometry, normalisation = split_transform(transform)
    assert normalisation is not None
    geometry = pickle.loads(pickle.dumps(geometry))
    images = [picture(*size) for size in ((40, 40), (31, 77), (200, 130))]
    pixels = torch.stack([geometry(image) for image in images])
    assert pixels.dtype == torch.uint8
    whole = torch.stack([transform(image) for image in images])
    assert torch.equal(normalisation.on(torch.device("cpu"))(pixels), whole)


def test_every_byte_is_normalised_to_the_bits_of_torchvision() -> None:
    transform = Compose([ToTensor(), Normalize(IMAGENET["mean"], IMAGENET["std"])])
    every = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    geometry, normalisation = split_transform(transform)
    assert normalisation is not None
    got = normalisation.on(torch.device("cpu"))(geometry(Image.fromarray(every))[None])
    assert torch.equal(got[0], transform(Image.fromarray(every)))


@pytest.mark.parametrize(
    "transform", [ToTensor(), Compose([ToTensor()]), Compose([Normalize([0.5], [0.5]), ToTensor()]), np.asarray]
)
def test_a_transform_that_ends_otherwise_stays_whole(transform: Any) -> None:
    assert split_transform(transform) == (transform, None)
