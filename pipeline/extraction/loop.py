"""The loop of stage one: decode -> device -> model -> host -> store, each beside the others, for one model or for several.

Every image is decoded once, however many models want it: the batches of all stores are cut where any of them begins or ends, each
piece is decoded for those that lack it, and a store's batch goes to its model when its last piece is there. With one model, or
several whose batches have the same size, a piece is a batch.

Knows neither how images are decoded, nor how a model is run, nor how tokens are written: those are `images`, `transfer` and
`write_behind`.
"""

from __future__ import annotations

import pickle
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from layerbank.cache import Batch, CacheWriter, storage_dtype_of

from ..data.sources import ImageSource
from ..events import ExtractionFinished, ExtractionProgress, ExtractionStarted, ImageSkipped, OnEvent, TokensOutOfRange
from ..models.backbone import Backbone
from ..models.transform import Geometry
from .clock import Clock
from .decoding import DecodedBatch, Rows, decode_batches
from .forward import SteadyForward
from .transfer import Transfer, open_transfer
from .views import view_geometry
from .write_behind import PendingBatch, WriterThread


@dataclass(frozen=True, kw_only=True)
class ExtractionTask:
    """One model and the store that is being filled with its tokens.

    Attributes:
        backbone: the model.
        writer: of its store.
        pending: the batches to compute, of `writer.claim()`.
        storage_dtype: of its tokens.
        store: its path, for messages.
        backend: of `torch.compile`; None runs the plain pass.
        forwards: those made before, by levels and kinds: a worker takes rows several times and compiles once.
    """

    backbone: Backbone
    writer: CacheWriter
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
    tasks: Sequence[ExtractionTask], source: ImageSource, *, num_workers: int, on_bad_image: str, on_event: OnEvent
) -> None:
    """Compute and append every pending batch of every task.

    Args:
        tasks: one a model; those with nothing pending cost nothing.
        source: the images.
        num_workers: decoding processes.
        on_bad_image: `stop` or `skip`.
        emit: told what happens.

    Raises:
        BadImage: an image could not be read and `on_bad_image` is `stop`.
        WorkError: a decoding process died.
        CacheError: a store cannot be written.
    """
    tasks = [task for task in tasks if task.pending]
    clock = Clock("decode", "compute", "write")
    geometries, geometry_of = distinct_geometries([view_geometry(task.backbone, source) for task in tasks])
    pieces = cut_pieces([[(batch.start, batch.stop) for batch in task.pending] for task in tasks])
    wanted = [
        Rows(start, stop, tuple(sorted({geometry_of[number] for number in numbers}))) for start, stop, numbers in pieces
    ]
    for task in tasks:
        on_event(_started(task, source))
    num_pending = sum(task.num_pending for task in tasks)
    num_done = num_batches = 0
    decoded_pieces = decode_batches(source, geometries, wanted, num_workers=num_workers)
    with ExitStack() as stack:
        stack.enter_context(closing(decoded_pieces))
        flows = [_Flow(task, stack.enter_context(WriterThread(task.writer)), on_event) for task in tasks]
        decoded_iterator = iter(decoded_pieces)
        for _, _, numbers in pieces:
            with clock("decode"):
                decoded = next(decoded_iterator)
            _judge(decoded, on_bad_image, on_event)
            for number in numbers:
                flow = flows[number]
                if not flow.take(decoded, geometry_of[number]):
                    continue
                with _behind(clock, flow.sink):
                    flow.transfer.reserve()
                with clock("compute"):
                    pending = flow.compute()
                with _behind(clock, flow.sink):
                    flow.sink.put(pending)
                flow.tell_out_of_range()
                num_done += len(pending.batch)
                num_batches += 1
                on_event(
                    ExtractionProgress(
                        num_done=num_done,
                        num_pending=num_pending,
                        num_batches=num_batches,
                        elapsed_s=clock.elapsed(),
                        decode_s=clock.spent["decode"],
                        compute_s=clock.spent["compute"],
                        write_s=clock.spent["write"],
                        num_workers=num_workers,
                    )
                )
        for flow in flows:
            with _behind(clock, flow.sink):
                flow.sink.finish()
        for flow in flows:
            flow.tell_out_of_range()
            on_event(_finished(flow, source, clock, num_workers))


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


@dataclass
class _Flow:
    """What is under way of one lane."""

    task: ExtractionTask
    sink: WriterThread
    on_event: OnEvent
    transfer: Transfer = field(init=False)
    _batches: list[Batch] = field(init=False)  # still to come, the next one last
    _parts: list[tuple[DecodedBatch, torch.Tensor]] = field(default_factory=list)
    _told: dict[str, tuple[int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        task = self.task
        arrays = dict.fromkeys(array for batch in task.pending for array in batch.arrays)
        levels = tuple(dict.fromkeys(array.level for array in arrays))
        kinds = tuple(dict.fromkeys(array.kind for array in arrays))
        batch_size = task.writer.batch_size
        if (levels, kinds) not in task.forwards:
            task.forwards[levels, kinds] = SteadyForward(
                task.backbone.compile(list(levels), list(kinds)),
                batch_size=batch_size,
                model_id=task.backbone.model_id,
                backend=task.backend,
                on_event=self.on_event,
            )
        forward = task.forwards[levels, kinds]
        self.transfer = open_transfer(forward, task.backbone.device, task.storage_dtype, batch_size)
        self._batches = sorted(self.task.pending, key=lambda batch: batch.start, reverse=True)

    def take(self, decoded: DecodedBatch, geometry: int) -> bool:
        """Keep a piece; whether the batch it belongs to is whole now."""
        self._parts.append((decoded, decoded.images[geometry]))
        return decoded.stop == self._batches[-1].stop

    def compute(self) -> PendingBatch:
        """Run the model on the batch that is whole."""
        batch = self._batches.pop()
        parts, self._parts = self._parts, []
        images = parts[0][1] if len(parts) == 1 else torch.cat([images for _, images in parts])
        bad = {row: error.reason for decoded, _ in parts for row, error in decoded.bad.items()}
        return PendingBatch(
            batch,
            self.transfer(images, batch.arrays, [row - batch.start for row in bad]),
            np.concatenate([decoded.content_hashes for decoded, _ in parts]),
            bad,
        )

    def tell_out_of_range(self) -> None:
        for name, counts in list(self.sink.out_of_range.items()):
            if self._told.get(name) != counts:
                self._told[name] = counts
                self.on_event(
                    TokensOutOfRange(
                        array=name,
                        num_saturated=counts[0],
                        num_nonfinite=counts[1],
                        storage_dtype=storage_dtype_of(self.task.storage_dtype, name.rpartition("/")[2]),
                    )
                )


@contextmanager
def _behind(clock: Clock, sink: WriterThread) -> Iterator[None]:
    """Waiting for the writer's thread; what that thread itself waited for the device meanwhile is the model's time."""
    before, waited = clock.spent["write"], sink.device_wait_s
    with clock("write"):
        yield
    clock.move(min(clock.spent["write"] - before, sink.device_wait_s - waited), "write", "compute")


def distinct_geometries(geometries: Sequence[Geometry]) -> tuple[list[Geometry], list[int]]:
    """Geometries without repetition, and the number of each one in there: models that crop alike share their images."""
    pickled = [pickle.dumps(geometry) for geometry in geometries]
    known = list(dict.fromkeys(pickled))
    return [geometries[pickled.index(one)] for one in known], [known.index(one) for one in pickled]


def _judge(decoded: DecodedBatch, on_bad_image: str, on_event: OnEvent) -> None:
    """Stop at the first unreadable image, or say which are skipped."""
    for bad in {bad.id: bad for bad in decoded.bad.values()}.values():  # views of an image have its id: told once
        if on_bad_image == "stop":
            raise bad
        on_event(ImageSkipped(sample_id=bad.id, file=bad.file, reason=bad.reason))


def _started(task: ExtractionTask, source: ImageSource) -> ExtractionStarted:
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


def _finished(flow: _Flow, source: ImageSource, clock: Clock, num_workers: int) -> ExtractionFinished:
    return ExtractionFinished(
        store=flow.task.store,
        num_rows=len(source),
        num_computed=flow.task.num_pending,
        size_bytes=flow.sink.size_bytes,
        elapsed_s=clock.elapsed(),
        decode_s=clock.spent["decode"],
        compute_s=clock.spent["compute"],
        write_s=clock.spent["write"],
        num_workers=num_workers,
    )
