"""The transform of a transformers image processor, from its settings: resize, centre crop, mean and deviation.

The processor itself takes no part in decoding. Its settings become a torchvision transform of PIL images, so that images go through
one decoder whatever the family, and the text of the transform names what was done. A processor that works on tensors resizes with
another rounding, which can change a byte by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torchvision.transforms import (  # type: ignore[import-untyped]
    CenterCrop,
    Compose,
    InterpolationMode,
    Normalize,
    Resize,
    ToTensor,
)

from ...errors import RequestError, first_line
from ..weights import quiet_libraries

SETTINGS_FILES = ("preprocessor_config.json", "processor_config.json")

_PILLOW_FILTERS = {
    0: InterpolationMode.NEAREST,
    1: InterpolationMode.LANCZOS,
    2: InterpolationMode.BILINEAR,
    3: InterpolationMode.BICUBIC,
    4: InterpolationMode.BOX,
    5: InterpolationMode.HAMMING,
}


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How an image is prepared for a model.

    Attributes:
        image_size: height and width in pixels of what the model gets.
        transform: RGB PIL image -> float32 [3, H, W].
        text: canonical text of the transform.
    """

    image_size: tuple[int, int]
    transform: Callable[[Any], Tensor]
    text: str


def read_image_processor(folder: Path, model_id: str) -> dict[str, Any]:
    """Settings of the image processor whose file lies in a folder, with the defaults of its class. No code of the folder runs.

    Raises:
        RequestError: no such file, or not that of an image processor that transformers knows.
    """
    from transformers import AutoImageProcessor

    if not any((folder / name).is_file() for name in SETTINGS_FILES):
        raise RequestError("models.no_image_processor", model=model_id, folder=folder)
    try:
        with quiet_libraries():
            settings = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False).to_dict()
    except Exception as error:  # the settings may be anything, and so may be what transformers says of them
        reason = first_line(error)
        raise RequestError("models.bad_image_processor", model=model_id, reason=reason) from error
    return {name: value for name, value in settings.items() if value is not None}


def preparation(settings: Mapping[str, Any], model_id: str, image_size: int | None) -> Preparation:
    """The transform that the settings of an image processor describe.

    Args:
        settings: as `read_image_processor` returns them.
        model_id: for messages.
        image_size: pixels a side; None for the processor's own. The share of the image that is cropped away stays the same.

    Raises:
        RequestError: settings of another form.
    """
    try:
        resized = _size(settings, "size") if settings.get("do_resize", True) else None
        cropped = _square(_size(settings, "crop_size")) if settings.get("do_center_crop") else None
        if cropped is None and not isinstance(resized, tuple):
            raise ValueError(f"size {resized} without a crop, which gives images of any shape")
        interpolation = _PILLOW_FILTERS[int(settings.get("resample", 2))]
        mean, std = _mean_and_std(settings)
    except (KeyError, ValueError, TypeError, ZeroDivisionError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else first_line(error)
        raise RequestError("models.bad_image_processor", model=model_id, reason=reason) from error
    if image_size is not None:
        if cropped is not None and resized is not None:
            resized = _scaled(resized, image_size / cropped[0])
        elif resized is not None:
            resized = (image_size, image_size)
        cropped = cropped and (image_size, image_size)
    height, width = _square(cropped or resized or 0)  # one of them was read
    steps: list[Any] = []
    texts: list[str] = []
    if resized is not None:
        steps.append(Resize(resized, interpolation))
        shape = f"{resized} shortest" if isinstance(resized, int) else f"{resized[0]}x{resized[1]} squash"
        texts.append(f"resize {shape} {interpolation.value}")
    if cropped:
        steps.append(CenterCrop((height, width)))
        texts.append(f"crop {height}x{width}")
    texts += [
        f"{name} {' '.join(f'{value:.6g}' for value in values)}" for name, values in (("mean", mean), ("std", std))
    ]
    transform = Compose([*steps, ToTensor(), Normalize(mean, std)])
    return Preparation(image_size=(height, width), transform=transform, text="; ".join(texts))


def _size(settings: Mapping[str, Any], name: str) -> int | tuple[int, int]:
    """The shorter side, or height and width; of SigLIP2, whose images may have any shape, the largest square.

    >>> _size({"size": {"shortest_edge": 256}}, "size"), _size({"patch_size": 16, "max_num_patches": 256}, "size")
    (256, (256, 256))
    """
    if name == "size" and "size" not in settings and "max_num_patches" in settings:
        side = settings["patch_size"] * math.isqrt(settings["max_num_patches"])
        return side, side
    size = settings[name]
    if isinstance(size, int):
        return (size, size)
    if "height" in size and "width" in size and size["height"] is not None:
        return int(size["height"]), int(size["width"])
    if set(size) == {"shortest_edge"}:
        return int(size["shortest_edge"])
    raise ValueError(f"{name} {dict(size)}")


def _square(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _scaled(size: int | tuple[int, int], scale: float) -> int | tuple[int, int]:
    return round(size * scale) if isinstance(size, int) else (round(size[0] * scale), round(size[1] * scale))


def _mean_and_std(settings: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation for pixels in [0, 1]; the processor's are for pixels times `rescale_factor`."""
    scale = 255 * settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 255.0
    shift, spread = (settings["image_mean"], settings["image_std"]) if settings.get("do_normalize", True) else (0, 1)
    mean, std = (tuple(float(one) / scale for one in _three(values)) for values in (shift, spread))
    if not all(map(math.isfinite, mean)) or not all(0 < one < math.inf for one in std):
        raise ValueError(f"mean {shift} and std {spread}")
    return mean, std


def _three(values: Any) -> Sequence[float]:
    """A number for each channel."""
    three = [values] * 3 if isinstance(values, int | float) else list(values)
    if len(three) != 3:
        raise ValueError(f"{len(three)} channels")
    return three
