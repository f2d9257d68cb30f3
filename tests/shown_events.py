"""Events of an extraction, and the lines that the console shows of events."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from layerbank.console import Listener
from layerbank.events import Event, ExtractionFinished, ExtractionProgress, ExtractionStarted

STORE = Path("caches/photos/train/model-1a2b3c4d.zarr")
STARTED = ExtractionStarted(
    store=STORE,
    backbone="timm/vit",
    dataset="photos",
    split="train",
    num_rows=1000,
    num_pending=900,
    num_missing=900,
    num_arrays=26,
    device="cpu",
    precision="float32",
    batch_size=64,
)
PROGRESS = ExtractionProgress(num_done=450, num_pending=900, elapsed_s=10.0, decode_s=2.0, compute_s=7.0, write_s=0.5)
FINISHED = ExtractionFinished(
    store=STORE,
    num_rows=1000,
    num_computed=900,
    size_bytes=2_000_000,
    elapsed_s=20.0,
    decode_s=4.0,
    compute_s=14.0,
    write_s=1.0,
)


def shown(capsys: pytest.CaptureFixture[str], *events: Event, **options: Any) -> list[str]:
    """What the console writes of some events, by line."""
    with Listener(**options) as listener:
        for event in events:
            listener.show(event)
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()
