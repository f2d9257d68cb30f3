"""Convert, resize and crop an image as a model wants it, with Pillow and NumPy alone.

`layerbank export` puts a copy of this file beside the exported module, and the steps into preprocess.json:

    steps = json.loads(Path("preprocess.json").read_text())["steps"]
    images = numpy.stack([preprocess(Image.open(path), steps) for path in paths])  # uint8 [B, 3, H, W]

Steps are objects with one key:

    {"rgb": {"background": "#ffffff", "range": null, "exif_orientation": false}}
                                                              transparent pixels over a colour, or "drop" for no transparency; grey
                                                              values of 16 or more bits from this range; turned as EXIF says
    {"shortest": 248, "interpolation": "bicubic"}             the shorter side gets this length; the longer one is rounded down
    {"size": [H, W], "interpolation": "bicubic"}              both sides, whatever the ratio was
    {"cover": [H, W], "interpolation": "bicubic"}             the ratio is kept, and neither side is shorter than this
    {"fit": [H, W], "interpolation": "bicubic"}               the ratio is kept, and neither side is longer than this
    {"crop": [H, W], "fill": 0}                               the centre; a side that is too short is padded with this colour
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps


def preprocess(image: Image.Image, steps: Sequence[Mapping[str, Any]]) -> NDArray[np.uint8]:
    """The pixels of an image as a module takes them.

    Args:
        image: of any size and mode.
        steps: see above.

    Returns:
        uint8 [3, H, W], the channels red, green, blue.

    Raises:
        ValueError: values of 32 bits or floats, and no range; or values that are not finite.

    >>> preprocess(Image.new("RGB", (60, 40)), [{"shortest": 36, "interpolation": "bicubic"}, {"crop": [32, 32]}]).shape
    (3, 32, 32)
    """
    for step in steps:
        if "rgb" in step:
            image = _to_rgb(image, **step["rgb"])
        elif "crop" in step:
            image = _crop(image, step)
        else:
            image = _resize(image, step)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def _to_rgb(
    image: Image.Image, *, background: str, range: Sequence[float] | None, exif_orientation: bool
) -> Image.Image:
    file_format, most = image.format, 65535
    of_tiles = [tile[3] for tile in getattr(image, "tile", ())]  # forgotten once the pixels are read
    if file_format == "PPM" and image.mode == "I" and of_tiles and isinstance(of_tiles[0], tuple):
        most = of_tiles[0][1]  # which Pillow scales to 65,535
    if exif_orientation and file_format != "TIFF":  # Pillow has turned those
        image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":
        values = np.asarray(image)
        if range is not None:
            low, high = range
            values = (values * (most / 65535)).round() if most < 65535 else values
            values = (values.astype(np.float64) - low) * (255 / (high - low))
            if not np.isfinite(values).all():
                raise ValueError("a value that is no finite number")
            values = values.round().clip(0, 255)
        elif image.mode == "F" or (image.mode == "I" and file_format not in ("PNG", "PPM")):
            raise ValueError("values of 32 bits or floats, of which nothing says what is black and white")
        else:
            values = values.astype(np.int64).clip(0, 65535) >> 8
        return Image.fromarray(values.astype(np.uint8)).convert("RGB")
    if "transparency" in image.info or image.getbands()[-1] in "Aa":
        image = image.convert("RGBA")
        if background != "drop":
            image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return image.convert("RGB")


def _resize(image: Image.Image, step: Mapping[str, Any]) -> Image.Image:
    width, height = image.size
    if "shortest" in step:
        short = step["shortest"]
        long = int(short * max(width, height) / min(width, height))
        size = (short, long) if width <= height else (long, short)
    elif "size" in step:
        size = (step["size"][1], step["size"][0])
    else:
        rows, columns = step["cover"] if "cover" in step else step["fit"]
        ratio = (min if "cover" in step else max)(height / rows, width / columns)
        size = (round(width / ratio), round(height / ratio))
    if size == image.size:
        return image
    return image.resize(size, Image.Resampling[step["interpolation"].upper()])


def _crop(image: Image.Image, step: Mapping[str, Any]) -> Image.Image:
    (rows, columns), (width, height) = step["crop"], image.size
    if columns > width or rows > height:
        fill = step.get("fill", 0)
        colour = (fill, fill, fill) if isinstance(fill, int) else tuple(fill)
        padded = Image.new("RGB", (max(width, columns), max(height, rows)), colour)
        padded.paste(image, (max(columns - width, 0) // 2, max(rows - height, 0) // 2))
        image, (width, height) = padded, padded.size
    left, top = round((width - columns) / 2), round((height - rows) / 2)
    return image.crop((left, top, left + columns, top + rows))
