"""Views meet the model: the geometry that makes a source's views at a model's size, and what a store's identity says of them.

A source knows images and a backbone knows its transform; this is the one place that knows both.
"""

from __future__ import annotations

from PIL import Image
from torchvision.transforms import InterpolationMode  # type: ignore[import-untyped]

from ..data.sources import ImageSource
from ..data.views import ViewedSource
from ..errors import RequestError
from ..models.backbone import Backbone
from ..models.transform import Geometry
from .view_geometry import ViewGeometry

_PILLOW = {
    mode.value: Image.Resampling[mode.name] for mode in InterpolationMode if mode.name in Image.Resampling.__members__
}


def view_geometry(backbone: Backbone, source: ImageSource) -> Geometry:
    """What turns an image of the source into pixels for the backbone.

    Raises:
        RequestError: views are asked of a model whose transform does not end in ToTensor and Normalize.
    """
    if not isinstance(source, ViewedSource):
        return backbone.geometry
    if backbone.normalisation is None:
        raise RequestError(
            where=f"--views with {backbone.model_id}",
            expected="a transform that ends in ToTensor and Normalize, so that views can be cut before it",
            got=backbone.transform_id,
            todo="Leave --views out for this model.",
        )
    return ViewGeometry(
        evaluation=backbone.geometry,
        size=backbone.image_size,
        resample=int(resample_of(backbone)),
        rule=source.rule,
    )


def transform_of(backbone: Backbone, source: ImageSource) -> str:
    """Canonical text of how the rows of the source become pixels."""
    return backbone.transform_id + (source.rule.describe() if isinstance(source, ViewedSource) else "")


def resample_of(backbone: Backbone) -> Image.Resampling:
    """Pillow's filter of the model's own resizing; bicubic where its transform does not resize."""
    for step in getattr(backbone.transform, "transforms", ()):
        mode = getattr(step, "interpolation", None)
        if isinstance(mode, InterpolationMode):
            return _PILLOW[mode.value]
    return Image.Resampling.BICUBIC
