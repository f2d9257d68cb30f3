"""What an extraction would take, before it does anything: images, bytes, files, minutes, memory.

Bytes and files are those of the finished stores, less what they hold already, by the cache's own arithmetic
(`cache.forecast_store`). Minutes come from a short calibration on this machine (`calibrate.py`, `cache.time_block`), and memory
from what the process had at most while the real model ran at its real batch size.

Knows nothing of terminals; `plan_table.py` has the words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from cache import ArraySpec, StoreForecast, free_bytes, nearest_folder, needed_bytes, time_block

from .calibrate import ForwardSpeed, measure_decoding, measure_forward
from .datasets import ImageSource
from .events import Emit, ignore
from .extract import Extraction, forecast, spec_of
from .images import PREFETCHED_BATCHES
from .loop import distinct_geometries
from .memory import available_memory_bytes, peak_memory_bytes
from .meter import find_limit, num_cores
from .views import view_geometry
from .write_behind import QUEUED_BATCHES

Prepared = Sequence[tuple[ImageSource, Sequence[Extraction]]]


@dataclass(frozen=True, kw_only=True)
class PlannedStore:
    """One model on one split.

    Attributes:
        num_missing: rows that lack anything asked for, of num_rows.
        size_bytes: of the finished store; written_bytes and written_files are still to come.
    """

    model: str
    dataset: str
    split: str
    store: Path
    precision: str
    num_rows: int
    num_missing: int
    size_bytes: int
    written_bytes: int
    written_files: int


@dataclass(frozen=True, kw_only=True)
class PlannedTokens:
    """One level and kind of a model, all splits together; written_bytes of size_bytes are still to come."""

    model: str
    level: str
    kind: str
    storage_dtype: str
    size_bytes: int
    written_bytes: int


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


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `extract_together` would do for several splits and models.

    Attributes:
        num_images: that are decoded, each once for all models (a view is an image).
        num_passes: images through models, added up.
        needed_bytes: of the disk, with whole blocks for every file and some headroom.
        free_bytes: of the disk that `disk` lies on.
        host_free_bytes: memory that can be had now.
        num_workers, num_processes: as asked for or chosen.
        forecast: None where nothing is to be done, or the disk is too small.
    """

    stores: tuple[PlannedStore, ...]
    tokens: tuple[PlannedTokens, ...]
    num_images: int
    num_passes: int
    written_bytes: int
    written_files: int
    needed_bytes: int
    free_bytes: int
    disk: Path
    host_free_bytes: int
    device: str
    num_workers: int
    num_processes: int
    forecast: Forecast | None

    @property
    def fits(self) -> bool:
        """Whether the disk takes it."""
        return self.needed_bytes <= self.free_bytes

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        values = asdict(self) | {"disk": str(self.disk), "fits": self.fits}
        return values | {"stores": [store | {"store": str(store["store"])} for store in values["stores"]]}


def plan_extraction(
    prepared: Prepared,
    forecasts: Sequence[StoreForecast],
    cache_root: Path,
    *,
    num_processes: int = 1,
    start_s: float = 0.0,
    emit: Emit = ignore,
) -> Plan:
    """Plan what is prepared.

    Args:
        prepared: what `requested.prepare` gives: the models of each split.
        forecasts: of each of its stores, in its order.
        cache_root: folder of all stores.
        num_processes: that would share the rows.
        start_s: what it took to prepare it; the run has to do that again.
        emit: told what did not work in the calibration.

    Raises:
        RequestError, WorkError: as the extraction itself, as far as one batch shows it.
    """
    pairs = [(source, one) for source, extractions in prepared for one in extractions]
    stores = [_planned(source, one, told) for (source, one), told in zip(pairs, forecasts, strict=True)]
    to_decode = [_rows_of(forecasts, pairs, source) for source, _ in prepared]
    first = prepared[0][1][0]
    needed, free = needed_bytes(cache_root, forecasts), free_bytes(cache_root)
    forecast_ = None
    if any(to_decode) and needed <= free:
        forecast_ = _calibrate(prepared, forecasts, to_decode, cache_root, num_processes, start_s, emit)
    return Plan(
        stores=tuple(stores),
        tokens=_tokens(pairs, forecasts),
        num_images=sum(to_decode),
        num_passes=sum(store.num_missing for store in stores),
        written_bytes=sum(store.written_bytes for store in stores),
        written_files=sum(store.written_files for store in stores),
        needed_bytes=needed,
        free_bytes=free,
        disk=nearest_folder(cache_root),
        host_free_bytes=available_memory_bytes(),
        device=str(first.backbone.device),
        num_workers=first.config.num_workers,
        num_processes=num_processes,
        forecast=forecast_,
    )


def forecasts_of(prepared: Prepared) -> list[StoreForecast]:
    """What each store will be, in the order of `prepared`."""
    return [forecast(one, source) for source, extractions in prepared for one in extractions]


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


def _planned(source: ImageSource, extraction: Extraction, told: StoreForecast) -> PlannedStore:
    return PlannedStore(
        model=extraction.backbone.model_id,
        dataset=source.name,
        split=source.split,
        store=told.path,
        precision=extraction.backbone.precision,
        num_rows=told.num_rows,
        num_missing=told.num_missing_rows,
        size_bytes=told.size_bytes,
        written_bytes=told.written_bytes,
        written_files=told.written_files,
    )


def _rows_of(
    forecasts: Sequence[StoreForecast], pairs: Sequence[tuple[ImageSource, Extraction]], source: ImageSource
) -> int:
    """Images of a split that any model lacks; blocks depend on the number of rows alone, so they are the same for all."""
    missing = {
        rows for (one, _), told in zip(pairs, forecasts, strict=True) if one is source for rows in told.missing_rows
    }
    return sum(map(len, missing))


def _tokens(
    pairs: Sequence[tuple[ImageSource, Extraction]], forecasts: Sequence[StoreForecast]
) -> tuple[PlannedTokens, ...]:
    found: dict[tuple[str, str, str, str], list[int]] = {}
    for (_, extraction), told in zip(pairs, forecasts, strict=True):
        for array in told.arrays:
            key = (extraction.backbone.model_id, array.spec.level, array.spec.kind, array.storage_dtype)
            total = found.setdefault(key, [0, 0])
            total[0] += array.size_bytes
            total[1] += array.missing_bytes
    return tuple(
        PlannedTokens(model=model, level=level, kind=kind, storage_dtype=dtype, size_bytes=whole, written_bytes=missing)
        for (model, level, kind, dtype), (whole, missing) in found.items()
    )


def _calibrate(
    prepared: Prepared,
    forecasts: Sequence[StoreForecast],
    to_decode: Sequence[int],
    cache_root: Path,
    num_processes: int,
    start_s: float,
    emit: Emit,
) -> Forecast:
    config = prepared[0][1][0].config
    on_gpu = prepared[0][1][0].backbone.device.type == "cuda"
    num_models = len(prepared[0][1])
    told_of = [forecasts[number::num_models] for number in range(num_models)]  # by split
    lacking = [any(one.num_missing_rows for one in told) for told in told_of]
    speeds = {
        number: _measure_model(prepared, told_of[number], number, emit) for number, lacks in enumerate(lacking) if lacks
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
        host_peak_bytes=host_peak + queued + batch_bytes,
        shared_bytes=config.num_workers * PREFETCHED_BATCHES * batch_bytes,
        device_peak_bytes=max(device_peaks) if device_peaks else None,
    )


def _measure_model(prepared: Prepared, told: Sequence[StoreForecast], number: int, emit: Emit) -> ForwardSpeed:
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
        emit=emit,
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
