"""Data that `open_source` refuses, and what it finds in others."""

from __future__ import annotations

from messages import check, raises

from layerbank.data.image_source import ImageSource
from layerbank.data.sources import open_source
from layerbank.errors import RequestError


def refuses_data(key: str, uri: str, split: str = "train", /, **values: object) -> None:
    """Opening a split of this URI ends with the message of this key, with these of its values among others."""
    with raises(key, RequestError) as refused:
        open_source(uri, split)
    check(refused.error, key, values)


def names_of(source: ImageSource) -> list[tuple[str, int]]:
    """Id and size of each image."""
    return list(zip(source.ids, source.sizes.tolist(), strict=True))
