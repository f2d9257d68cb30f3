"""Tokens in the memory of the device that trains, a GPU's or the host's, in their storage dtype.

Read once, in reading order, from the map. A batch is gathered where the tokens lie, then widened and normalised by the lines
of `token_source.py`: half the memory of float32 tokens, and the same bits as from the map. Taking a batch does not synchronise
with a GPU: row numbers are copied to it as any small tensor is, and nothing is copied back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import groupby, zip_longest
from typing import NamedTuple

import torch

from layerbank.probes.data.rows import upload
from layerbank.probes.workspace import Workspace

from .token_source import ROWS_AT_ONCE, CachedTokens, put_rows

UPLOAD_BYTES = 8 << 20  # tokens that are on their way at a time


class ResidentTokens:
    """A `layerbank.probes.TokenSource` that holds the rows of a store.

    Args:
        tokens: of several probes, side by side; all of them are read.
        device: device of the memory.
    """

    def __init__(self, tokens: CachedTokens, device: torch.device) -> None:
        assert tokens.blocks is not None, "rows are held as blocks, not as one head wants them"
        self.targets, self.task, self.images = tokens.targets, tokens.task, tokens.images
        self.blocks, self.token_shape, self.groups = tokens.blocks, tokens.token_shape, tokens.groups
        self.is_validation = tokens.is_validation
        self.device, self._rows = device, tokens.rows
        widths: Counter[torch.dtype] = Counter()
        places = []
        for dtype, in_row in zip(tokens.storage_dtypes, tokens.rows.columns, strict=True):
            start, widths[dtype] = widths[dtype], widths[dtype] + in_row.stop - in_row.start
            places.append(_Place(dtype, slice(start, widths[dtype]), in_row))
        self._copies = _joined(places)
        # of each dtype [N, its numbers in a row]: a row in one piece is gathered faster than its arrays one by one
        self._values = {
            dtype: torch.empty(len(self.targets), width, dtype=dtype, device=device) for dtype, width in widths.items()
        }
        self._gathered = {dtype: Workspace(dtype, device) for dtype in widths}
        self._taken = Workspace(torch.float32, device)
        self._read(tokens, places)

    @property
    def size_bytes(self) -> int:
        """Size of the tokens that are held."""
        return sum(values.nbytes for values in self._values.values())

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        """[B] int64 -> float32 [B, F] on the device, in memory that the next call uses again."""
        out = self._taken.empty("rows", len(rows), self._rows.size)
        rows = upload(rows, self.device)
        # a CPU has a cache to stay in, a GPU many cores to feed
        at_once = ROWS_AT_ONCE if self.device.type == "cpu" else len(rows)
        for start in range(0, len(rows), at_once):
            part, taken = rows[start : start + at_once], out[start : start + at_once]
            gathered = {
                dtype: torch.index_select(
                    values, 0, part, out=self._gathered[dtype].empty("rows", len(part), values.shape[1])
                )
                for dtype, values in self._values.items()
            }
            for dtype, here, in_row in self._copies:
                taken[:, in_row].copy_(gathered[dtype][:, here])
            self._rows.normalize(taken)
        return out

    def _read(self, tokens: CachedTokens, places: list[_Place]) -> None:
        """Everything, in reading order, through one buffer; the map is read ahead, and given back behind."""
        rows_at_once = max(1, UPLOAD_BYTES // tokens.stored_row_bytes)
        buffers = {
            dtype: torch.empty(rows_at_once, values.shape[1], dtype=dtype) for dtype, values in self._values.items()
        }
        if self.device.type == "cuda":
            buffers = {dtype: buffer.pin_memory() for dtype, buffer in buffers.items()}
        parts = torch.split(tokens.reading_order, rows_at_once)
        for rows, ahead in zip_longest(parts, parts[1:]):
            if ahead is not None:
                tokens.will_need(ahead)
            for (dtype, here, _), values in zip(places, tokens.gather(rows), strict=True):
                buffers[dtype][: len(rows), here] = values
            for dtype, buffer in buffers.items():
                # waits until the copy is over: the buffer is filled again at once
                put_rows(self._values[dtype], rows, buffer[: len(rows)])
            tokens.release(rows)


class _Place(NamedTuple):
    """Where numbers of one dtype lie: among those of their dtype, and in a row."""

    dtype: torch.dtype
    here: slice
    in_row: slice


def _joined(places: Iterable[_Place]) -> list[_Place]:
    """Places with neighbours of the same dtype made one."""
    runs = [list(run) for _, run in groupby(places, lambda place: place.dtype)]
    return [
        _Place(
            run[0].dtype,
            slice(run[0].here.start, run[-1].here.stop),
            slice(run[0].in_row.start, run[-1].in_row.stop),
        )
        for run in runs
    ]
