"""One batch on its way into a store: which rows and arrays, and whether what comes for them is that.

Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import BatchError
from .journal import BatchNotes
from .layout import CONTENT_HASHES, storage_dtype
from .spec import ArraySpec, CacheSpec


@dataclass(frozen=True)
class Batch:
    """Rows to be computed together.

    Args:
        block: the block they lie in.
        start: first row.
        stop: one past the last row.
        arrays: what is still missing there, sorted by level and kind.
    """

    block: int
    start: int
    stop: int
    arrays: tuple[ArraySpec, ...]

    def __len__(self) -> int:
        return self.stop - self.start


def check_content(
    store: Path,
    batch: Batch,
    tokens: Mapping[str, NDArray[Any]],
    content_hashes: NDArray[np.uint64],
    notes: BatchNotes,
    spec: CacheSpec,
) -> None:
    """Collect everything wrong with what came for a batch, or take it.

    Raises:
        BatchError: arrays of other names, shapes or dtypes, notes of other rows or arrays.
    """
    names = {array.name for array in batch.arrays}
    wrong: list[tuple[str, str, str]] = []
    if set(tokens) != names:
        missing, unknown = sorted(names - set(tokens)), sorted(set(tokens) - names)
        wrong.append(("the arrays", "those of the batch", f"missing {missing}, unknown {unknown}"))
    expected = {array.name: ((len(batch), *array.row_shape), storage_dtype(spec, array.kind)) for array in batch.arrays}
    expected[CONTENT_HASHES] = ((len(batch),), np.dtype("<u8"))
    for name, values in {**tokens, CONTENT_HASHES: content_hashes}.items():
        shape, dtype = expected.get(name, (values.shape, values.dtype))
        if values.shape != shape or values.dtype != dtype:
            wrong.append((name, f"{dtype} {shape}", f"{values.dtype} {values.shape}"))
    if not all(batch.start <= row < batch.stop for row in notes.skipped):
        wrong.append(("notes.skipped", "rows of this batch", str(sorted(notes.skipped))))
    if not {*notes.saturated, *notes.nonfinite} <= names:
        wrong.append(("notes", "arrays of this batch", str(sorted({*notes.saturated, *notes.nonfinite}))))
    if wrong:
        raise BatchError(
            where=f"{store} rows {batch.start} to {batch.stop}",
            expected="; ".join(f"{name}: {rule}" for name, rule, _ in wrong),
            got="; ".join(f"{name}: {got}" for name, _, got in wrong),
            todo="Pass each array of the batch in the storage dtype, bfloat16 as its uint16 bits.",
        )
