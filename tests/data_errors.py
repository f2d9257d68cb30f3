"""Data that `open_source` refuses."""

from __future__ import annotations

from messages import check, raises

from layerbank.data.sources import open_source
from layerbank.errors import RequestError


def refuses_data(key: str, uri: str, split: str = "train", /, **values: object) -> None:
    """Opening a split of this URI ends with the message of this key, with these of its values among others."""
    with raises(key, RequestError) as refused:
        open_source(uri, split)
    check(refused.error, key, values)
