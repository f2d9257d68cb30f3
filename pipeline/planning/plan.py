"""What an extraction would take, before it does anything: images, bytes, files, minutes, memory.

Bytes and files are those of the finished stores, less what they hold already, by the cache's own arithmetic
(`layerbank.cache.forecast_store`). Minutes and memory are measured on less of the work (`plan_time.py`).

Knows nothing of terminals; `plan_table.py` has the words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from layerbank.cache import StoreForecast, free_bytes, nearest_folder, needed_bytes

from ..data.sources import ImageSource
from ..events import OnEvent, ignore
from ..extraction.extract import Extraction, forecast
from ..memory import available_memory_bytes
from .plan_time import Forecast, Prepared, calibrate


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
    on_event: OnEvent = ignore,
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
        forecast_ = calibrate(prepared, forecasts, to_decode, cache_root, num_processes, start_s, on_event)
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
