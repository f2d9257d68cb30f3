"""Stores of made-up rows for measurements, and the split that asks for their rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from layerbank.cache import ArraySpec, CacheWriter, ModelSpec, RowSet
from layerbank.data.image_set import ImageSet
from layerbank.data.splits.split_record import SplitRecord
from layerbank.probing.tokens.split_tokens import SplitRequest, SplitTokens

MODEL = ModelSpec(
    architecture="none",
    weights="0" * 16,
    token_rule="1",
    transform="none",
    compute_dtype="float32",
    storage_dtype="float16",
    name="noise",
)


def write_rows(
    path: Path,
    numbers: range,
    arrays: Sequence[ArraySpec],
    tokens_of: Callable[[ArraySpec, int, int], NDArray[np.float16]],
) -> Path:
    """A store with the rows of images of these numbers; `tokens_of(array, start, stop)` are those of neighbouring numbers."""
    rows = RowSet(hashes=_hashes(numbers))
    names = [str(number) for number in numbers]
    with CacheWriter.open(path, MODEL, rows, arrays, name=path.stem, sample_ids=names, batch_size=512) as writer:
        for batch in writer.pending():
            start, stop = numbers.start + batch.start, numbers.start + batch.stop
            tokens = {array.name: tokens_of(array, start, stop) for array in batch.arrays}
            writer.append(batch, tokens, content_hashes=rows.hashes[batch.start : batch.stop])
        writer.complete()
    return path


def sorted_split(root: Path, num_rows: int, num_classes: int, arrays: Sequence[ArraySpec]) -> SplitTokens:
    """The tokens of the images 0 to `num_rows` - 1 in the stores of a cache folder, in classes that follow each other."""
    record = SplitRecord(
        dataset="noise",
        split="train",
        ids=[str(number) for number in range(num_rows)],
        labels=np.arange(num_rows) * num_classes // num_rows,
        class_names=[str(number) for number in range(num_classes)],
        images=ImageSet(
            hashes=_hashes(range(num_rows)),
            rule1_hashes=None,
            is_known=np.ones(num_rows, dtype=np.bool_),
            keeps_order=True,
        ),
    )
    wanted = tuple((array.level, array.kind) for array in arrays)
    return SplitRequest(cache_root=root, model=MODEL, tap="norm2", record=record, rule=None, arrays=wanted).open()


def _hashes(numbers: range) -> NDArray[np.uint64]:
    return np.arange(numbers.start + 1, numbers.stop + 1, dtype=np.uint64)
