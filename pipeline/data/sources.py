"""From a data URI and the name of a split to an ordered, counted, map-style source of labelled images.

Knows the schemes and nothing else; how each kind of source reads its files is in `layerbank.data`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import RequestError
from . import BadImage, DemoSource, FolderSource, Hdf5Source, ImageSource, UnlabelledSource, WdsSource

__all__ = ["open_source", "SCHEMES", "Scheme", "ImageSource", "BadImage"]


@dataclass(frozen=True)
class Scheme:
    """One way to name data: how its URI looks, what that means in one line, what opens it, and one such URI."""

    form: str
    meaning: str
    open: Callable[[str, str], ImageSource]
    example: str = ""


SCHEMES = {
    "folder": Scheme("folder:DIR", "images in DIR/<split>/<class>/", FolderSource, "folder:photos"),
    "wds": Scheme(
        "wds:DIR | wds:DIR/{split}/{000..010}.tar",
        "WebDataset tars: jpg, png or webp, and cls",
        WdsSource,
        "wds:wds_cifar10/{split}/{000..010}.tar",
    ),
    "hdf5": Scheme(
        "hdf5:FILE_{split}.h5?images=x&labels=y",
        "HDF5 datasets of pixels and labels",
        Hdf5Source,
        "hdf5:cells_{split}.h5?images=images&labels=labels",
    ),
    "images": Scheme(
        "images:DIR", "images at any depth, without labels: to predict", UnlabelledSource, "images:holiday"
    ),
    "demo": Scheme(
        "demo:digits | animals | solar | climate",
        "images that come inside a Python package",
        DemoSource,
        "demo:digits?train=4000&test=1000",
    ),
}


def open_source(uri: str, split: str) -> ImageSource:
    """Open one split of a data set.

    Args:
        uri: `scheme:address`, see SCHEMES.
        split: name of the split, such as `train`.

    Raises:
        RequestError: unknown scheme, no such data or split, or data that cannot be used as they are.
    """
    scheme, colon, address = uri.partition(":")
    if not (colon and address and scheme in SCHEMES):
        raise RequestError(
            where=f"data {uri!r}",
            expected=f"SCHEME:ADDRESS with one of the schemes {', '.join(SCHEMES)}",
            got=_what_is_wrong(scheme, colon),
            todo=f"Did you mean {_nearest(uri, scheme, colon)}?",
        )
    if not split or "/" in split or split.startswith("."):
        raise RequestError(
            where=f"split of {uri}",
            expected="a name such as train",
            got=repr(split),
            todo="Choose it with --split.",
        )
    return SCHEMES[scheme].open(address, split)


def _what_is_wrong(scheme: str, colon: str) -> str:
    if not colon:
        return "no scheme"
    return "nothing after the colon" if scheme in SCHEMES else f"the scheme {scheme!r}"


def _nearest(uri: str, scheme: str, colon: str) -> str:
    """A path without a scheme most likely lacks just that; anything else is a typing error."""
    if not colon:
        holds_tars = uri.endswith(".tar") or any(Path(uri).glob("*/*.tar"))
        return f"{'wds' if holds_tars else 'folder'}:{uri}"
    return SCHEMES[difflib.get_close_matches(scheme, SCHEMES, n=1, cutoff=0)[0]].form
