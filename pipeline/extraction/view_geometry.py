"""Cut the views that `data.views` draws, at the size of a model. Decoding processes hold this.

Knows images and pixels, neither sources nor models, so that those processes need not import a model's library.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from ..data.views import VIEW_SEED, ViewRule, draw_view


@dataclass(frozen=True, kw_only=True)
class ViewGeometry:
    """RGB image -> uint8 [3, H, W]: the model's own geometry, or the view whose seed the image carries.

    Attributes:
        evaluation: the model's own geometry.
        size: height and width in pixels.
        resample: the Pillow filter that the model's own geometry uses.
        rule: how views are drawn.
    """

    evaluation: Callable[[Any], torch.Tensor]
    size: tuple[int, int]
    resample: int
    rule: ViewRule

    def __call__(self, image: Image.Image) -> torch.Tensor:
        seed = image.info.get(VIEW_SEED)
        if seed is None:
            return self.evaluation(image)
        box, mirrored = draw_view(image.size, self.rule, seed)
        view = image.crop(box).resize(self.size[::-1], Image.Resampling(self.resample))
        if mirrored:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.frombuffer(bytearray(view.tobytes()), dtype=torch.uint8)
        return pixels.view(*self.size, 3).permute(2, 0, 1).contiguous()
