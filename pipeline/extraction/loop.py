"""The loop of stage one: decode -> device -> model -> host -> store, all running at the same time, for one model or several.

Every image is decoded once, however many models need it: the batches of all stores are cut where any of them begins or ends, each
piece is decoded once, and a store's batch goes to its model when its last piece is decoded. With one model, or several whose
batches have the same size, a piece is a batch.

Knows neither how images are decoded, nor how a model is run, nor how tokens are written: see `decoding`, `transfer` and
`write_behind`.
"""

from __future__ import annotations

import pickle
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from layerbank.cache import Batch, storage_dtype_of

from ..data.selected_source import SelectedSource
from ..events import (
    ExtractionFinished,
    ExtractionProgress,
    ExtractionStarted,
    FlatImages,
    ImageSkipped,
    OnEvent,
    TokensOutOfRange,
)
from ..models.backbone import Backbone
from ..models.transform import Geometry
from .decoding import DecodedBatch, Rows, decode_batches
from .forward import SteadyForward
from .transfer import Transfer, open_transfer
from .views import view_geometry
from .write_behind import BatchWriter, PendingBatch, WriterThread


@dataclass(frozen=True, kw_only=True)
class ExtractionTask:
    """One model, and the store that is being filled with its tokens.

    Attributes:
        backbone: the model.
        writer: takes the batches of tokens.
        pending: the batches to compute.
        storage_dtype: dtype of the stored tokens, as in a store's spec.
        store: path of the store, for messages.
        backend: backend of `torch.compile`; None runs the plain forward pass.
        forwards: (levels, kinds) -> the forward pass made before: a worker that claims rows several times compiles once.
    """

    backbone: Backbone
    writer: BatchWriter
    pending: Sequence[Batch]
    storage_dtype: str
    store: Path
    backend: str | Callable[..., Any] | None = None
    forwards: dict[tuple[tuple[str, ...], tuple[str, ...]], SteadyForward] = field(default_factory=dict)

    @property
    def num_pending(self) -> int:
        """Rows still to compute."""
        return sum(len(batch) for batch in self.pending)


def run_tasks(
    tasks: Sequence[ExtractionTask], source: SelectedSource, *, num_workers: int, on_bad_image: str, on_event: OnEvent
) -> None:
    """Compute and append every pending batch of every task.

    Args:
        tasks: one for each model; those with nothing pending cost nothing.
        source: the images.
        num_workers: decoding processes.
        on_bad_image: `stop` or `skip`.
        on_event: callback for progress.

    Raises:
        BadImage: an image could not be read and `on_bad_image` is `stop`.
        WorkError: a decoding process died.
        CacheError: a store cannot be written.
    """
    tasks = [task for task in tasks if task.pending]
    clock = _Clock()
    geometries, geometry_of = distinct_geometries([view_geometry(task.backbone, source) for task in tasks])
    pieces = cut_pieces([[(batch.start, batch.stop) for batch in task.pending] for task in tasks])
    wanted = [
        Rows(start, stop, tuple(sorted({geometry_of[number] for number in numbers}))) for start, stop, numbers in pieces
    ]
    for task in tasks:
        on_event(_started(task, source))
    num_pending = sum(task.num_pending for task in tasks)
    num_done = 0
    reported: set[str] = set()
    flat: dict[str, None] = {}  # ids: the views of an image share one
    with ExitStack() as stack:
        decoded_pieces = stack.enter_context(
            closing(decode_batches(source, geometries, wanted, num_workers=num_workers))
        )
        runs = [_TaskRun(task, stack.enter_context(WriterThread(task.writer)), clock, on_event) for task in tasks]
        for _, _, numbers in pieces:
            with clock("decode_s"):
                decoded = next(decoded_pieces)
            _check_images(decoded, on_bad_image, on_event, reported)
            flat |= dict.fromkeys(source.ids[row] for row in decoded.flat)
            for number in numbers:
                if num_rows := runs[number].take(decoded, geometry_of[number]):
                    num_done += num_rows
                    on_event(
                        ExtractionProgress(
                            num_done=num_done, num_pending=num_pending, num_workers=num_workers, **clock.times()
                        )
                    )
        for run in runs:
            run.finish()
        if flat:
            on_event(FlatImages(dataset=source.name, split=source.split, num_images=len(flat), first=next(iter(flat))))
        for run in runs:
            on_event(run.finished(num_rows=len(source), num_workers=num_workers))


def cut_pieces(batches: Sequence[Sequence[tuple[int, int]]]) -> list[tuple[int, int, tuple[int, ...]]]:
    """Cut row ranges of several lists at every border of any of them.

    Args:
        batches: (start, stop) ranges of each list, disjoint within a list.

    Returns:
        (start, stop, numbers of the lists that hold these rows), by row.

    >>> cut_pieces([[(0, 4), (4, 8)], [(0, 6)]])
    [(0, 4, (0, 1)), (4, 6, (0, 1)), (6, 8, (0,))]
    """
    borders = sorted({border for ranges in batches for pair in ranges for border in pair})
    holders: dict[int, list[int]] = defaultdict(list)
    for number, ranges in enumerate(batches):
        for start, stop in ranges:
            for index in range(bisect_left(borders, start), bisect_left(borders, stop)):
                holders[index].append(number)
    return [(borders[index], borders[index + 1], tuple(numbers)) for index, numbers in sorted(holders.items())]


class _Clock:
    """Seconds since it was made, and how many of them were spent on each part of the loop."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self.spent = {"decode_s": 0.0, "compute_s": 0.0, "write_s": 0.0}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        since = time.perf_counter()
        try:
            yield
        finally:
            self.spent[part] += time.perf_counter() - since

    @contextmanager
    def waiting_for(self, writer_thread: WriterThread) -> Iterator[None]:
        """Wait for the writer's thread; while that waits for the device, the time is the model's."""
        before, waited_s = self.spent["write_s"], writer_thread.device_wait_s
        with self("write_s"):
            yield
        device_s = min(self.spent["write_s"] - before, writer_thread.device_wait_s - waited_s)
        self.spent["write_s"] -= device_s
        self.spent["compute_s"] += device_s

    def times(self) -> dict[str, float]:
        """The seconds of each part and in all, as events name them."""
        return {"elapsed_s": time.perf_counter() - self._started, **self.spent}


class _TaskRun:
    """A task that is running: its forward pass, its transfer to and from the device, its writer's thread."""

    def __init__(self, task: ExtractionTask, writer_thread: WriterThread, clock: _Clock, on_event: OnEvent) -> None:
        self.task, self.writer_thread = task, writer_thread
        self._clock, self._on_event = clock, on_event
        self._batches = sorted(task.pending, key=lambda batch: batch.start, reverse=True)  # the next one last
        self._parts: list[tuple[DecodedBatch, torch.Tensor]] = []  # decoded pieces of the next batch
        self._reported: dict[str, tuple[int, int]] = {}
        self._transfer = self._open_transfer()

    def _open_transfer(self) -> Transfer:
        task, batch_size = self.task, self.task.writer.batch_size
        arrays = dict.fromkeys(array for batch in task.pending for array in batch.arrays)
        levels = tuple(dict.fromkeys(array.level for array in arrays))
        kinds = tuple(dict.fromkeys(array.kind for array in arrays))
        if (levels, kinds) not in task.forwards:
            task.forwards[levels, kinds] = SteadyForward(
                task.backbone.compile(list(levels), list(kinds)),
                batch_size=batch_size,
                model_id=task.backbone.model_id,
                backend=task.backend,
                on_event=self._on_event,
            )
        return open_transfer(task.forwards[levels, kinds], task.backbone.device, task.storage_dtype, batch_size)

    def take(self, decoded: DecodedBatch, geometry: int) -> int:
        """Take a decoded piece, and compute its batch if this was the last piece.

        Returns:
            the number of rows computed.
        """
        self._parts.append((decoded, decoded.images[geometry]))
        if decoded.stop != self._batches[-1].stop:
            return 0
        batch = self._batches.pop()
        with self._clock.waiting_for(self.writer_thread):
            self._transfer.reserve()
        with self._clock("compute_s"):
            pending = self._compute(batch)
        with self._clock.waiting_for(self.writer_thread):
            self.writer_thread.put(pending)
        self._report_out_of_range()
        return len(batch)

    def finish(self) -> None:
        """Wait until everything is written."""
        with self._clock.waiting_for(self.writer_thread):
            self.writer_thread.finish()
        self._report_out_of_range()

    def finished(self, *, num_rows: int, num_workers: int) -> ExtractionFinished:
        """Return the event that reports the end."""
        return ExtractionFinished(
            store=self.task.store,
            num_rows=num_rows,
            num_computed=self.task.num_pending,
            size_bytes=self.writer_thread.size_bytes,
            num_workers=num_workers,
            **self._clock.times(),
        )

    def _compute(self, batch: Batch) -> PendingBatch:
        parts, self._parts = self._parts, []
        images = parts[0][1] if len(parts) == 1 else torch.cat([images for _, images in parts])
        bad = {row: error.reason for decoded, _ in parts for row, error in decoded.bad.items()}
        return PendingBatch(
            batch,
            self._transfer(images, batch.arrays, [row - batch.start for row in bad]),
            np.concatenate([decoded.content_hashes for decoded, _ in parts]),
            bad,
        )

    def _report_out_of_range(self) -> None:
        for name, counts in list(self.writer_thread.out_of_range.items()):
            if self._reported.get(name) != counts:
                self._reported[name] = counts
                self._on_event(
                    TokensOutOfRange(
                        array=name,
                        num_saturated=counts[0],
                        num_nonfinite=counts[1],
                        storage_dtype=storage_dtype_of(self.task.storage_dtype, name.rpartition("/")[2]),
                    )
                )


def distinct_geometries(geometries: Sequence[Geometry]) -> tuple[list[Geometry], list[int]]:
    """Return the distinct geometries, and the index of each given one: models that crop alike share their images."""
    pickled = [pickle.dumps(geometry) for geometry in geometries]
    known = list(dict.fromkeys(pickled))
    return [geometries[pickled.index(one)] for one in known], [known.index(one) for one in pickled]


def _check_images(decoded: DecodedBatch, on_bad_image: str, on_event: OnEvent, reported: set[str]) -> None:
    """Stop at the first unreadable image, or report which are skipped; the views of an image have one id and are reported once."""
    for bad in decoded.bad.values():
        if on_bad_image == "stop":
            raise bad
        if bad.id not in reported:
            reported.add(bad.id)
            on_event(ImageSkipped(sample_id=bad.id, file=bad.file, reason=bad.reason))


def _started(task: ExtractionTask, source: SelectedSource) -> ExtractionStarted:
    return ExtractionStarted(
        store=task.store,
        backbone=task.backbone.model_id,
        dataset=source.name,
        split=source.split,
        num_rows=len(source),
        num_missing=task.writer.num_missing_rows,
        num_pending=task.num_pending,
        num_arrays=len({array for batch in task.pending for array in batch.arrays}),
        device=str(task.backbone.device),
        precision=task.backbone.precision,
        batch_size=task.writer.batch_size,
        compiled=task.backend is not None,
    )
