"""From a store on disk to what a probe trains on, without a copy of the store in between.

`CachedTokens` gathers rows straight from the memory map; `in_memory` reads it once into one float32 array when that fits, which a
sweep of many epochs prefers; `streaming.py` reads it ahead where it does not. All give the same bits: every token is
rounded, widened, normalised and padded by the same lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cache import TokenArray, TokenCache
from probes import HEAD_KINDS, ArraySource, concat_tokens, stack_tokens

from .errors import RequestError
from .probe_names import TOKEN_AXIS, NamedProbe
from .rounding import float_tokens

RELEASE_ROWS = 1024  # rows after which pages of the map that were copied are given back
ROWS_AT_ONCE = 128  # rows of all arrays that are gathered, widened and normalised together


class CachedTokens:
    """The tokens that one probe reads, from one store.

    Args:
        cache: an open store.
        probe: says which levels and kinds, and whether they are concatenated (linear and solved heads) or stacked.
        num_views: augmented views an image to read beside the centre one; None for all that the store has.

    Attributes:
        images: [N] int64, ascending, the image that each row shows; the first row of an image is its centre view.
        labels: [N] int64, of the rows that could be read.
        num_classes: from the data set, not from the labels that happen to occur.
        token_shape: (T, D) stacked, (F,) concatenated.
        block_rows: rows of the store that lie together on the disk.
        stored_rows: [N] int64, where each image lies in the store, ascending.
        stored_row_bytes: of one image on the disk.
    """

    def __init__(self, cache: TokenCache, probe: NamedProbe, num_views: int | None = None) -> None:
        class_names = cache.attributes["class_names"]
        self._ids = cache.sample_ids
        self._arrays = [cache.tokens(level, kind) for level in probe.levels for kind in probe.kinds]
        self._probe = probe
        rows = torch.from_numpy(np.asarray(cache.rows))
        rows_an_image = 1 + int(cache.attributes.get("num_views", 0))
        self.stored_rows = rows if num_views is None else rows[rows % rows_an_image <= num_views]
        self.images = self.stored_rows // rows_an_image
        self.stored_row_bytes = sum(array.dtype.itemsize * int(np.prod(array.shape[1:])) for array in self._arrays)
        self.block_rows = cache.block_rows
        self.labels = torch.from_numpy(np.asarray(cache.labels))[self.stored_rows]
        self.num_classes = len(class_names)
        num_tokens, widths = zip(*(_tokens_and_width(array) for array in self._arrays), strict=True)
        if HEAD_KINDS[probe.head].flat:
            self.token_shape: tuple[int, ...] = (sum(n * width for n, width in zip(num_tokens, widths, strict=True)),)
        else:
            self.token_shape = (sum(num_tokens), max(widths))

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
            [B, *token_shape] float32, normalised as the probe says.
        """
        stored = self.stored_rows[rows]
        if out is None:
            out = torch.empty(len(rows), *self.token_shape)
        for start in range(0, len(rows), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            _join(self._probe, [_gather(array, stored[part]) for array in self._arrays], out=out[part])
        return out

    def will_need(self, start: int, stop: int) -> None:
        """Have the system read rows start to stop of the store ahead."""
        for array in self._arrays:
            array.will_need(start, min(stop, array.shape[0]))

    def release(self, start: int, stop: int) -> None:
        """Give back the memory of rows start to stop of the store."""
        for array in self._arrays:
            array.release(start, min(stop, array.shape[0]))

    def size_bytes(self) -> int:
        """What `in_memory` would allocate."""
        return 4 * len(self.labels) * int(np.prod(self.token_shape))

    def in_memory(self) -> ArraySource:
        """Read everything once, in order, into one float32 array [N, *token_shape]."""
        tokens = torch.empty(len(self.labels), *self.token_shape)
        for start in range(0, len(tokens), RELEASE_ROWS):
            rows = torch.arange(start, min(start + RELEASE_ROWS, len(tokens)))
            self.take(rows, out=tokens[start : start + len(rows)])
            self.release(int(self.stored_rows[rows[0]]), int(self.stored_rows[rows[-1]]) + 1)
        return ArraySource(tokens, self.labels, self.num_classes, self.images)


def join_tokens(probe: NamedProbe, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """What `CachedTokens.take` does to tokens that come straight from a model.

    Args:
        probe: says how to join.
        parts: one [B, D] or [B, t, D] a (level, kind), levels first, already rounded to the storage dtype.

    Returns:
        [B, T, D] or [B, F] float32.
    """
    return _join(probe, [_as_tokens(part.float()) for part in parts])


def require_arrays(cache_arrays: Sequence[tuple[str, str]], probe: NamedProbe, store: Path) -> None:
    """Refuse a store that lacks a level or kind of the probe.

    Raises:
        RequestError: names what is missing.
    """
    missing = [f"{level}/{kind}" for level in probe.levels for kind in probe.kinds if (level, kind) not in cache_arrays]
    if missing:
        raise RequestError(
            where=f"probe {probe.name!r} on {store}",
            expected="a store with " + ", ".join(missing),
            got=f"{len(cache_arrays)} other arrays",
            todo=f"Add them: layerbank extract ... --kinds {','.join(probe.kinds)} (only what is missing is computed).",
        )


def _join(probe: NamedProbe, parts: Sequence[torch.Tensor], out: torch.Tensor | None = None) -> torch.Tensor:
    """Parts [B, t, D], one a (level, kind), levels first -> [B, T, D] or [B, F] float32."""
    if HEAD_KINDS[probe.head].flat:
        return concat_tokens(parts, out)
    if probe.normalize == TOKEN_AXIS:
        num_kinds = len(probe.kinds)
        starts = range(0, len(parts), num_kinds)
        of_levels = [torch.cat([part.float() for part in parts[start : start + num_kinds]], 1) for start in starts]
        return stack_tokens(of_levels, out, token_axis=True)
    return stack_tokens(parts, out)


def _gather(array: TokenArray, rows: torch.Tensor) -> torch.Tensor:
    return _as_tokens(float_tokens(array.take(rows.numpy()), array.logical_dtype))  # joining makes it float32


def _as_tokens(values: torch.Tensor) -> torch.Tensor:
    return values.unsqueeze(1) if values.ndim == 2 else values  # [B, t, D]


def _tokens_and_width(array: Any) -> tuple[int, int]:
    row_shape = array.shape[1:]
    return (1 if len(row_shape) == 1 else row_shape[0]), row_shape[-1]
