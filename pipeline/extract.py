"""Stage one: run a backbone once over a data set and write every asked-for token to the store.

The order of things is fixed by the store, not by this loop: `CacheWriter.pending()` says which rows are missing, cut into
batches at row numbers that never change, so a row has the same neighbours, and hence the same bits, in every run. Images are
decoded ahead by worker processes and tokens are written behind by one thread; this loop only feeds the model.

Knows nothing of Zarr's files, of terminals, or of how a model finds its taps.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from cache import ArraySpec, Batch, BatchNotes, CacheError, CacheSpec, CacheWriter, TokenCache

from .backbones import Backbone
from .datasets import ImageSource
from .errors import RequestError
from .events import (
    CacheReused,
    Emit,
    ExtractionFinished,
    ExtractionProgress,
    ExtractionStarted,
    ImageSkipped,
    TokensOutOfRange,
    ignore,
)
from .images import DecodedBatch, decode_batches
from .rounding import Rounded, round_tokens


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """How to extract.

    Args:
        arrays: the (level, kind) pairs to store.
        storage_dtype: float16, float32 or bfloat16.
        batch_size: images a forward pass; a store that exists keeps the size it was begun with.
        num_workers: decoding processes; 0 decodes in this one.
        on_bad_image: `stop`, or `skip` and record the sample's id in the store.
        overwrite: begin anew, even if the store is complete.
    """

    arrays: tuple[tuple[str, str], ...]
    storage_dtype: str = "float16"
    batch_size: int = 64
    num_workers: int = 1
    on_bad_image: str = "stop"
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not self.arrays:
            raise RequestError(
                where="--levels, --kinds",
                expected="at least one of each",
                got="none",
                todo="Name levels such as all or block.3,final and kinds such as cls,ap.",
            )
        for option, value, least in (
            ("--batch-size", self.batch_size, 1),
            ("--workers", self.num_workers, 0),
        ):
            if value < least:
                raise RequestError(
                    where=option,
                    expected=f"{least} or more",
                    got=str(value),
                    todo="Leave it out for the default.",
                )
        if self.on_bad_image not in ("stop", "skip"):
            raise RequestError(
                where="--on-bad-image",
                expected="stop or skip",
                got=self.on_bad_image,
                todo="Choose one of the two.",
            )


def spec_of(backbone: Backbone, source: ImageSource, storage_dtype: str) -> CacheSpec:
    """The identity of the store that holds this backbone's tokens of this data set."""
    return CacheSpec(
        architecture=backbone.architecture,
        weights=backbone.weights_digest,
        tap=backbone.tap,
        token_rule=backbone.token_rule,
        transform=backbone.transform_id,
        compute_dtype=backbone.precision,
        storage_dtype=storage_dtype,
        manifest=source.manifest_digest,
        num_rows=len(source),
        backbone=backbone.model_id,
        dataset=source.name,
        split=source.split,
    )


def extract(
    backbone: Backbone,
    source: ImageSource,
    config: ExtractConfig,
    store: Path,
    *,
    request: dict[str, Any] | None = None,
    emit: Emit = ignore,
) -> None:
    """Bring a store to hold the asked-for tokens, computing only what it lacks.

    Args:
        backbone: the frozen model.
        source: the labelled images, N of them.
        config: what to store and how.
        store: its path, usually `spec_of(...).store_path(cache_root)`.
        request: kept in the store's attributes, so that `cache repair` can do the same work again.
        emit: told what happens.

    Raises:
        RequestError: the backbone has no such level or kind.
        BadImage: an image could not be read and `on_bad_image` is `stop`.
        CacheError: the store is held by another process, holds something else, or cannot be written.
    """
    spec = spec_of(backbone, source, config.storage_dtype)
    arrays = [
        ArraySpec(level=level, kind=kind, row_shape=backbone.row_shape(level, kind)) for level, kind in config.arrays
    ]
    if not config.overwrite and _is_complete(store, spec, arrays):  # so that a store on a read-only disk can be used
        emit(CacheReused(store=store, num_rows=len(source)))
        return
    attributes = {"class_names": list(source.class_names), "request": request or {}}
    with CacheWriter.open(
        store,
        spec,
        arrays,
        labels=source.labels,
        sample_ids=source.ids,
        batch_size=config.batch_size,
        attributes=attributes,
        overwrite=config.overwrite,
    ) as writer:
        pending = writer.pending()
        if pending:
            _compute(backbone, source, config, writer, pending, store, emit)
        writer.complete()


def _is_complete(store: Path, spec: CacheSpec, arrays: Sequence[ArraySpec]) -> bool:
    """Whether the store holds everything already. Whatever is wrong with it is for the writer to say or to mend."""
    try:
        cache = TokenCache.open(store, spec)
    except CacheError:
        return False
    return all(cache.arrays.get((array.level, array.kind)) == array for array in arrays)


def _compute(
    backbone: Backbone,
    source: ImageSource,
    config: ExtractConfig,
    writer: CacheWriter,
    pending: Sequence[Batch],
    store: Path,
    emit: Emit,
) -> None:
    num_pending = sum(batch.stop - batch.start for batch in pending)
    missing = list(dict.fromkeys(array for batch in pending for array in batch.arrays))
    emit(
        ExtractionStarted(
            store=store,
            backbone=backbone.model_id,
            dataset=source.name,
            split=source.split,
            num_rows=len(source),
            num_pending=num_pending,
            num_arrays=len(missing),
            device=str(backbone.device),
            precision=backbone.precision,
            batch_size=writer.batch_size,
        )
    )
    clock = _Clock()
    forward = backbone.compile(
        list(dict.fromkeys(array.level for array in missing)),
        list(dict.fromkeys(array.kind for array in missing)),
    )
    totals: dict[str, list[int]] = {}
    decoded_batches = decode_batches(
        source,
        backbone.transform,
        [(batch.start, batch.stop) for batch in pending],
        num_workers=config.num_workers,
    )
    num_done = num_bytes = 0
    with closing(decoded_batches), _WriterThread(writer) as sink:
        decoded_iterator = iter(decoded_batches)
        for num_batches, batch in enumerate(pending, start=1):
            with clock("decode"):
                decoded = next(decoded_iterator)
            skipped = _judge(decoded, config.on_bad_image, emit)
            with clock("compute"):
                tokens = _tokens_of(forward, decoded, batch, backbone.device, config.storage_dtype)
            _tell_out_of_range(tokens, totals, config.storage_dtype, emit)
            notes = BatchNotes(
                skipped=skipped,
                saturated={name: r.num_saturated for name, r in tokens.items() if r.num_saturated},
                nonfinite={name: r.num_nonfinite for name, r in tokens.items() if r.num_nonfinite},
            )
            with clock("write"):
                sink.put(batch, {name: r.values for name, r in tokens.items()}, decoded.content_hashes, notes)
            num_done += batch.stop - batch.start
            num_bytes += sum(r.values.nbytes for r in tokens.values())
            emit(
                ExtractionProgress(
                    num_done=num_done,
                    num_pending=num_pending,
                    num_batches=num_batches,
                    elapsed_s=clock.elapsed(),
                    decode_s=clock.spent["decode"],
                    compute_s=clock.spent["compute"],
                    write_s=clock.spent["write"],
                )
            )
        with clock("write"):
            sink.finish()
    emit(
        ExtractionFinished(
            store=store,
            num_rows=len(source),
            num_computed=num_done,
            size_bytes=num_bytes,
            elapsed_s=clock.elapsed(),
            decode_s=clock.spent["decode"],
            compute_s=clock.spent["compute"],
            write_s=clock.spent["write"],
        )
    )


def _judge(decoded: DecodedBatch, on_bad_image: str, emit: Emit) -> dict[int, str]:
    """Stop at the first unreadable image, or say which are skipped: row -> reason."""
    for bad in decoded.bad.values():
        if on_bad_image == "stop":
            raise bad
        emit(ImageSkipped(sample_id=bad.id, file=bad.file, reason=bad.reason))
    return {row: bad.reason for row, bad in decoded.bad.items()}


def _tokens_of(
    forward: Callable[[torch.Tensor], dict[str, dict[str, torch.Tensor]]],
    decoded: DecodedBatch,
    batch: Batch,
    device: torch.device,
    storage_dtype: str,
) -> dict[str, Rounded]:
    """Array name -> tokens [n, *row_shape] in the storage dtype; rows of unreadable images are zeros."""
    images = decoded.images
    if device.type == "cuda":
        images = images.pin_memory().to(device, non_blocking=True)
    output = forward(images)
    bad = [row - decoded.start for row in decoded.bad]
    rounded = {}
    for array in batch.arrays:
        values = output[array.level][array.kind]
        if bad:
            values = values.clone()
            values[bad] = 0
        rounded[array.name] = round_tokens(values, storage_dtype)
    return rounded


def _tell_out_of_range(
    tokens: dict[str, Rounded], totals: dict[str, list[int]], storage_dtype: str, emit: Emit
) -> None:
    for name, rounded in tokens.items():
        if rounded.num_saturated or rounded.num_nonfinite:
            total = totals.setdefault(name, [0, 0])
            total[0] += rounded.num_saturated
            total[1] += rounded.num_nonfinite
            emit(
                TokensOutOfRange(
                    array=name, num_saturated=total[0], num_nonfinite=total[1], storage_dtype=storage_dtype
                )
            )


class _Clock:
    """Where the loop's time goes, by name."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.spent = {"decode": 0.0, "compute": 0.0, "write": 0.0}
        self._name = ""
        self._since = 0.0

    def __call__(self, name: str) -> _Clock:
        self._name = name
        return self

    def __enter__(self) -> None:
        self._since = time.perf_counter()

    def __exit__(self, *exc: object) -> None:
        self.spent[self._name] += time.perf_counter() - self._since

    def elapsed(self) -> float:
        return time.perf_counter() - self.started


_Item = tuple[Batch, dict[str, np.ndarray[Any, Any]], np.ndarray[Any, Any], BatchNotes]


class _WriterThread:
    """Appends batches behind the loop. Its error is raised at the next `put` or at `finish`."""

    def __init__(self, writer: CacheWriter, depth: int = 4) -> None:
        self._writer = writer
        self._queue: queue.Queue[_Item | None] = queue.Queue(depth)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="layerbank-writer", daemon=True)

    def __enter__(self) -> _WriterThread:
        self._thread.start()
        return self

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._error is not None:
                continue  # keep emptying the queue, so that the loop never blocks on a dead writer
            batch, tokens, content_hashes, notes = item
            try:
                self._writer.append(batch, tokens, content_hashes=content_hashes, notes=notes)
            except BaseException as error:  # handed to the loop, which raises it
                self._error = error

    def put(self, batch: Batch, tokens: dict[str, Any], content_hashes: Any, notes: BatchNotes) -> None:
        if self._error is not None:
            raise self._error
        self._queue.put((batch, tokens, content_hashes, notes))

    def finish(self) -> None:
        """Wait for everything that was put, and raise what went wrong."""
        self._stop()
        if self._error is not None:
            raise self._error

    def _stop(self) -> None:
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
