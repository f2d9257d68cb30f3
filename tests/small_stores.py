"""A small store of two levels and two kinds, and probes that read it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from token_stores import make_rows, make_spec

from layerbank.cache import ArraySpec, BatchNotes, CacheWriter, storage_dtype_of
from layerbank.data.image_set import ImageSet
from layerbank.data.splits.split_record import SplitRecord
from layerbank.data.splits.split_rows import wanted_rows
from layerbank.data.views import ViewRule
from layerbank.models.rounding import round_tokens
from layerbank.probes import TrainingProtocol
from layerbank.probing.probe_spec import TOKEN_AXIS, ProbeSpec
from layerbank.probing.tokens.split_tokens import SplitRequest, SplitTokens

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
    root: Path,
    storage_dtype: str = "float16",
    num_rows: int = NUM_ROWS,
    num_views: int = 0,
    split: str = "train",
    first_image: int = 0,
) -> SplitTokens:
    """Write a store under a cache folder: rows of three classes, sorted, every hundredth unreadable.

    Returns:
        The tokens of all its rows that can be used.
    """
    arrays = [
        ArraySpec(level=level, kind=kind, row_shape=(width,) if kind == "cls" else (4, width))
        for level, width in WIDTHS.items()
        for kind in ("cls", "grid2")
    ]
    request = small_request(root, storage_dtype, num_rows, num_views, split, first_image)
    wanted, labels = wanted_rows(request.record.images, request.rule), small_labels(num_rows)
    rows, name = wanted.rows, f"small-{split}"
    spec = make_spec(rows=rows, name=name, storage_dtype=storage_dtype)
    generator = torch.Generator().manual_seed(0)
    ids = [f"image {row}" for row in range(num_rows)]
    with CacheWriter.open(
        spec.path(root), spec.model, rows, arrays, name=name, sample_ids=ids, batch_size=60
    ) as writer:
        for batch in writer.pending():
            numbers = np.arange(batch.start, batch.stop)
            tokens = {}
            for array in batch.arrays:
                values = torch.randn(len(numbers), *array.row_shape, generator=generator)
                values[..., :3] += torch.eye(3)[labels[numbers]].view(len(numbers), *[1] * (values.dim() - 2), 3)
                tokens[array.name] = round_tokens(values, storage_dtype_of(storage_dtype, array.kind)).values
            notes = BatchNotes(skipped={int(row): "cut off" for row in numbers if row % 100 == 99})
            writer.append(batch, tokens, content_hashes=rows.hashes[numbers], notes=notes)
        writer.complete()
    return request.open()


def small_request(
    root: Path,
    storage_dtype: str = "float16",
    num_rows: int = NUM_ROWS,
    num_views: int = 0,
    split: str = "train",
    first_image: int = 0,
) -> SplitRequest:
    """The request for the rows of a small store: `num_rows` rows, images times views, of the images from a number on."""
    num_images = num_rows // (1 + num_views)
    record = SplitRecord(
        dataset="small",
        split=split,
        ids=[f"image {image}" for image in range(num_images)],
        labels=small_labels(num_rows)[:: 1 + num_views],
        class_names=["circle", "square", "star"],
        images=ImageSet(
            hashes=make_rows(np.arange(num_images) + first_image).hashes,
            rule1_hashes=None,
            is_known=np.ones(num_images, dtype=np.bool_),
            keeps_order=True,
        ),
    )
    return SplitRequest(
        cache_root=root,
        model=make_spec(rows=make_rows(1), storage_dtype=storage_dtype).model,
        tap="norm2",
        record=record,
        rule=ViewRule(num_views=num_views) if num_views else None,
        arrays=tuple((level, kind) for level in WIDTHS for kind in ("cls", "grid2")),
    )


def with_copies(request: SplitRequest, copies: dict[int, int]) -> SplitRequest:
    """The request with some images (keys) replaced by copies of others (values) under their own ids and labels."""
    images = request.record.images
    hashes = images.hashes.copy()
    hashes[list(copies)] = hashes[list(copies.values())]
    return replace(request, record=replace(request.record, images=replace(images, hashes=hashes)))


def small_labels(num_rows: int = NUM_ROWS) -> NDArray[np.int64]:
    """``[num_rows]`` the class of each row."""
    return np.arange(num_rows) * 3 // num_rows
