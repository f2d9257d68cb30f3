"""Whether a float16 model holds on the first images, and whether another split of the data has decided that already.

What is trained on and what is tested on come from one model in one precision: that is decided here, before there is a store,
because the compute dtype is part of a store's identity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..data.sources import ImageSource
from ..errors import RequestError
from ..events import OnEvent, PrecisionFellBack, PrecisionFollowed
from ..models.backbone import Backbone, Tokens
from ..models.request import ModelRequest
from .decoding import Rows, decode_batches
from .extract import spec_of
from .forward import SteadyForward

NUM_IMAGES = 32  # compared; a fixed number, so that the report does not depend on the batch size


def needs_bfloat16(
    backbone: Backbone,
    reference: Reference,
    sources: Sequence[ImageSource],
    storage_dtype: str,
    cache_root: Path,
    siblings: Mapping[str, Path],
    overwrite: bool,
    on_event: OnEvent,
) -> bool:
    """Whether a float16 model is to be replaced, and told why.

    Raises:
        RequestError: it overflows, and a split that is not asked for has a store in float16 only.
    """
    only = next(iter(siblings.values())) if len(siblings) == 1 else None  # with several, every choice has company
    if only is not None and "bfloat16" in siblings:
        on_event(
            PrecisionFollowed(
                backbone=backbone.model_id,
                splits=tuple(source.split for source in sources),
                asked="float16",
                used="bfloat16",
                store=only,
            )
        )
        return True
    for source in sources:
        store = spec_of(backbone, source, storage_dtype).store_path(cache_root)
        if store.exists() and not overwrite:
            continue
        if (found := find_overflow(backbone, reference, source, on_event)) is None:
            continue
        level, num_nonfinite = found
        if only is not None and "float16" in siblings:
            raise RequestError(
                where=f"{backbone.model_id} on {source.name}/{source.split}",
                expected=f"a model that holds in float16, as the one of {only}",
                got=f"{num_nonfinite:,} values of the first images that are not finite at {level}",
                todo="Extract its splits again together, with --split for each, which moves all of them to bfloat16; or give "
                "--precision bfloat16 here and where they are probed; nothing was written.",
            )
        on_event(
            PrecisionFellBack(
                backbone=backbone.model_id,
                split=source.split,
                level=level,
                num_nonfinite=num_nonfinite,
                asked="float16",
                used="bfloat16",
            )
        )
        return True
    return False


class Reference:
    """The same model in float32, opened when it is first needed."""

    def __init__(self, request: ModelRequest, backbone: Backbone) -> None:
        self._request, self._backbone = replace(request, precision="float32"), backbone
        self._opened: Backbone | None = backbone if backbone.precision == "float32" else None

    def open(self) -> Backbone:
        if self._opened is None:
            self._opened = self._request.open(str(self._backbone.device))
        return self._opened


def find_overflow(
    backbone: Backbone, reference: Reference, source: ImageSource, on_event: OnEvent
) -> tuple[str, int] | None:
    """The first level with values that are finite in float32 only, and how many; of all levels, whichever are wanted."""
    images = first_images(backbone, source)
    if images is None:
        return None
    seen = run_model(
        backbone, images, backbone.levels, ["ap"], on_event
    )  # a mean shows whatever is not finite in any patch
    if all(bool(torch.isfinite(kinds["ap"]).all()) for kinds in seen.values()):
        return None
    exact = run_model(reference.open(), images, backbone.levels, ["ap"], on_event)
    for level, kinds in seen.items():
        num_nonfinite = int((~torch.isfinite(kinds["ap"]) & torch.isfinite(exact[level]["ap"])).sum())
        if num_nonfinite:
            return level, num_nonfinite
    return None


def first_images(backbone: Backbone, source: ImageSource) -> Tensor | None:
    """[n, 3, H, W] as the backbone's geometry makes them; None where none can be read."""
    rows = Rows(0, min(NUM_IMAGES, len(source)))
    with closing(decode_batches(source, [backbone.geometry], [rows], num_workers=0)) as batches:
        decoded = next(batches)
    good = [row for row in range(rows.stop) if row not in decoded.bad]
    return decoded.images[0][good] if good else None


def run_model(backbone: Backbone, images: Tensor, levels: list[str], kinds: list[str], on_event: OnEvent) -> Tokens:
    forward = SteadyForward(
        backbone.compile(levels, kinds),
        batch_size=len(images),
        model_id=backbone.model_id,
        backend=None,
        on_event=on_event,
    )
    return forward(images.to(backbone.device))
