"""Rows that lie scattered over a store, copied out of its map once, window by window.

A page fault maps 64 KiB of a file, of which a short stretch uses little: kept until all batches that need them are read, such pages
would take many times the memory of their rows, and given back after each batch, they would fault again for the next. So the rows of
the next batches, about a buffer of them, are copied as they are stored, in the order of their positions, and their pages are given
back at once. While the batches of one window are handed out, the next is filled, a part after each batch.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from itertools import cycle

import torch

from layerbank.probes.workspace import Workspace

from .token_source import ROWS_AT_ONCE, CachedTokens

PART_ROWS = 16  # whose pages of one array are mapped together
ROWS_AHEAD = 1024  # that the system begins to read before they are copied

Take = Callable[[torch.Tensor], object]
"""Fills [B, *token_shape] with the tokens of a batch."""


def read_windows(
    tokens: CachedTokens, batches: Iterable[torch.Tensor], window_rows: int
) -> Generator[tuple[torch.Tensor, Take], None, None]:
    """Yield the rows [B] of each batch and what takes its tokens, before the next is asked for.

    Args:
        tokens: of which store.
        batches: rows [B] int64 each.
        window_rows: rows that are copied together; the batches that reach it are a window.
    """
    memory = cycle([_Memory(tokens), _Memory(tokens)])
    windows = (_Window(tokens, group, next(memory)) for group in _grouped(batches, window_rows))
    current = next(windows, None)
    if current is not None:
        current.fill(1)
    while current is not None:
        following = next(windows, None)
        for number, rows in enumerate(current.batches):
            yield rows, partial(current.take, number)
            if following is not None:
                following.fill((number + 1) / len(current.batches))
        current = following


class _Memory:
    """Memory for the rows of a window, used again by the window after the next."""

    def __init__(self, tokens: CachedTokens) -> None:
        self._dtypes, self._columns = tokens.storage_dtypes, tokens.rows.columns
        self._blocks = {dtype: Workspace(dtype, torch.device("cpu")) for dtype in self._dtypes}

    def of_rows(self, num_rows: int) -> list[torch.Tensor]:
        """[num_rows, t D] of each array."""
        return [
            self._blocks[dtype].empty(f"array {number}", num_rows, columns.stop - columns.start)
            for number, (dtype, columns) in enumerate(zip(self._dtypes, self._columns, strict=True))
        ]


class _Window:
    """The rows of some batches, as they are stored, sorted by position."""

    def __init__(self, tokens: CachedTokens, batches: list[torch.Tensor], memory: _Memory) -> None:
        self.batches, self._tokens = batches, tokens
        rows = torch.cat(batches)
        order = tokens.stored_rows[rows].argsort(stable=True)
        self._places = torch.split(order.argsort(), [len(batch) for batch in batches])
        self._rows, self._held = rows[order], memory.of_rows(len(rows))
        self._num_filled = self._num_announced = 0

    def fill(self, fraction: float) -> None:
        """Copy rows until this fraction of them is there."""
        while self._num_filled < fraction * len(self._rows):
            part = slice(self._num_filled, min(self._num_filled + PART_ROWS, len(self._rows)))
            self._announce(part.stop + ROWS_AHEAD)
            for held, values in zip(self._held, self._tokens.gather(self._rows[part], once=True), strict=True):
                held[part] = values
            self._num_filled = part.stop

    def _announce(self, stop: int) -> None:
        self._tokens.will_need(self._rows[self._num_announced : stop])
        self._num_announced = max(stop, self._num_announced)

    def take(self, number: int, out: torch.Tensor) -> None:
        """Fill [B, *token_shape] with the tokens of a batch."""
        for start in range(0, len(out), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            places = self._places[number][part]
            self._tokens.join(out[part], (held.index_select(0, places) for held in self._held))


def _grouped(batches: Iterable[torch.Tensor], num_rows: int) -> Iterator[list[torch.Tensor]]:
    """Successive batches that reach a number of rows together."""
    group: list[torch.Tensor] = []
    for batch in batches:
        group.append(batch)
        if sum(map(len, group)) >= num_rows:
            yield group
            group = []
    if group:
        yield group
