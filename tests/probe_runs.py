"""Small stores of photos, and runs of `layerbank.probing.probe.probe` on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from extractions import extract
from photos import VIT_TINY

from layerbank.data.sources import open_source
from layerbank.events import Event
from layerbank.extraction.extract import ExtractConfig
from layerbank.models.backbone import Backbone
from layerbank.models.request import ModelRequest
from layerbank.probes import QUICK, TrainingProtocol
from layerbank.probing.probe import probe
from layerbank.probing.probe_spec import parse_probe
from layerbank.probing.tokens.split_tokens import SplitRequest

BATCH = 16
PROTOCOL = replace(QUICK, lrs=(1e-2, 1e-3), weight_decays=(1e-4,), epochs=3, min_steps=20)
FEW = replace(PROTOCOL, lrs=(1e-2, 1e-3, 3e-4), weight_decays=(1e-4, 1e-1), min_steps=40)
KINDS = ("cls", "ap", "grid2", "patch")
REQUEST = ModelRequest(model=VIT_TINY, weights="random", image_size=32)


def stores_of(
    backbone: Backbone, photos: Path, root: Path, storage_dtype: str = "float16"
) -> tuple[SplitRequest, SplitRequest]:
    arrays = tuple((level, kind) for level in backbone.levels for kind in KINDS)
    config = ExtractConfig(arrays=arrays, storage_dtype=storage_dtype, batch_size=BATCH, num_workers=0)
    sources = [open_source(f"folder:{photos}", split) for split in ("train", "test")]
    train, test = (extract(backbone, source, config, root) for source in sources)
    return train, test


def run(
    stores: tuple[SplitRequest, SplitRequest],
    runs: Path,
    names: tuple[str, ...],
    protocol: TrainingProtocol = PROTOCOL,
    **more: Any,
) -> tuple[list[dict[str, Any]], list[Event]]:
    events: list[Event] = []
    named = [parse_probe(name, 12) for name in names]
    config = {"model": REQUEST.to_dict()}
    rows = probe(*stores, named, protocol, runs, config=config, on_event=events.append, **more)
    return rows, events
