"""How long an extraction would take, and with how much memory: measured on less of it, on this machine.

Each part is timed alone: a few batches through the real model at its real batch size, a few images decoded, one block written to
the disk of the cache. What the process had in memory at most while the model ran is, but for a margin, what it will have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from layerbank.cache import ArraySpec, StoreForecast, time_block

from ..data.sources import ImageSource
from ..events import OnEvent
from ..extraction.decoding import PREFETCHED_BATCHES
from ..extraction.extract import Extraction, spec_of
from ..extraction.loop import distinct_geometries
from ..extraction.meter import find_limit, num_cores
from ..extraction.views import view_geometry
from ..extraction.write_behind import QUEUED_BATCHES
from ..memory import peak_memory_bytes
from .calibrate import ForwardSpeed, measure_decoding, measure_forward

MARGIN = 1.05  # of memory: writing and the allocator take up to 3 % more than the model's passes had
Prepared = Sequence[tuple[ImageSource, Sequence[Extraction]]]


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Time and memory, as measured on less of the work.

    Attributes:
        start_s: until the first batch: opening models, first images against float32, a compiler.
        decode_s: of one process, all images; compute_s: of all models; write_s: of the disk.
        total_s: of it all, with what is done beside each other.
        limit: what is to be waited for, in words.
        host_peak_bytes: of each process at most, pages of libraries included.
        shared_bytes: that decoding processes fill ahead, beside what they are themselves.
        device_peak_bytes: of a GPU's memory; None on a CPU.
    """

    start_s: float
    decode_s: float
    compute_s: float
    write_s: float
    total_s: float
    limit: str
    host_peak_bytes: int
    shared_bytes: int
    device_peak_bytes: int | None


def loop_s(
    decode_s: float, compute_s: float, write_s: float, *, num_workers: int, on_gpu: bool, num_cores: int
) -> float:
    """Wall time of the loop of one process, from the time of its parts.

    Without workers decoding and the model take turns. Beside each other the slower one counts; on a CPU they also share its cores.
    The writer has a thread of its own.

    >>> loop_s(10, 30, 5, num_workers=0, on_gpu=False, num_cores=2), loop_s(80, 30, 5, num_workers=4, on_gpu=True, num_cores=8)
    (40, 30)
    """
    if num_workers == 0:
        return max(decode_s + compute_s, write_s)
    decoding_s = decode_s / min(num_workers, num_cores)
    return max(decoding_s, compute_s + (0 if on_gpu else decode_s / num_cores), write_s)


def calibrate(
    prepared: Prepared,
    forecasts: Sequence[StoreForecast],
    to_decode: Sequence[int],
    cache_root: Path,
    num_processes: int,
    start_s: float,
    on_event: OnEvent,
) -> Forecast:
    """Measure, and draw the line to all of the work.

    Args:
        prepared: each split with its models, as `requested.prepare` gives them.
        forecasts: of each store, in that order.
        to_decode: images of each split that any model lacks.
        cache_root: folder of all stores.
        num_processes: that share the rows.
        start_s: what preparing took.
        emit: told what did not work.
    """
    config = prepared[0][1][0].config
    on_gpu = prepared[0][1][0].backbone.device.type == "cuda"
    num_models = len(prepared[0][1])
    told_of = [forecasts[number::num_models] for number in range(num_models)]  # by split
    lacking = [any(one.num_missing_rows for one in told) for told in told_of]
    speeds = {
        number: _measure_model(prepared, told_of[number], number, on_event)
        for number, lacks in enumerate(lacking)
        if lacks
    }
    host_peak = peak_memory_bytes()  # before the disk is tried, which the run does not do
    batch_bytes = 0
    decode_s = compute_s = write_s = total_s = 0.0
    disk_speed = {number: _measure_disk(prepared, told_of[number], number, cache_root, speeds) for number in speeds}
    at_once = num_processes if on_gpu else 1  # processes on a CPU share its cores
    for split, (source, extractions) in enumerate(prepared):
        if not to_decode[split]:
            continue
        geometries, _ = distinct_geometries([view_geometry(extractions[number].backbone, source) for number in speeds])
        decode = measure_decoding(source, geometries) * to_decode[split]
        compute = sum(told_of[n][split].num_missing_rows / speed.images_per_s for n, speed in speeds.items())
        write = sum(told_of[n][split].written_bytes / speed for n, speed in disk_speed.items())
        batch_bytes = max(batch_bytes, sum(_image_bytes(extractions[n], speed) for n, speed in speeds.items()))
        decode_s, compute_s, write_s = decode_s + decode, compute_s + compute, write_s + write
        total_s += loop_s(
            decode / num_processes,
            compute / at_once,
            write,
            num_workers=config.num_workers,
            on_gpu=on_gpu,
            num_cores=max(1, num_cores() // num_processes),
        )
    start_s += sum(max(speed.first_pass_s - speed.batch_size / speed.images_per_s, 0.0) for speed in speeds.values())
    queued = sum(_num_queued(told_of[n], speed) * speed.tokens_bytes for n, speed in speeds.items())
    device_peaks = [speed.device_peak_bytes for speed in speeds.values() if speed.device_peak_bytes is not None]
    waiting_s = decode_s if config.num_workers == 0 else max(decode_s / config.num_workers - compute_s, 0.0)
    return Forecast(
        start_s=start_s,
        decode_s=decode_s,
        compute_s=compute_s,
        write_s=write_s,
        total_s=start_s + total_s,
        limit=str(find_limit(waiting_s, compute_s, write_s, num_workers=config.num_workers, num_cores=num_cores())),
        host_peak_bytes=int(MARGIN * host_peak) + queued + batch_bytes,
        shared_bytes=config.num_workers * PREFETCHED_BATCHES * batch_bytes,
        device_peak_bytes=max(device_peaks) if device_peaks else None,
    )


def _measure_model(prepared: Prepared, told: Sequence[StoreForecast], number: int, on_event: OnEvent) -> ForwardSpeed:
    extraction = prepared[0][1][number]
    config = extraction.config
    # a store that is taken up keeps its batches
    known = next((one.batch_size for one in told if one.present_files and not one.frees_first), config.batch_size)
    return measure_forward(
        extraction.backbone,
        known,
        arrays=config.arrays,
        storage_dtype=config.storage_dtype,
        compile_model=config.compile,
        on_event=on_event,
    )


def _measure_disk(
    prepared: Prepared,
    told: Sequence[StoreForecast],
    number: int,
    cache_root: Path,
    speeds: dict[int, ForwardSpeed],
) -> float:
    """Bytes a second of what the store that lacks most is made of."""
    split = max(range(len(told)), key=lambda index: told[index].written_bytes)
    source, extractions = prepared[split]
    arrays: list[ArraySpec] = [array.spec for array in told[split].arrays if array.missing_bytes]
    spec = spec_of(extractions[number].backbone, source, extractions[number].config.storage_dtype)
    return time_block(cache_root, spec, arrays, batch_size=speeds[number].batch_size).bytes_per_s


def _num_queued(told: Sequence[StoreForecast], speed: ForwardSpeed) -> int:
    """Batches of tokens that wait for the disk at most, beside the one that the calibration held."""
    num_batches = max(-(-one.num_missing_rows // speed.batch_size) for one in told)
    return min(QUEUED_BATCHES + 1, num_batches - 1)


def _image_bytes(extraction: Extraction, speed: ForwardSpeed) -> int:
    """Of one batch of decoded images."""
    height, width = extraction.backbone.image_size
    value_bytes = torch.float32.itemsize if extraction.backbone.normalisation is None else torch.uint8.itemsize
    return speed.batch_size * 3 * height * width * value_bytes
