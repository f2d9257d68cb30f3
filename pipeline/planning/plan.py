"""Plan an extraction before it does anything: images, bytes, files, minutes, memory.

Bytes and files are those of the finished stores, less what they hold already, by the cache's own arithmetic
(`layerbank.cache.forecast_store`). Minutes and memory are measured on a sample of the images (`calibrate.py`).

Knows nothing of terminals; see `plan_table.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from layerbank.cache import free_bytes, nearest_folder, needed_bytes

from ..events import OnEvent, ignore
from ..memory import available_memory_bytes
from .calibrate import Estimate, Work, estimate, num_decoded


@dataclass(frozen=True, kw_only=True)
class PlannedSplit:
    """What one model lacks of a split.

    Attributes:
        num_rows: rows of the split: images, or images times views.
        num_found: rows that are in the cache.
        num_missing: rows to compute, equal ones once.
        num_unknown: images that are not in the content index. They are not read to plan, and count as missing.
        stores: the stores to write; of a new one the folder, since its name needs the hashes of all images.
        written_bytes, written_files: what is still to be written to them.
    """

    model: str
    dataset: str
    split: str
    precision: str
    num_rows: int
    num_found: int
    num_missing: int
    num_unknown: int
    stores: tuple[str, ...]
    written_bytes: int
    written_files: int


@dataclass(frozen=True, kw_only=True)
class PlannedTokens:
    """One level and kind of a model, over all splits; written_bytes are still to be written."""

    model: str
    level: str
    kind: str
    storage_dtype: str
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

    splits: tuple[PlannedSplit, ...]
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
        return asdict(self) | {"disk": str(self.disk), "fits": self.fits}


def plan_extraction(
    work: Sequence[Work],
    cache_root: Path,
    *,
    num_processes: int = 1,
    start_s: float = 0.0,
    on_event: OnEvent = ignore,
) -> Plan:
    """Plan an extraction that is prepared.

    Args:
        work: what each model lacks of each split, see `work_of`.
        cache_root: folder of all stores.
        num_processes: processes that would share the rows.
        start_s: seconds that preparing took; the run has to do that again.
        on_event: callback for what did not work in the calibration.

    Raises:
        RequestError, WorkError: as the extraction itself, as far as a few batches show it.
    """
    first = work[0].extraction
    stores = [store for one in work for store in one.forecasts]
    needed, free = needed_bytes(cache_root, stores), free_bytes(cache_root)
    num_images = num_decoded(work)
    how: dict[str, Any] = {"num_processes": num_processes, "start_s": start_s, "on_event": on_event}
    return Plan(
        splits=tuple(map(_planned, work)),
        tokens=tuple(_tokens(work)),
        num_images=num_images,
        num_passes=sum(store.num_missing_rows for store in stores),
        written_bytes=sum(store.written_bytes for store in stores),
        written_files=sum(store.written_files for store in stores),
        needed_bytes=needed,
        free_bytes=free,
        disk=nearest_folder(cache_root),
        host_free_bytes=available_memory_bytes(),
        device=str(first.backbone.device),
        num_workers=first.config.num_workers,
        num_processes=num_processes,
        forecast=estimate(work, cache_root, **how) if num_images and needed <= free else None,
    )


def _planned(work: Work) -> PlannedSplit:
    return PlannedSplit(
        model=work.extraction.backbone.model_id,
        dataset=work.rows.source.name,
        split=work.rows.source.split,
        precision=work.extraction.backbone.precision,
        num_rows=len(work.rows),
        num_found=work.gaps.num_found,
        num_missing=work.num_missing,
        num_unknown=int((~work.rows.images.is_known).sum()),
        stores=tuple(str(gap.path) if gap.files else f"{gap.path.parent} (new)" for gap in work.gaps.gaps),
        written_bytes=sum(store.written_bytes for store in work.forecasts),
        written_files=sum(store.written_files for store in work.forecasts),
    )


def _tokens(work: Sequence[Work]) -> list[PlannedTokens]:
    sizes: Counter[tuple[str, str, str, str]] = Counter()
    for one in work:
        for array in (array for store in one.forecasts for array in store.arrays):
            key = (one.extraction.backbone.model_id, array.spec.level, array.spec.kind, array.storage_dtype)
            sizes[key] += array.missing_bytes
    return [
        PlannedTokens(model=model, level=level, kind=kind, storage_dtype=dtype, written_bytes=size)
        for (model, level, kind, dtype), size in sizes.items()
    ]
