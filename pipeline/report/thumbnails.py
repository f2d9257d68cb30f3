"""Small copies of test images for the page, from the data source that the probe was tested on, if it is within reach.

The source must be the one of the store: its manifest (ids, labels, sizes) must have the digest that the store was made with. So no
image is shown under an id it does not belong to.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

from ..data.sources import BadImage, open_source
from ..errors import WorkError
from .page.blocks import data_uri

SIDE = 96  # pixels at most
QUALITY = 80  # of JPEG: 1 to 4 KB an image


def thumbnails(about: dict[str, Any], sample_ids: Iterable[str]) -> dict[str, str]:
    """Sample id -> data URI of a JPEG of at most 96 x 96; ids whose image cannot be decoded are left out.

    Args:
        about: what a row keeps of how it was made: `data` and `test_cache`.
        sample_ids: which images.

    Raises:
        LayerbankError: the data are not there any more, or are other data.
    """
    if "data" not in about or "test_cache" not in about:
        raise WorkError(
            where="images of a test set",
            expected="a row that says where its data lie (probe.json)",
            got="none",
            todo="Train it again with this version: layerbank probe ... --retrain.",
        )
    try:
        source = open_source(about["data"], about["test_cache"]["split"])
    except OSError as error:
        raise WorkError(
            where=f"data {about['data']}",
            expected="the images that were tested on",
            got=str(error),
            todo="Make the report in the folder where the probes were trained.",
        ) from error
    if source.manifest_digest != about["test_cache"]["manifest"]:
        raise WorkError(
            where=f"data {about['data']}",
            expected="the images that were tested on",
            got="other ids, labels or sizes",
            todo="Bring the data back as they were to see them here.",
        )
    rows = {id: row for row, id in enumerate(source.ids)}
    found = {}
    for id in sample_ids:
        try:
            image, _ = source.load(rows[id])
        except BadImage:
            continue
        image.thumbnail((SIDE, SIDE))
        content = io.BytesIO()
        image.save(content, format="JPEG", quality=QUALITY)
        found[id] = data_uri(content.getvalue(), "image/jpeg")
    return found
