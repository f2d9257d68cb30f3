"""A small store of two levels and two kinds, and probes that read it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from token_stores import make_spec

from layerbank.cache import ArraySpec, BatchNotes, CacheWriter, TokenCache, storage_dtype_of
from layerbank.models.rounding import round_tokens
from layerbank.probes import TrainingProtocol
from layerbank.probing.probe_spec import TOKEN_AXIS, ProbeSpec

NUM_ROWS = 600
LEVELS = ("block.0", "final")
WIDTHS = {"block.0": 24, "final": 16}  # as CLIP has them
LINEAR = ProbeSpec(name="linear", head="linear", levels=("final",), kinds=("cls",))
ALF = ProbeSpec(name="alf", head="attentive", levels=LEVELS, kinds=("cls", "grid2"), num_heads=4)
GRID = ProbeSpec(name="grid", head="attentive", levels=("block.0",), kinds=("grid2",), num_heads=2)
QUIRK = replace(ALF, name="quirk", normalize=TOKEN_AXIS)
PROTOCOL = TrainingProtocol(
    lrs=(1e-2, 1e-3), weight_decays=(1e-4,), dropouts=(0.0, 0.3), epochs=1, min_steps=6, batch_size=100
)


def write_small_store(
    path: Path, storage_dtype: str = "float16", num_rows: int = NUM_ROWS, num_views: int = 0
) -> TokenCache:
    """Rows of three classes, sorted, every hundredth unreadable."""
    arrays = [
        ArraySpec(level=level, kind=kind, row_shape=(width,) if kind == "cls" else (4, width))
        for level, width in WIDTHS.items()
        for kind in ("cls", "grid2")
    ]
    labels = np.arange(num_rows) * 3 // num_rows
    generator = torch.Generator().manual_seed(0)
    writer = CacheWriter.open(
        path,
        make_spec(num_rows, storage_dtype=storage_dtype),
        arrays,
        labels=labels,
        sample_ids=[f"image {row}" for row in range(num_rows)],
        batch_size=60,
        attributes={"class_names": ["circle", "square", "star"], "num_views": num_views},
    )
    with writer:
        for batch in writer.pending():
            rows = np.arange(batch.start, batch.stop)
            tokens = {}
            for array in batch.arrays:
                values = torch.randn(len(rows), *array.row_shape, generator=generator)
                values[..., :3] += torch.eye(3)[labels[rows]].view(len(rows), *[1] * (values.dim() - 2), 3)
                tokens[array.name] = round_tokens(values, storage_dtype_of(storage_dtype, array.kind)).values
            skipped = {int(row): "cut off" for row in rows if row % 100 == 99}
            notes = BatchNotes(skipped=skipped)
            writer.append(batch, tokens, content_hashes=rows.astype(np.uint64), notes=notes)
        writer.complete()
    return TokenCache.open(path)
