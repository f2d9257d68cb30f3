"""Opens one split of a data set by its URI, `scheme:address`. The schemes are a registry that plug-ins can extend."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import RequestError
from ..events import OnEvent, ignore
from ..registry import Registry
from .image_source import BadImage, ImageSource
from .pixels import USUAL, PixelRule
from .remote.copies import is_url, local_copy

__all__ = ["open_source", "SOURCES", "DataSource", "ImageSource", "BadImage"]


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """One scheme of data URIs; a plug-in registers one under the entry point group `layerbank.sources`.

    Attributes:
        form: form of its URIs, such as `folder:DIR`.
        meaning: what they name, in one line.
        example: one such URI.
        open: (address, split) -> the images of that split; the address is the URI without its scheme.
    """

    form: str
    meaning: str
    example: str
    open: Callable[[str, str], ImageSource]


SOURCES = Registry(
    "layerbank.sources",
    "data source",
    DataSource,
    {
        "folder": "layerbank.data.folder:FOLDER",
        "csv": "layerbank.data.tables.text:CSV",
        "parquet": "layerbank.data.tables.parquet:PARQUET",
        "hf": "layerbank.data.tables.hf:HF",
        "wds": "layerbank.data.tars.wds:WDS",
        "hdf5": "layerbank.data.arrays.hdf5:HDF5",
        "npz": "layerbank.data.arrays.npz:NPZ",
        "torchvision": "layerbank.data.arrays.torchvision_data:TORCHVISION",
        "images": "layerbank.data.images:IMAGES",
        "demo": "layerbank.data.demos.demo:DEMO",
    },
)


def check_split(data: str, split: str) -> None:
    """Refuse a name of a split that is no part of a path.

    Raises:
        RequestError: it is none.
    """
    if not split or "/" in split or split.startswith("."):
        raise RequestError("data.bad_split_name", uri=data, split=split)


def open_source(uri: str, split: str, on_event: OnEvent = ignore, *, pixels: PixelRule = USUAL) -> ImageSource:
    """Open one split of a data set.

    Args:
        uri: `scheme:address` with a scheme of SOURCES; an address that is a URL is copied to this machine first.
        split: name of the split, such as `train`.
        on_event: called with the progress of copying.
        pixels: how images become pixels; a range that the address declares comes before its own.

    Raises:
        RequestError: unknown scheme, no such data or split, or data that cannot be used as they are.
        WorkError: data behind a URL cannot be copied.
    """
    scheme, colon, address = uri.partition(":")
    if not colon:
        holds_tars = uri.endswith(".tar") or any(Path(uri).glob("*/*.tar"))
        nearest = f"{'wds' if holds_tars else 'folder'}:{uri}"
        raise RequestError("data.no_scheme", uri=uri, schemes=", ".join(SOURCES), nearest=nearest)
    source = SOURCES.require(scheme)
    if not address:
        raise RequestError("data.no_address", uri=uri, form=source.form)
    check_split(uri, split)
    if is_url(address):
        url, mark, options = address.partition("?")
        address = local_copy(url, split, on_event) + mark + options
    opened = source.open(address, split)
    opened.uri, opened.pixel_rule = uri, pixels.within(opened.value_range)
    opened.origin = opened.origin or f"{scheme}:{os.path.abspath(os.path.expanduser(address))}"
    return opened
