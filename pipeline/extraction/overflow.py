"""Whether a float16 model overflows on the first images of a data set.

All splits of one command are computed in one precision, so that a probe is trained and tested on the tokens of one model. This is
decided before a store is made, because the compute dtype is part of a model's identity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cache, partial

import torch
from torch import Tensor

from layerbank.cache import Gaps, ModelStores

from ..data.sources import ImageSource
from ..data.splits.split_rows import SplitRows
from ..events import OnEvent, PrecisionFellBack
from ..models.backbone import Backbone, Tokens
from ..models.request import ModelRequest
from .decoding import Rows, decode_batches
from .extract import Extraction
from .forward import SteadyForward

NUM_IMAGES = 32  # compared; a fixed number, so that the report does not depend on the batch size


def needs_bfloat16(
    extraction: Extraction,
    open_reference: Callable[[], Backbone],
    splits: Sequence[SplitRows],
    gaps: Sequence[Gaps],
    stores: ModelStores,
    on_event: OnEvent,
) -> bool:
    """Return whether a float16 model overflows on the first images of a split of which the cache has no rows yet."""
    backbone = extraction.backbone
    for rows, found in zip(splits, gaps, strict=True):
        if not found.num_missing or extraction.has_rows(rows, stores):
            continue
        if (overflow := find_overflow(backbone, open_reference, rows.source, on_event)) is None:
            continue
        level, num_nonfinite = overflow
        split, model = rows.source.split, backbone.model_id
        on_event(PrecisionFellBack(backbone=model, split=split, level=level, num_nonfinite=num_nonfinite))
        return True
    return False


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
