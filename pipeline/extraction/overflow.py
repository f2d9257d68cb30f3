"""Whether a float16 model overflows on the first images of a data set.

All splits of a data set are computed in one precision, so that a probe is trained and tested on the tokens of one model. This is
decided before a store is made, because the compute dtype is part of a store's identity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from layerbank.cache import CacheSpec, list_specs

from ..data.image_source import names_digest
from ..data.sources import ImageSource
from ..errors import LayerbankError, RequestError
from ..events import OnEvent, PrecisionFellBack
from ..models.backbone import Backbone, Tokens
from ..models.request import ModelRequest
from .decoding import Rows, decode_batches
from .extract import model_differences, spec_of
from .forward import SteadyForward

NUM_IMAGES = 32  # compared; a fixed number, so that the report does not depend on the batch size
OpenSplit = Callable[[str], ImageSource]


def needs_bfloat16(
    backbone: Backbone,
    open_reference: Callable[[], Backbone],
    sources: Sequence[ImageSource],
    *,
    storage_dtype: str,
    cache_root: Path,
    open_split: OpenSplit,
    overwrite: bool,
    on_event: OnEvent,
) -> bool:
    """Return whether a float16 model overflows on the first images of a split that has no store yet.

    Raises:
        RequestError: the other splits have stores in bfloat16 only, or in float16 only while this one overflows.
    """
    spec = spec_of(backbone, sources[0], storage_dtype)
    others = stores_of_other_splits(spec, [source.split for source in sources], cache_root, open_split)
    precisions = set(others)
    if precisions == {"bfloat16"}:
        raise RequestError(
            "extraction.other_splits_in_bfloat16",
            model=backbone.model_id,
            dataset=sources[0].name,
            splits=", ".join(source.split for source in sources),
            store=others["bfloat16"],
        )
    for source in sources:
        store = spec_of(backbone, source, storage_dtype).store_path(cache_root)
        if store.exists() and not overwrite:
            continue
        if (found := find_overflow(backbone, open_reference, source, on_event)) is None:
            continue
        level, num_nonfinite = found
        if precisions == {"float16"}:
            raise RequestError(
                "extraction.overflow_beside_float16",
                model=backbone.model_id,
                dataset=source.name,
                split=source.split,
                store=others["float16"],
                num_nonfinite=num_nonfinite,
                level=level,
            )
        on_event(
            PrecisionFellBack(
                backbone=backbone.model_id,
                split=source.split,
                level=level,
                num_nonfinite=num_nonfinite,
            )
        )
        return True
    return False


def stores_of_other_splits(
    spec: CacheSpec, splits: Sequence[str], cache_root: Path, open_split: OpenSplit
) -> dict[str, Path]:
    """Find the stores of the same model and data that hold another split.

    Data sets of the same name share a folder of the cache, so a store counts only if its manifest is that of the split here.

    Args:
        spec: the identity of a store of these data, in any precision.
        splits: the splits to leave out.
        cache_root: the folder of all stores.
        open_split: opens a split of these data by its name.

    Returns:
        Compute dtype -> one of the stores.
    """
    return {
        other.compute_dtype: path
        for path, other in list_specs(spec.store_path(cache_root).parent.parent)
        if other.split not in splits
        and other.storage_dtype == spec.storage_dtype
        and set(model_differences(spec, other)) <= {"compute_dtype"}
        and other.manifest == _manifest(other.split, open_split)
    }


def _manifest(split: str, open_split: OpenSplit) -> str | None:
    try:
        return names_digest(open_split(split))
    except (LayerbankError, OSError):  # these data have no such split
        return None


def reference_opener(request: ModelRequest, backbone: Backbone) -> Callable[[], Backbone]:
    """Return a function that opens the same model in float32, once, when it is first called."""
    if backbone.precision == "float32":
        return lambda: backbone
    return cache(partial(replace(request, precision="float32").open, str(backbone.device)))


def find_overflow(
    backbone: Backbone, open_reference: Callable[[], Backbone], source: ImageSource, on_event: OnEvent
) -> tuple[str, int] | None:
    """Return the first level with values that are finite in float32 only, and their number; all levels are checked."""
    images = first_images(backbone, source)
    if images is None:
        return None
    # the mean over patches is not finite if any patch is not
    tokens = run_model(backbone, images, backbone.levels, ["ap"], on_event)
    if all(bool(torch.isfinite(kinds["ap"]).all()) for kinds in tokens.values()):
        return None
    exact = run_model(open_reference(), images, backbone.levels, ["ap"], on_event)
    for level, kinds in tokens.items():
        num_nonfinite = int((~torch.isfinite(kinds["ap"]) & torch.isfinite(exact[level]["ap"])).sum())
        if num_nonfinite:
            return level, num_nonfinite
    return None


def first_images(backbone: Backbone, source: ImageSource) -> Tensor | None:
    """Return the first images [n, 3, H, W] as the backbone's geometry makes them; None if none can be read."""
    rows = Rows(0, min(NUM_IMAGES, len(source)))
    with closing(decode_batches(source, [backbone.geometry], [rows], num_workers=0)) as batches:
        decoded = next(batches)
    good = [row for row in range(rows.stop) if row not in decoded.bad]
    return decoded.images[0][good] if good else None


def run_model(backbone: Backbone, images: Tensor, levels: list[str], kinds: list[str], on_event: OnEvent) -> Tokens:
    """Run the plain forward pass on one batch."""
    forward = SteadyForward(
        backbone.compile(levels, kinds),
        batch_size=len(images),
        model_id=backbone.model_id,
        backend=None,
        on_event=on_event,
    )
    return forward(images.to(backbone.device))
