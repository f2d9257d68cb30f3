"""The writer's thread: waits for tokens to arrive from the device and appends them, while the loop goes on with the next batch.

Only this thread ever waits for the device. It knows the store, not the model or the images.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from layerbank.cache import Batch, BatchNotes

from ..models.rounding import Rounded

QUEUED_BATCHES = 4  # waiting for the disk; the device may have fewer buffers


class BatchWriter(Protocol):
    """Takes batches of tokens, as a `CacheWriter` does."""

    batch_size: int
    num_missing_rows: int

    def append(
        self,
        batch: Batch,
        tokens: Mapping[str, NDArray[Any]],
        *,
        content_hashes: NDArray[np.uint64],
        notes: BatchNotes | None = None,
    ) -> None:
        """Take the tokens of one batch."""


class Arriving(Protocol):
    """Tokens on their way from the device to the host."""

    def wait(self) -> dict[str, Rounded]:
        """Wait for the tokens and return array name -> [n, *row_shape]; valid until `release`."""

    def release(self) -> None:
        """Allow their memory to be used again."""


@dataclass(frozen=True)
class PendingBatch:
    """One batch for the store.

    Attributes:
        batch: its rows and arrays.
        tokens: the tokens of those arrays.
        content_hashes: [n] uint64, one for each image.
        skipped: row -> why its image could not be read.
    """

    batch: Batch
    tokens: Arriving
    content_hashes: NDArray[np.uint64]
    skipped: dict[int, str] = field(default_factory=dict)


class WriterThread:
    """Appends batches to a store in their order. An error is raised at the next `put`, or at `finish`.

    Attributes:
        size_bytes: size of the tokens appended so far.
        device_wait_s: time spent waiting for tokens to arrive.
        out_of_range: array name -> numbers of saturated and of non-finite values so far, for arrays that have any.
    """

    def __init__(self, writer: BatchWriter) -> None:
        self.size_bytes = 0
        self.device_wait_s = 0.0
        self.out_of_range: dict[str, tuple[int, int]] = {}
        self._writer = writer
        self._queue: queue.Queue[PendingBatch | None] = queue.Queue(QUEUED_BATCHES)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="layerbank-writer", daemon=True)

    def __enter__(self) -> WriterThread:
        self._thread.start()
        return self

    def put(self, pending: PendingBatch) -> None:
        """Hand over a batch; waits where the disk is too far behind."""
        if self._error is not None:
            raise self._error
        self._queue.put(pending)

    def finish(self) -> None:
        """Wait until every batch is written, and raise the error of the thread if there is one."""
        self._stop()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (pending := self._queue.get()) is not None:
            try:
                if self._error is None:  # else only empty the queue, so that the loop never blocks on a dead writer
                    self._append(pending)
            except BaseException as error:  # handed to the loop, which raises it
                self._error = error
            finally:
                pending.tokens.release()

    def _append(self, pending: PendingBatch) -> None:
        began = time.perf_counter()
        tokens = pending.tokens.wait()
        self.device_wait_s += time.perf_counter() - began
        notes = BatchNotes(
            skipped=pending.skipped,
            saturated={name: r.num_saturated for name, r in tokens.items() if r.num_saturated},
            nonfinite={name: r.num_nonfinite for name, r in tokens.items() if r.num_nonfinite},
        )
        values: dict[str, Any] = {name: r.values for name, r in tokens.items()}
        self._writer.append(pending.batch, values, content_hashes=pending.content_hashes, notes=notes)
        self.size_bytes += sum(array.nbytes for array in values.values())
        for name in {**notes.saturated, **notes.nonfinite}:
            saturated, nonfinite = self.out_of_range.get(name, (0, 0))
            # a new pair at once: the loop reads this dictionary from its own thread
            self.out_of_range[name] = (
                saturated + tokens[name].num_saturated,
                nonfinite + tokens[name].num_nonfinite,
            )

    def _stop(self) -> None:
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def __exit__(self, *error: object) -> None:
        self._stop()
