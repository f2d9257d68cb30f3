"""`images:DIR`: every image below a folder, without labels and splits: the usual input of `predict`."""

from __future__ import annotations

from collections import Counter

from ..errors import RequestError
from .folder import EXTENSIONS, FileSource, find_images
from .image_source import NO_LABEL
from .patterns import parse_options, require_folder
from .pixels import parse_range
from .sources import DataSource


def open_images(address: str, split: str) -> FileSource:
    """All images below a folder, sorted by path; ids are paths relative to it, labels are -1 and there are no classes.

    Raises:
        RequestError: no such folder, no image in it, a folder that leads out, or wrong options.
    """
    path, options = parse_options("images", address, ("range",))
    root = require_folder("images", path)
    left_out: Counter[str] = Counter()
    entries = [(found, NO_LABEL) for found in find_images(root, left_out=left_out)]
    if not entries:
        raise RequestError("data.no_images", folder=root, extensions=" ".join(sorted(EXTENSIONS)))
    source = FileSource(root, split, entries, [], left_out)
    source.value_range = parse_range(f"images:{address}", options)
    return source


IMAGES = DataSource(
    form="images:DIR",
    meaning="images at any depth, without labels: to predict",
    example="images:holiday",
    open=open_images,
)
