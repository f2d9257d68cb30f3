"""Plan an extraction before it does anything: images, bytes, files, minutes, memory.

Bytes and files are those of the finished stores, less what they hold already, by the cache's own arithmetic
(`layerbank.cache.forecast_store`). Minutes and memory are measured on a sample of the images (`calibrate.py`).

Knows nothing of terminals; see `plan_table.py`.
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
from .calibrate import Estimate, Prepared, estimate


@dataclass(frozen=True, kw_only=True)
class PlannedStore:
    """The store of one model and split.

    Attributes:
        num_missing: rows that lack anything requested, of num_rows.
        size_bytes: size of the finished store; written_bytes and written_files are still to be written.
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
    """One level and kind of a model, over all splits; written_bytes of size_bytes are still to be written."""

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
        num_images: images to decode, each once for all models (a view is an image).
        num_passes: images through models, added up.
        needed_bytes: disk space, with whole disk blocks for every file and some headroom.
        free_bytes: free space of the disk of the folder `disk`.
        host_free_bytes: available memory.
        num_workers, num_processes: as requested or chosen.
        forecast: time and memory; None if nothing is to be done, or the disk is too small.
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
    forecast: Estimate | None

    @property
    def fits(self) -> bool:
        """Whether the disk has enough space."""
        return self.needed_bytes <= self.free_bytes

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
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
    """Plan an extraction that is prepared.

    Args:
        prepared: the models of each split, as `jobs.extract.prepare` returns them.
        forecasts: the store of each, in that order.
        cache_root: folder of all stores.
        num_processes: processes that would share the rows.
        start_s: seconds that preparing took; the run has to do that again.
        on_event: callback for what did not work in the calibration.

    Raises:
        RequestError, WorkError: as the extraction itself, as far as a few batches show it.
    """
    pairs = [(source, one) for source, extractions in prepared for one in extractions]
    _, first = pairs[0]
    num_models = len(prepared[0][1])
    num_images = [_num_lacking(forecasts[start : start + num_models]) for start in range(0, len(forecasts), num_models)]
    needed, free = needed_bytes(cache_root, forecasts), free_bytes(cache_root)
    how: dict[str, Any] = {"num_processes": num_processes, "start_s": start_s, "on_event": on_event}
    to_do = any(num_images) and needed <= free
    return Plan(
        stores=tuple(_planned(*pair, store) for pair, store in zip(pairs, forecasts, strict=True)),
        tokens=tuple(_tokens(pairs, forecasts)),
        num_images=sum(num_images),
        num_passes=sum(store.num_missing_rows for store in forecasts),
        written_bytes=sum(store.written_bytes for store in forecasts),
        written_files=sum(store.written_files for store in forecasts),
        needed_bytes=needed,
        free_bytes=free,
        disk=nearest_folder(cache_root),
        host_free_bytes=available_memory_bytes(),
        device=str(first.backbone.device),
        num_workers=first.config.num_workers,
        num_processes=num_processes,
        forecast=estimate(prepared, forecasts, num_images, cache_root, **how) if to_do else None,
    )


def forecasts_of(prepared: Prepared) -> list[StoreForecast]:
    """Return what each store will be, in the order of `prepared`."""
    return [forecast(one, source) for source, extractions in prepared for one in extractions]


def _planned(source: ImageSource, extraction: Extraction, store: StoreForecast) -> PlannedStore:
    return PlannedStore(
        model=extraction.backbone.model_id,
        dataset=source.name,
        split=source.split,
        store=store.path,
        precision=extraction.backbone.precision,
        num_rows=store.num_rows,
        num_missing=store.num_missing_rows,
        size_bytes=store.size_bytes,
        written_bytes=store.written_bytes,
        written_files=store.written_files,
    )


def _num_lacking(stores: Sequence[StoreForecast]) -> int:
    """Images of a split that any model lacks; row blocks depend on the number of rows alone, so they are the same for all."""
    return sum(map(len, {rows for store in stores for rows in store.missing_rows}))


def _tokens(pairs: Sequence[tuple[ImageSource, Extraction]], forecasts: Sequence[StoreForecast]) -> list[PlannedTokens]:
    sizes: dict[tuple[str, str, str, str], list[tuple[int, int]]] = {}
    for (_, extraction), store in zip(pairs, forecasts, strict=True):
        for array in store.arrays:
            key = (extraction.backbone.model_id, array.spec.level, array.spec.kind, array.storage_dtype)
            sizes.setdefault(key, []).append((array.size_bytes, array.missing_bytes))
    return [
        PlannedTokens(
            model=model,
            level=level,
            kind=kind,
            storage_dtype=dtype,
            size_bytes=sum(size for size, _ in of_splits),
            written_bytes=sum(missing for _, missing in of_splits),
        )
        for (model, level, kind, dtype), of_splits in sizes.items()
    ]
