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
from probes import HEAD_KINDS, ArraySource, Block, Reading, columns_of, concat_tokens, l2_normalize, stack_tokens

from .errors import RequestError
from .probe_names import TOKEN_AXIS, NamedProbe
from .rounding import float_tokens

RELEASE_ROWS = 1024  # rows after which pages of the map that were copied are given back
ROWS_AT_ONCE = 128  # rows of all arrays that are gathered, widened and normalised together


class CachedTokens:
    """Tokens of one store: what one probe reads, joined as its head wants them, or what several read, side by side.

    Args:
        cache: an open store.
        probes: one, whose tokens are concatenated (linear and solved heads) or stacked; or some, whose blocks make up a row, each
            block once.

    Attributes:
        blocks: of a row of several probes: see `probes.BlockSource`; None for one probe.
        images: [N] int64, ascending, the image that each row shows; the first row of an image is its centre view.
        labels: [N] int64, of the rows that could be read.
        num_classes: from the data set, not from the labels that happen to occur.
        token_shape: (T, D) stacked, (F,) concatenated or side by side.
        block_rows: rows of the store that lie together on the disk.
        stored_rows: [N] int64, where each image lies in the store, ascending.
        stored_row_bytes: of one image on the disk.
    """

    def __init__(self, cache: TokenCache, probes: NamedProbe | Sequence[NamedProbe]) -> None:
        class_names = cache.attributes["class_names"]
        self._ids = cache.sample_ids
        self._probe = probes if isinstance(probes, NamedProbe) else None
        several = [probes] if isinstance(probes, NamedProbe) else probes
        read = {name: arrays for probe in several for name, arrays in _arrays_of_blocks(probe).items()}
        self._parts = {name: [cache.tokens(*array) for array in arrays] for name, arrays in read.items()}
        self._arrays = [array for arrays in self._parts.values() for array in arrays]
        self.stored_rows = torch.from_numpy(np.asarray(cache.rows))
        self.images = torch.from_numpy(np.asarray(cache.images))
        self.stored_row_bytes = sum(array.dtype.itemsize * int(np.prod(array.shape[1:])) for array in self._arrays)
        self.block_rows = cache.block_rows
        self.labels = torch.from_numpy(np.asarray(cache.labels))[self.stored_rows]
        self.num_classes = len(class_names)
        blocks = tuple(_block(name, arrays) for name, arrays in self._parts.items())
        self.blocks = blocks if self._probe is None else None
        self._columns = columns_of(blocks)
        flat = self._probe is None or HEAD_KINDS[self._probe.head].flat
        self.token_shape = Reading(blocks, flat=flat).token_shape

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
        stored = self.stored_rows[rows]
        if out is None:
            out = torch.empty(len(rows), *self.token_shape)
        for start in range(0, len(rows), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            if self._probe is not None:
                _join(self._probe, [_gather(array, stored[part]) for array in self._arrays], out=out[part])
                continue
            for name, arrays in self._parts.items():
                tokens = torch.cat([_gather(array, stored[part]).float() for array in arrays], 1)  # [b, t, D]
                over_tokens = len(arrays) > 1
                normalized = torch.nn.functional.normalize(tokens, dim=1) if over_tokens else l2_normalize(tokens)
                out[part, self._columns[name]] = normalized.flatten(1)
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
        return ArraySource(tokens, self.labels, self.num_classes, self.images, self.blocks)


def block_names(probe: NamedProbe) -> tuple[str, ...]:
    """The blocks that a probe reads of a row of several probes, in its order.

    >>> from .probe_names import resolve_probe
    >>> block_names(resolve_probe("attn-mid", 12))
    ('block.6/cls', 'block.6/ap', 'final/cls', 'final/ap')
    """
    return tuple(_arrays_of_blocks(probe))


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
    missing = ["/".join(array) for array in probe.arrays if array not in cache_arrays]
    if missing:
        kinds = dict.fromkeys(kind for _, kind in probe.arrays)
        raise RequestError(
            where=f"probe {probe.name!r} on {store}",
            expected="a store with " + ", ".join(missing),
            got=f"{len(cache_arrays)} other arrays",
            todo=f"Add them: layerbank extract ... --kinds {','.join(kinds)} (only what is missing is computed).",
        )


def _arrays_of_blocks(probe: NamedProbe) -> dict[str, list[tuple[str, str]]]:
    """Name of a block -> its arrays: one, or, where tokens are normalised over the tokens of a level, all of the level."""
    if probe.normalize == TOKEN_AXIS and len(probe.kinds) > 1:
        return {
            f"{level}/{'+'.join(probe.kinds)} over tokens": [(level, kind) for kind in probe.kinds]
            for level in probe.levels
        }
    return {f"{level}/{kind}": [(level, kind)] for level in probe.levels for kind in probe.kinds}


def _block(name: str, arrays: Sequence[TokenArray]) -> Block:
    num_tokens, widths = zip(*(_tokens_and_width(array) for array in arrays), strict=True)
    return Block(name=name, num_tokens=sum(num_tokens), width=max(widths))


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
