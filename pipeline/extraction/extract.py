"""Stage one: bring the store of a backbone and a data set to hold every requested token, computing only what it lacks.

`CacheWriter.claim()` returns the missing rows, cut into batches at row numbers that never change: a row has the same neighbours,
and so the same bits, in every run. This module decides what is computed; `loop` computes it.

Knows nothing of Zarr's files, of terminals, or of how a model finds its taps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from layerbank.cache import (
    ArraySpec,
    Batch,
    CacheError,
    CacheSpec,
    CacheWriter,
    StoreForecast,
    TokenCache,
    Worker,
    forecast_store,
)

from ..data.image_source import names_digest
from ..data.sources import ImageSource
from ..data.views import ViewedSource, evaluation_transform
from ..errors import RequestError
from ..events import CacheReused, OnEvent, ShareFinished, ignore
from ..models.backbone import Backbone
from .batch_size import batch_size_on_a_cpu, choose_batch_size
from .loop import ExtractionTask, run_tasks
from .views import transform_of
from .write_behind import BatchWriter

_MODEL_FIELDS = ("architecture", "weights", "tap", "token_rule", "compute_dtype")


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """How to extract.

    Args:
        arrays: the (level, kind) pairs to store.
        storage_dtype: float16, float32 or bfloat16, then kinds that differ: `float16,cls=float32`.
        batch_size: images in a forward pass, None to choose it; an existing store keeps the size it was begun with.
        num_workers: decoding processes; 0 decodes in this process.
        on_bad_image: `stop`, or `skip` and record the sample's id in the store.
        overwrite: begin anew, even if the store is complete.
        compile: whether to make one graph of the model with `torch.compile`; None does on a GPU. On a CPU it pays for large jobs.
        worker: which of several workers of the store this process is; None if it is the only one.
    """

    arrays: tuple[tuple[str, str], ...]
    storage_dtype: str = "float16"
    batch_size: int | None = None
    num_workers: int = 1
    on_bad_image: str = "stop"
    overwrite: bool = False
    compile: bool | None = None
    worker: Worker | None = None

    def __post_init__(self) -> None:
        if not self.arrays:
            raise RequestError("extraction.no_arrays")
        for option, value, least in (("--batch-size", self.batch_size, 1), ("--workers", self.num_workers, 0)):
            if value is not None and value < least:
                raise RequestError("extraction.number_too_small", option=option, least=least, value=value)
        if self.on_bad_image not in ("stop", "skip"):
            raise RequestError("extraction.unknown_bad_image_rule", value=self.on_bad_image)
        if self.worker is not None and self.overwrite:
            raise RequestError("extraction.worker_overwrites", worker=self.worker)


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """One model to extract with.

    Attributes:
        backbone: the frozen model.
        config: what to store and how.
        store: path of the store, usually `spec_of(...).store_path(cache_root)`.
        request: kept in the store's attributes, so that `cache repair` can do the same work again.
        parity: what `parity.settle` measured, kept in the store: array name -> parity.
    """

    backbone: Backbone
    config: ExtractConfig
    store: Path
    request: dict[str, Any] | None = None
    parity: Mapping[str, Mapping[str, Any]] | None = None

    @property
    def arrays(self) -> list[ArraySpec]:
        """The arrays to store.

        Raises:
            RequestError: the backbone lacks a level or kind.
        """
        row_shape = self.backbone.row_shape
        return [
            ArraySpec(level=level, kind=kind, row_shape=row_shape(level, kind)) for level, kind in self.config.arrays
        ]

    def task(self, writer: BatchWriter, pending: Sequence[Batch]) -> ExtractionTask:
        """Return the task of computing some batches for a writer."""
        compiled = self.backbone.device.type == "cuda" if self.config.compile is None else self.config.compile
        return ExtractionTask(
            backbone=self.backbone,
            writer=writer,
            pending=pending,
            storage_dtype=self.config.storage_dtype,
            store=self.store,
            backend="inductor" if compiled else None,
        )


def spec_of(backbone: Backbone, source: ImageSource, storage_dtype: str) -> CacheSpec:
    """Return the identity of the store that holds this backbone's tokens of this data set."""
    return CacheSpec(
        architecture=backbone.architecture,
        weights=backbone.weights_digest,
        tap=backbone.tap,
        token_rule=backbone.token_rule,
        transform=transform_of(backbone, source),
        compute_dtype=backbone.precision,
        storage_dtype=storage_dtype,
        manifest=names_digest(source),
        num_rows=len(source),
        backbone=backbone.model_id,
        dataset=source.name,
        split=source.split,
    )


def model_differences(one: CacheSpec, other: CacheSpec) -> list[str]:
    """Return the identity fields in which the models of two stores differ, whatever their data, views and storage."""
    different = [name for name in _MODEL_FIELDS if getattr(one, name) != getattr(other, name)]
    same_transform = evaluation_transform(one.transform) == evaluation_transform(other.transform)
    return different if same_transform else [*different, "transform"]


def extract(
    backbone: Backbone,
    source: ImageSource,
    config: ExtractConfig,
    store: Path,
    *,
    request: dict[str, Any] | None = None,
    on_event: OnEvent = ignore,
) -> None:
    """Bring a store to hold the requested tokens, computing only what it lacks.

    Args:
        backbone, config, store, request: see `Extraction`.
        source: the labelled images, N of them.
        on_event: callback for progress.

    Raises:
        RequestError: the backbone has no such level or kind.
        BadImage: an image could not be read and `on_bad_image` is `stop`.
        CacheError: the store is held by another process, holds something else, or cannot be written.
    """
    extraction = Extraction(backbone=backbone, config=config, store=store, request=request)
    extract_together([extraction], source, on_event=on_event)


def extract_together(extractions: Sequence[Extraction], source: ImageSource, *, on_event: OnEvent = ignore) -> None:
    """Do what `extract` does for several models, decoding each image once.

    Args:
        extractions: one for each store. How to decode, and what to do with a bad image, is taken from the first.
        source: the labelled images, N of them.
        on_event: callback for progress.

    Raises:
        As `extract`; what was committed to any of the stores is kept.
        RequestError: two extractions have the same store.
    """
    _refuse_one_store_twice(extractions)
    with ExitStack() as stack:
        opened = [_open_writer(one, source, stack, on_event) for one in extractions]
        writers = [(one, writer) for one, writer in zip(extractions, opened, strict=True) if writer is not None]
        tasks = [one.task(writer, writer.claim()) for one, writer in writers]
        first = extractions[0].config
        while any(task.pending for task in tasks):
            run_tasks(tasks, source, num_workers=first.num_workers, on_bad_image=first.on_bad_image, on_event=on_event)
            # one of several workers may claim more rows
            tasks = [replace(task, pending=writer.claim()) for task, (_, writer) in zip(tasks, writers, strict=True)]
        for one, writer in writers:
            if not writer.complete():
                num_missing = writer.num_missing_rows
                on_event(ShareFinished(store=one.store, worker=str(first.worker), num_missing=num_missing))


def begin(extractions: Sequence[Extraction], source: ImageSource, *, on_event: OnEvent = ignore) -> None:
    """Create the stores of `extract_together`, or create them anew, without a row; workers fill them.

    Raises:
        As `extract_together`.
    """
    with ExitStack() as stack:
        for one in extractions:
            _open_writer(one, source, stack, on_event)


def forecast(extraction: Extraction, source: ImageSource) -> StoreForecast:
    """Return what `extract_together` would leave on the disk for one model; nothing is touched.

    Raises:
        RequestError: the backbone has no such level or kind.
        CacheError: the store holds something else, or cannot be read.
    """
    # on a GPU the chosen batch size may have more digits in the header, nothing else
    batch_size = extraction.config.batch_size or batch_size_on_a_cpu(extraction.backbone)
    spec = spec_of(extraction.backbone, source, extraction.config.storage_dtype)
    return forecast_store(
        extraction.store, spec, extraction.arrays, batch_size=batch_size, **_writer_options(extraction, source)
    )


def _refuse_one_store_twice(extractions: Sequence[Extraction]) -> None:
    """`timm/x` and `x`, say: the second would wait for the first one's lock and blame another process."""
    known: dict[Path, str] = {}
    for one in extractions:
        model = one.backbone.model_id
        if one.store in known:
            raise RequestError("extraction.two_models_one_store", model=model, other=known[one.store])
        known[one.store] = model


def _open_writer(
    extraction: Extraction, source: ImageSource, stack: ExitStack, on_event: OnEvent
) -> CacheWriter | None:
    """Open the writer of a store; None if the store has everything, which works on a read-only disk too."""
    spec = spec_of(extraction.backbone, source, extraction.config.storage_dtype)
    arrays = extraction.arrays
    if not extraction.config.overwrite and _is_complete(extraction.store, spec, arrays):
        on_event(CacheReused(store=extraction.store, num_rows=len(source)))
        return None
    return stack.enter_context(
        CacheWriter.open(
            extraction.store,
            spec,
            arrays,
            batch_size=batch_size_of(extraction),
            **_writer_options(extraction, source),
        )
    )


def _writer_options(extraction: Extraction, source: ImageSource) -> dict[str, Any]:
    attributes: dict[str, Any] = {"class_names": list(source.class_names), "request": extraction.request or {}}
    if isinstance(source, ViewedSource):
        attributes["num_views"] = source.rule.num_views
    return {
        "labels": source.labels,
        "sample_ids": source.ids,
        "attributes": attributes,
        "parity": extraction.parity,
        "overwrite": extraction.config.overwrite,
        "worker": extraction.config.worker,
    }


def batch_size_of(extraction: Extraction) -> int:
    """Choose the batch size of a new store; an existing one keeps its own, so nothing is tried out for it."""
    backbone, config = extraction.backbone, extraction.config
    if config.batch_size is not None:
        return config.batch_size
    if extraction.store.exists() and not config.overwrite:
        return batch_size_on_a_cpu(backbone)
    levels, kinds = (list(dict.fromkeys(names)) for names in zip(*config.arrays, strict=True))
    return choose_batch_size(backbone, backbone.compile(levels, kinds))


def _is_complete(store: Path, spec: CacheSpec, arrays: Sequence[ArraySpec]) -> bool:
    """Whether the store holds everything already. The writer reports or repairs whatever is wrong with it."""
    try:
        cache = TokenCache.open(store, spec)
    except CacheError:
        return False
    return all(cache.arrays.get((array.level, array.kind)) == array for array in arrays)
