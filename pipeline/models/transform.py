"""A model's evaluation transform in two halves: geometry, which needs the image, and normalisation, which needs only its pixels.

The first half resizes and crops and ends in bytes, so a decoding process transfers a quarter of the bytes of float32. The second
half runs on the device, with the same float32 operations in the same order as in torchvision, so both halves together give the bits
of the whole transform and a cache's `transform` text is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from timm.data.transforms import CenterCropOrPad, ResizeKeepRatio
from torch import Tensor
from torchvision.transforms import (  # type: ignore[import-untyped]
    CenterCrop,
    Compose,
    Normalize,
    PILToTensor,
    Resize,
    ToTensor,
)

Geometry = Callable[[Any], Tensor]
"""RGB image -> uint8 [3, H, W], or float32 where a transform could not be split; picklable."""


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """(x / 255 - mean) / std for each channel, as `ToTensor` and `Normalize` compute it.

    Attributes:
        mean, std: mean and deviation of each channel, for pixels in [0, 1].
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def on(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        """uint8 [B, 3, H, W] -> float32 [B, 3, H, W] there. Not to be compiled with the model: a fused division may differ in
        the last bit."""
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1) for values in (self.mean, self.std)
        )

        def normalise(images: Tensor) -> Tensor:
            return images.to(torch.float32).div_(255).sub_(mean).div_(std)

        return normalise


def split_transform(transform: Callable[[Any], Tensor]) -> tuple[Geometry, Normalisation | None]:
    """Geometry and normalisation of a transform; the transform itself and None if it does not end in the two usual steps.

    Args:
        transform: RGB image -> float32 [3, H, W].
    """
    steps = getattr(transform, "transforms", ())
    match steps:
        case [*geometry, ToTensor(), Normalize() as last]:
            mean, std = (tuple(torch.as_tensor(values).reshape(-1).tolist()) for values in (last.mean, last.std))
            return Compose([*geometry, PILToTensor()]), Normalisation(mean=mean, std=std)
        case _:
            return transform, None


def geometry_steps(geometry: Geometry) -> list[dict[str, Any]] | None:
    """The steps of a geometry as `preprocess.py` takes them; None if it has others.

    >>> geometry_steps(Compose([Resize(248), CenterCrop(224), PILToTensor()]))
    [{'shortest': 248, 'interpolation': 'bilinear'}, {'crop': [224, 224], 'fill': 0}]
    """
    *steps, last = getattr(geometry, "transforms", None) or [None]
    if not isinstance(last, PILToTensor):
        return None
    # open_clip converts to RGB, which the first step of an export does
    found = [_step_of(step) for step in steps if type(step).__name__ != "MaybeConvertMode"]
    return None if None in found else [step for step in found if step is not None]


def _step_of(step: Any) -> dict[str, Any] | None:
    interpolation = getattr(getattr(step, "interpolation", None), "value", None)
    match step:
        case Resize(size=int(side) | [int(side)], max_size=None):
            return {"shortest": side, "interpolation": interpolation}
        case Resize(size=[height, width], max_size=None):
            return {"size": [height, width], "interpolation": interpolation}
        case ResizeKeepRatio(size=(height, width), longest=0.0 | 1.0, random_scale_prob=0.0, random_aspect_prob=0.0):
            return {"fit" if step.longest else "cover": [height, width], "interpolation": interpolation}
        case CenterCrop(size=(height, width)):
            return {"crop": [height, width], "fill": 0}
        case CenterCropOrPad(size=[height, width], padding_mode="constant"):
            return {"crop": [height, width], "fill": step.fill}
    return None
