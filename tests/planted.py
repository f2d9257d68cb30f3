"""The tiny model with one large channel, as DINOv2 and CLIP-L have them, and what `settle` says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from extractions import rows_of
from photos import TINY_MODEL

from layerbank.data.sources import ImageSource
from layerbank.events import Event
from layerbank.extraction.extract import ExtractConfig
from layerbank.extraction.parity import Settled, settle
from layerbank.models.backbone import Backbone, open_backbone
from layerbank.models.request import ModelRequest

ARRAYS = [(level, kind) for level in ("block.1", "block.5", "final") for kind in ("cls", "ap")]


class Planted(ModelRequest):
    """The tiny model with one channel of its residual stream at `VALUE` from block 2 on."""

    VALUE = 0.0

    def open(self, device: str) -> Backbone:
        backbone = open_backbone(
            TINY_MODEL, weights="random", image_size=32, tap=self.tap, device=device, precision="float32"
        )
        with torch.no_grad():
            backbone.tower.blocks[2].mlp.fc2.bias[7] += self.VALUE  # type: ignore[union-attr, index, operator]
        backbone.tower.model.to(getattr(torch, self.precision))
        return Backbone(
            **{
                name: getattr(backbone, name)
                for name in ("model_id", "architecture", "weights_digest", "tap", "device")
            },
            precision=self.precision,
            embed_dim=backbone.embed_dim,
            tower=backbone.tower,
        )


class Massive(Planted):
    """Overflows in float16."""

    VALUE = 1e5


class Large(Planted):
    """Is large, and does not overflow in float16."""

    VALUE = 3e4


def look(
    source: ImageSource, root: Path, request: ModelRequest | None = None, **changes: Any
) -> tuple[Settled, list[Event]]:
    """Settle the precision of one split, or of the `sources` among the changes; returns the events too."""
    events: list[Event] = []
    request = request or Planted(model=TINY_MODEL)
    arrays = changes.pop("arrays", ARRAYS)
    splits = [rows_of(one, root) for one in changes.pop("sources", [source])]
    config = ExtractConfig(arrays=tuple(arrays), storage_dtype=changes.pop("storage_dtype", "float16"), num_workers=0)
    return settle(request, request.open("cpu"), splits, config, root, on_event=events.append, **changes), events


def parity_of(settled: Settled, split: str = "train") -> dict[str, Any]:
    """Path of an array -> its parity, of the one new store of a split."""
    (parity,) = settled.parity[split].values()
    return dict(parity)
