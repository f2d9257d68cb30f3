"""How long an extraction takes on this machine: its own loop on a sample of its images, scaled to all of them.

Images are decoded and go through the models at the real batch size; a writer discards the tokens. The disk is timed by writing one
row block (`layerbank.cache.time_block`). The peak memory of this process after that is, but for a margin, that of the extraction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from layerbank.cache import Batch, BatchNotes, Gaps, StoreForecast, ids_of, time_block

from ..cores import num_cores
from ..data.selected_source import SelectedSource
from ..data.splits.split_rows import SplitRows
from ..events import BatchHalved, CompileFailed, Event, ExtractionFinished, ExtractionProgress, OnEvent
from ..extraction.decoding import PREFETCHED_BATCHES
from ..extraction.extract import Extraction, batch_size_of, forecasts
from ..extraction.loop import run_tasks
from ..extraction.meter import find_limit
from ..extraction.write_behind import QUEUED_BATCHES
from ..memory import peak_memory_bytes

SAMPLE_SIZE = 64  # images, or one batch if that is more
BUDGET_S = 3.0
MARGIN = 1.05  # of memory: writing and the allocator take up to 3 % more than the loop without them


@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """What one model lacks of the rows of one split.

    Attributes:
        rows: the rows of the split.
        extraction: the model and what to store.
        gaps: the stores to write.
        forecasts: what each of them will be.
    """

    rows: SplitRows
    extraction: Extraction
    gaps: Gaps
    forecasts: tuple[StoreForecast, ...]

    @property
    def num_missing(self) -> int:
        """Rows to compute."""
        return sum(store.num_missing_rows for store in self.forecasts)


def work_of(prepared: Sequence[tuple[SplitRows, Sequence[Extraction]]]) -> list[Work]:
    """Return the work of each model on each split, in the order of `jobs.extract.prepare`."""
    found = []
    for rows, extractions in prepared:
        for one in extractions:
            gaps = one.find_gaps(rows)
            stores = tuple(forecasts(one, rows, gaps.gaps))
            found.append(Work(rows=rows, extraction=one, gaps=gaps, forecasts=stores))
    return found


def num_decoded(work: Sequence[Work]) -> int:
    """Images to decode: models that lack the same rows share them."""
    lacking = {
        gap.rows.digest: store.num_missing_rows
        for one in work
        for gap, store in zip(one.gaps.gaps, one.forecasts, strict=True)
    }
    return sum(lacking.values())


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Time and memory of an extraction, estimated from a sample of its images.

    Attributes:
        num_sampled: images of the sample.
        start_s: seconds until the first batch: opening models, comparing the first images with float32, compiling.
        decode_s, compute_s, write_s: seconds of one decoding process, of all models, of the disk.
        total_s: seconds in all, with what runs at the same time.
        limit: what limits the speed, in words.
        host_peak_bytes: peak memory of each process, pages of libraries included.
        shared_bytes: memory of images decoded ahead, beside what decoding processes need themselves.
        device_peak_bytes: peak memory of a GPU; None on a CPU.
    """

    num_sampled: int
    start_s: float
    decode_s: float
    compute_s: float
    write_s: float
    total_s: float
    limit: str
    host_peak_bytes: int
    shared_bytes: int
    device_peak_bytes: int | None


def estimate(
    work: Sequence[Work], cache_root: Path, *, num_processes: int, start_s: float, on_event: OnEvent
) -> Estimate:
    """Run a sample of an extraction, and scale it.

    Args:
        work: what each model lacks of each split; something is missing.
        cache_root: folder of all stores.
        num_processes: processes that share the rows.
        start_s: seconds that preparing took.
        on_event: callback for a failed compiler and for batches that did not fit into the memory.
    """
    most = max(work, key=lambda one: one.num_missing)
    lacking = [one for one in work if one.rows is most.rows and one.num_missing]
    config, device = most.extraction.config, most.extraction.backbone.device
    models = [(one.extraction, _batch_size(one)) for one in lacking]
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    gap = max(most.gaps.gaps, key=lambda gap: len(gap.rows))
    chosen = gap.wanted[gap.wanted >= 0]
    ids = ids_of(gap, [str(row) for row in range(len(most.rows))])
    sample = run_sample(models, SelectedSource(most.rows, chosen, ids), on_event)
    host_peak_bytes = int(MARGIN * peak_memory_bytes())
    for one, (_, batch_size) in zip(lacking, models, strict=True):
        host_peak_bytes += max(_queued_bytes(store, batch_size) for store in one.forecasts)
    stores = [store for one in work for store in one.forecasts]
    decode_s = sample.decode_s / sample.num_images * num_decoded(work)
    compute_s = sample.compute_s / sample.num_passes * sum(store.num_missing_rows for store in stores)
    write_s = sum(store.written_bytes for store in stores) / _disk_bytes_per_s(work, cache_root)
    start_s += sample.startup_s
    total_s = start_s + loop_s(
        decode_s / num_processes,
        compute_s / (num_processes if on_gpu else 1),  # processes on a CPU share its cores
        write_s,
        num_workers=config.num_workers,
        on_gpu=on_gpu,
        num_cores=max(1, num_cores() // num_processes),
    )
    waiting_s = decode_s if config.num_workers == 0 else max(decode_s / config.num_workers - compute_s, 0.0)
    return Estimate(
        num_sampled=sample.num_images,
        start_s=start_s,
        decode_s=decode_s,
        compute_s=compute_s,
        write_s=write_s,
        total_s=total_s,
        limit=str(find_limit(waiting_s, compute_s, write_s, num_workers=config.num_workers, num_cores=num_cores())),
        host_peak_bytes=host_peak_bytes,
        shared_bytes=config.num_workers * PREFETCHED_BATCHES * sum(_image_bytes(*model) for model in models),
        device_peak_bytes=torch.cuda.max_memory_allocated(device) if on_gpu else None,
    )


def loop_s(
    decode_s: float, compute_s: float, write_s: float, *, num_workers: int, on_gpu: bool, num_cores: int
) -> float:
    """Return the seconds of the loop of one process, from the seconds of its parts.

    Without workers decoding and the model take turns. Beside each other the slower one counts; on a CPU they also share its cores.
    The writer has a thread of its own.

    >>> loop_s(10, 30, 5, num_workers=0, on_gpu=False, num_cores=2), loop_s(80, 30, 5, num_workers=4, on_gpu=True, num_cores=8)
    (40, 30)
    """
    if num_workers == 0:
        return max(decode_s + compute_s, write_s)
    decoding_s = decode_s / min(num_workers, num_cores)
    return max(decoding_s, compute_s + (0 if on_gpu else decode_s / num_cores), write_s)


@dataclass
class DiscardingWriter:
    """Takes batches of tokens, and keeps nothing."""

    batch_size: int
    num_missing_rows: int = 0

    def append(
        self,
        batch: Batch,
        tokens: Mapping[str, NDArray[Any]],
        *,
        content_hashes: NDArray[np.uint64],
        notes: BatchNotes | None = None,
    ) -> None:
        """Discard the tokens of one batch."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What the loop took for a sample of the images.

    Attributes:
        num_images, num_passes: images decoded, and through models, added up.
        decode_s, compute_s: seconds that these took.
        startup_s: seconds that the first batch took longer than those of the sample.
    """

    num_images: int
    num_passes: int
    decode_s: float
    compute_s: float
    startup_s: float = 0.0


class _Enough(Exception):
    """The sample is large enough."""


def run_sample(models: Sequence[tuple[Extraction, int]], source: SelectedSource, on_event: OnEvent) -> Sample:
    """Run the loop of an extraction on a first batch, then for a few seconds on batches from all over the source.

    Args:
        models: each with its batch size.
        source: the images; those that cannot be read are skipped.
        on_event: callback for a failed compiler and for batches that did not fit into the memory.
    """
    progress: list[ExtractionProgress] = []
    finished: list[ExtractionFinished] = []

    def listen(event: Event) -> None:
        match event:
            case CompileFailed() | BatchHalved():
                on_event(event)
            case ExtractionFinished():
                finished.append(event)
            case ExtractionProgress():
                progress.append(event)
                if event.elapsed_s > BUDGET_S and len(progress) > len(models):
                    raise _Enough

    largest = max(size for _, size in models)
    least = 4 if models[0][0].backbone.device.type == "cuda" else 1  # a GPU computes behind the loop
    all_starts = range(0, len(source), largest)
    count = min(1 + max(ceil(SAMPLE_SIZE / largest), least), len(all_starts))
    starts = [all_starts[number * len(all_starts) // count] for number in range(count)]
    tasks = []
    for one, size in models:
        pending = [Batch(0, start, min(start + size, len(source)), tuple(one.arrays)) for start in starts]
        tasks.append(one.task(DiscardingWriter(size), pending, Path()))
    with suppress(_Enough):
        run_tasks(tasks, source, num_workers=0, on_bad_image="skip", on_event=listen)
    first, end = progress[len(models) - 1], finished[-1] if finished else progress[-1]
    num_passes = progress[-1].num_done - first.num_done
    if num_passes == 0:  # there is one batch only
        num_images = first.num_done // len(models)
        times = {"decode_s": end.decode_s, "compute_s": end.compute_s}
        return Sample(num_images=num_images, num_passes=first.num_done, **times)
    return Sample(
        num_images=num_passes // len(models),
        num_passes=num_passes,
        decode_s=end.decode_s - first.decode_s,
        compute_s=end.compute_s - first.compute_s,
        startup_s=max(first.elapsed_s - (end.elapsed_s - first.elapsed_s) * first.num_done / num_passes, 0.0),
    )


def _batch_size(work: Work) -> int:
    """A store that is continued keeps its batch size."""
    gap, store = max(zip(work.gaps.gaps, work.forecasts, strict=True), key=lambda pair: pair[1].num_missing_rows)
    return store.batch_size if gap.files is not None else batch_size_of(work.extraction, gap)


def _disk_bytes_per_s(work: Sequence[Work], cache_root: Path) -> float:
    """Time the disk with a row block of the store that lacks most."""
    pairs = [(one.extraction, store) for one in work for store in one.forecasts]
    extraction, store = max(pairs, key=lambda pair: pair[1].written_bytes)
    arrays = [array.spec for array in store.arrays if array.missing_bytes]
    size = {"num_rows": store.num_rows, "batch_size": store.batch_size}
    return time_block(cache_root, extraction.model, arrays, **size).bytes_per_s


def _queued_bytes(store: StoreForecast, batch_size: int) -> int:
    """Bytes of tokens that wait for the disk at most, beside the batch that the sample held."""
    num_batches = ceil(store.num_missing_rows / batch_size)
    row_bytes = sum(array.size_bytes for array in store.arrays) // store.num_rows
    return max(min(QUEUED_BATCHES + 1, num_batches - 1), 0) * batch_size * row_bytes


def _image_bytes(extraction: Extraction, batch_size: int) -> int:
    """Bytes of one batch of decoded images."""
    dtype = torch.float32 if extraction.backbone.normalisation is None else torch.uint8
    return batch_size * 3 * prod(extraction.backbone.image_size) * dtype.itemsize
