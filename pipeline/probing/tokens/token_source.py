"""From a store on disk to what a probe trains on, without a copy of the store in between.

`CachedTokens` gathers rows straight from the memory map. `resident.py` reads a store once into the memory of a device where that
fits, which a sweep of many epochs prefers; `streaming.py` reads it ahead where it does not. All give the same bits: every token
is widened, normalised and padded by the same lines (`token_rows.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from layerbank.cache import TokenCache
from layerbank.probes import HEADS, ArraySource, Reading
from layerbank.probes.workspace import Workspace

from ...errors import RequestError
from ...models.rounding import STORAGE_DTYPES, float_tokens
from ..probe_spec import ProbeSpec
from .token_rows import TokenRows

RELEASE_ROWS = 1024  # rows after which pages of the map that were copied are given back
ROWS_AT_ONCE = 128  # rows of all arrays that are gathered, widened and normalised together


class CachedTokens:
    """Tokens of one store: what one probe reads, joined as its head wants them, or what several read, side by side.

    Args:
        cache: an open store.
        probes: one, whose tokens are concatenated (linear and solved heads) or stacked; or some, whose blocks make up a row, each
            block once.

    Attributes:
        rows: how a row is made of arrays.
        blocks: of a row of several probes: see `layerbank.probes.BlockSource`; None for one probe.
        images: [N] int64, ascending, the image that each row shows; the first row of an image is its centre view.
        labels: [N] int64, of the rows that could be read.
        num_classes: from the data set, not from the labels that happen to occur.
        token_shape: (T, D) stacked, (F,) concatenated or side by side.
        stored_rows: [N] int64, where each image lies in the store, ascending.
        stored_row_bytes: of one image on the disk.
    """

    def __init__(self, cache: TokenCache, probes: ProbeSpec | Sequence[ProbeSpec]) -> None:
        class_names = cache.attributes["class_names"]
        self._ids = cache.sample_ids
        several = [probes] if isinstance(probes, ProbeSpec) else probes
        self.rows = TokenRows(several, lambda level, kind: cache.arrays[level, kind].row_shape)
        self._arrays = [cache.tokens(*array) for array in self.rows.arrays]
        self.stored_rows = torch.from_numpy(np.asarray(cache.rows))
        self.images = torch.from_numpy(np.asarray(cache.images))
        self.stored_row_bytes = sum(array.dtype.itemsize * int(np.prod(array.shape[1:])) for array in self._arrays)
        self.labels = torch.from_numpy(np.asarray(cache.labels))[self.stored_rows]
        self.num_classes = len(class_names)
        self.blocks = None if isinstance(probes, ProbeSpec) else self.rows.blocks
        flat = HEADS[probes.head].flat if isinstance(probes, ProbeSpec) else True
        self._reading = Reading(self.rows.blocks, flat=flat)
        self.token_shape = self._reading.token_shape

    @property
    def stored_bytes(self) -> int:
        """Of all rows that are read."""
        return len(self.labels) * self.stored_row_bytes

    @property
    def sample_ids(self) -> list[str]:
        """The ids of the rows, in the same order as the labels."""
        return [self._ids[row] for row in self.stored_rows.tolist()]

    def take(self, rows: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Tokens of some rows.

        Args:
            rows: [B] int64, in any order.
            out: [B, *token_shape] float32 to fill; None makes it.

        Returns:
            [B, *token_shape] float32, normalised as the probes say.
        """
        if out is None:
            out = torch.empty(len(rows), *self.token_shape)
        for start in range(0, len(rows), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            _fill(out[part], self.rows, self._reading, self.gather(rows[part]))
        return out

    def gather(self, rows: torch.Tensor) -> Iterator[torch.Tensor]:
        """Of each array the tokens [B, t D] of some rows, as they are stored."""
        stored = self.stored_rows[rows].numpy()
        for array in self._arrays:
            yield float_tokens(array.take(stored), array.logical_dtype).flatten(1)

    @property
    def storage_dtypes(self) -> list[torch.dtype]:
        """Of each array."""
        return [STORAGE_DTYPES[array.logical_dtype] for array in self._arrays]

    def will_need(self, start: int, stop: int) -> None:
        """Have the system read rows start to stop of the store ahead."""
        for array in self._arrays:
            array.will_need(start, min(stop, array.shape[0]))

    def release(self, start: int, stop: int) -> None:
        """Give back the memory of rows start to stop of the store."""
        for array in self._arrays:
            array.release(start, min(stop, array.shape[0]))

    def in_memory(self) -> ArraySource:
        """Read everything once, in order, into one float32 array [N, *token_shape]."""
        tokens = torch.empty(len(self.labels), *self.token_shape)
        for start in range(0, len(tokens), RELEASE_ROWS):
            rows = torch.arange(start, min(start + RELEASE_ROWS, len(tokens)))
            self.take(rows, out=tokens[start : start + len(rows)])
            self.release(int(self.stored_rows[rows[0]]), int(self.stored_rows[rows[-1]]) + 1)
        return ArraySource(tokens, self.labels, self.num_classes, self.images, self.blocks)


def join_tokens(probe: ProbeSpec, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """What `CachedTokens.take` does to tokens that come straight from a model.

    Args:
        probe: says how to join.
        parts: one [B, D] or [B, t, D] a (level, kind), levels first, already rounded to the storage dtype.

    Returns:
        [B, T, D] or [B, F] float32.
    """
    arrays = [(level, kind) for level in probe.levels for kind in probe.kinds]
    shapes = {array: tuple(part.shape[1:]) for array, part in zip(arrays, parts, strict=True)}
    rows = TokenRows([probe], lambda level, kind: shapes[level, kind])
    reading = Reading(rows.blocks, flat=HEADS[probe.head].flat)
    out = torch.empty(len(parts[0]), *reading.token_shape)
    _fill(out, rows, reading, parts)
    return out


def require_arrays(cache_arrays: Sequence[tuple[str, str]], probe: ProbeSpec, store: Path) -> None:
    """Refuse a store that lacks a level or kind of the probe.

    Raises:
        RequestError: names what is missing.
    """
    missing = ["/".join(array) for array in probe.arrays if array not in cache_arrays]
    if missing:
        kinds = dict.fromkeys(kind for _, kind in probe.arrays)
        raise RequestError(
            where=f"probe {probe.name!r} on {store}",
            expected="a store with " + ", ".join(missing),
            got=f"{len(cache_arrays)} other arrays",
            todo=f"Add them: layerbank extract ... --kinds {','.join(kinds)} (only what is missing is computed).",
        )


def _fill(out: torch.Tensor, rows: TokenRows, reading: Reading, parts: Iterable[torch.Tensor]) -> None:
    """Joined tokens [b, *token_shape] from those of each array, without a copy in between where a row is read as it lies."""
    if reading.whole:
        rows.fill(out.flatten(1), parts)
        return
    side_by_side = torch.empty(len(out), rows.size)
    rows.fill(side_by_side, parts)
    out.copy_(reading.read(side_by_side, Workspace(torch.float32, out.device)))
