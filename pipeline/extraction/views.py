"""Augmented views of a model's images: the geometry that cuts them at the model's size.

A source knows images and a backbone knows its transform; this is the one place that knows both.
"""

from __future__ import annotations

from PIL import Image
from torchvision.transforms import InterpolationMode  # type: ignore[import-untyped]

from ..data.selected_source import SelectedSource
from ..errors import RequestError
from ..models.backbone import Backbone
from ..models.transform import Geometry
from .decoding import ViewGeometry


def view_geometry(backbone: Backbone, source: SelectedSource) -> Geometry:
    """Return the geometry that turns images of the source into pixels for the backbone.

    Raises:
        RequestError: the source has views, and the model's transform does not end in ToTensor and Normalize.
    """
    if source.rule is None:
        return backbone.geometry
    if backbone.normalisation is None:
        raise RequestError(
            "extraction.views_need_normalisation", model=backbone.model_id, transform=backbone.transform_id
        )
    return ViewGeometry(
        evaluation=backbone.geometry,
        size=backbone.image_size,
        resample=int(resample_of(backbone)),
        rule=source.rule,
    )


def resample_of(backbone: Backbone) -> Image.Resampling:
    """Return the Pillow filter of the model's own resizing; bicubic if its transform does not resize."""
    for step in getattr(backbone.transform, "transforms", ()):
        mode = getattr(step, "interpolation", None)
        if isinstance(mode, InterpolationMode):
            return Image.Resampling[mode.name]
    return Image.Resampling.BICUBIC
