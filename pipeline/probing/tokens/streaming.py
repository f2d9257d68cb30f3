"""Tokens of a store that is larger than the memory: read ahead by one thread, in an order that the disk can follow.

An epoch's order is stretches of rows in random order, rows shuffled within a buffer of some stretches; `stretches.py` says how long
they are. Only the pages of the map that the next few batches need are resident: the system is advised to read them ahead, and to
drop them afterwards. One thread gathers and normalises into one of two buffers, while the trainer works on the batch in the other.

Streaming changes no bit: a row has the same values however it is read, and the order of an epoch depends on the
reading order and its labels, seed, epoch and buffer alone, not on where the rows lie: several stores are streamed exactly as one.
Buffer and stretches are counted in rows, whatever a row holds: so probes that read different tokens can share a pass.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import cycle

import numpy as np
import torch

from .stretches import choose_stretches
from .token_source import ROWS_AT_ONCE, CachedTokens
from .windows import PART_ROWS, Take, read_windows

NUM_BUFFERS = 2  # one that the trainer reads, one that is filled
READER_NAME = "layerbank token reader"
CPU = torch.device("cpu")
BATCHES_AHEAD = 2  # batches that the system begins to read before they are gathered
FAULT_BYTES = 64 << 10  # of a file, that Linux maps at a page fault
SHORT_RUN_BYTES = 16 << 10  # of an array, of which a page fault maps too much else: see `windows.py`
INDEX_BYTES = 128  # a row: label, place, and orders while they are made


class StreamedTokens:
    """A `layerbank.probes.StreamedSource` over a store.

    Args:
        tokens: which tokens.
        buffer_rows: rows of the store that are shuffled together. Two such buffers are resident at most.
        device: where the batches go; for a GPU they are given in page-locked memory.

    Attributes:
        reading_order: [N] int64, the rows in the order in which they are best read; stretches are cut from it.
        stretches: how it is cut and shuffled.
    """

    def __init__(self, tokens: CachedTokens, *, buffer_rows: int, device: torch.device = CPU) -> None:
        self._tokens, self._device = tokens, device
        self.targets, self.task, self.token_shape = tokens.targets, tokens.task, tokens.token_shape
        self.images, self.blocks, self.groups = tokens.images, tokens.blocks, tokens.groups
        self.is_validation = tokens.is_validation
        self.reading_order = tokens.reading_order
        self._rank = torch.empty_like(self.reading_order)
        self._rank[self.reading_order] = torch.arange(len(self._rank))
        strata, order = self.task.strata(self.targets), self.reading_order
        self.stretches = choose_stretches(strata[order], self.images[order], buffer_rows)
        self._window_rows = buffer_rows
        self._scattered = self.stretches.spread or tokens.mean_run_bytes(self.stretches.rows) < SHORT_RUN_BYTES

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        """[B] int64 -> float32 [B, *token_shape]."""
        return self._tokens.take(rows)

    def order(self, rows: torch.Tensor, seed: int, epoch: int) -> torch.Tensor:
        """[N] int64 -> [N] the same rows, shuffled buffer by buffer."""
        return self.reading_order[self.stretches.shuffle(self._rank[rows], seed, epoch)]

    def stream(self, batches: Iterable[torch.Tensor]) -> Generator[tuple[torch.Tensor, torch.Tensor], None, None]:
        """Rows [B] and tokens [B, *token_shape] of each batch; the tokens may be written into, and last until the next batch.

        An error of the reading thread is raised here. Closing the generator ends the thread.
        """
        announced = (
            read_windows(self._tokens, batches, self._window_rows) if self._scattered else self._announced(batches)
        )
        buffers = cycle([_Buffer(self._device) for _ in range(NUM_BUFFERS)])

        def read() -> tuple[torch.Tensor, _Buffer] | None:
            batch = next(announced, None)
            if batch is None:
                return None
            (rows, take), buffer = batch, next(buffers)
            buffer.wait()
            take(buffer.tokens(len(rows), self.token_shape))
            return rows, buffer

        with closing(announced), ThreadPoolExecutor(1, READER_NAME, _begin_thread, (self._device,)) as thread:
            reading = thread.submit(read)
            while (batch := reading.result()) is not None:
                reading = thread.submit(read)  # into the buffer that the trainer does not read
                rows, buffer = batch
                yield rows, buffer.tokens(len(rows), self.token_shape)
                buffer.give_back()

    def _announced(self, batches: Iterable[torch.Tensor]) -> Generator[tuple[torch.Tensor, Take], None, None]:
        """Yield the batches and what takes their tokens.

        Pages are read ahead some batches before, and dropped when no batch ahead needs them.
        """
        uses: Counter[int] = Counter()
        ahead: deque[tuple[torch.Tensor, list[int]]] = deque()

        def hand_out() -> Iterator[tuple[torch.Tensor, Take]]:
            rows, stretches = ahead.popleft()
            yield rows, partial(self._tokens.take, rows)
            uses.subtract(stretches)
            done = [stretch for stretch in stretches if uses[stretch] == 0]
            for stretch in done:
                del uses[stretch]
            self._advise(done, self._tokens.release)

        try:
            for rows in batches:
                stretches = torch.unique(self._rank[rows] // self.stretches.rows).tolist()
                self._advise([stretch for stretch in stretches if stretch not in uses], self._tokens.will_need)
                uses.update(stretches)
                ahead.append((rows, stretches))
                if len(ahead) > BATCHES_AHEAD:
                    yield from hand_out()
            while ahead:
                yield from hand_out()
        finally:
            self._advise(sorted(uses), self._tokens.release)

    def _advise(self, stretches: list[int], advice: Callable[[torch.Tensor], None]) -> None:
        if stretches:
            rows = (
                torch.tensor(stretches)[:, None] * self.stretches.rows + torch.arange(self.stretches.rows)
            ).flatten()
            advice(self.reading_order[rows[rows < len(self.reading_order)]])


def _begin_thread(device: torch.device) -> None:
    """A thread begins on GPU 0, where page-locked memory would make a context of its own."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def stream_bytes(tokens: CachedTokens, batch_rows: int, buffer_rows: int) -> int:
    """An upper bound of what streaming takes: pages of the map, buffers, one gather, and lists as long as the split."""
    of_batch = 4 * int(np.prod(tokens.token_shape))
    pages = (2 * buffer_rows + (BATCHES_AHEAD + 2) * batch_rows) * tokens.stored_row_bytes
    pages = max(pages, PART_ROWS * 2 * FAULT_BYTES)
    gather = ROWS_AT_ONCE * (tokens.stored_row_bytes + 3 * of_batch)
    return pages + NUM_BUFFERS * batch_rows * of_batch + gather + INDEX_BYTES * len(tokens.targets)


class _Buffer:
    """Memory for one batch; for a GPU it is page-locked, and not used again before the copy out of it is over."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._pin = device, device.type == "cuda"
        self._values = torch.empty(0)
        self._copied: torch.cuda.Event | None = None

    def tokens(self, num_rows: int, token_shape: tuple[int, ...]) -> torch.Tensor:
        """[num_rows, *token_shape] float32, not initialised."""
        size = num_rows * int(np.prod(token_shape))
        if self._values.numel() < size:
            self._values = torch.empty(size, pin_memory=self._pin)
        return self._values[:size].view(num_rows, *token_shape)

    def give_back(self) -> None:
        """The trainer calls this when it has queued all copies, which it does on the current stream of their device."""
        if self._pin:
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record(
                torch.cuda.current_stream(self._device)
            )  # not of the current device, which may be another

    def wait(self) -> None:
        """Wait until the memory may be filled again."""
        if self._copied is not None:
            self._copied.synchronize()
