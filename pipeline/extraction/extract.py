"""Stage one: bring the store of a backbone and a data set to hold every asked-for token, computing only what it lacks.

The order of things is fixed by the store, not by this program: `CacheWriter.claim()` says which rows are missing, cut into
batches at row numbers that never change, so a row has the same neighbours, and hence the same bits, in every run. What is to be
done is decided here; `loop` does it.

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
    CacheError,
    CacheSpec,
    CacheWriter,
    StoreForecast,
    TokenCache,
    Worker,
    forecast_store,
)

from ..data.sources import ImageSource
from ..data.views import ViewedSource
from ..errors import RequestError
from ..events import CacheReused, OnEvent, ShareFinished, ignore
from ..models.backbone import Backbone
from .batch_size import batch_size_on_a_cpu, choose_batch_size
from .loop import ExtractionTask, run_tasks
from .views import transform_of


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """How to extract.

    Args:
        arrays: the (level, kind) pairs to store.
        storage_dtype: float16, float32 or bfloat16, then kinds that differ: `float16,cls=float32`.
        batch_size: images a forward pass, None to choose it; a store that exists keeps the size it was begun with.
        num_workers: decoding processes; 0 decodes in this one.
        on_bad_image: `stop`, or `skip` and record the sample's id in the store.
        overwrite: begin anew, even if the store is complete.
        compile: make one graph of the model with `torch.compile`; None does on a GPU. On a CPU it pays for large jobs.
        worker: which of several workers of the store this process is; None has it alone.
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
            if value is not None and value < least:
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
        if self.worker is not None and self.overwrite:
            raise RequestError(
                where="--overwrite",
                expected="a run that has the store alone",
                got=f"worker {self.worker}, which would delete what the others have written",
                todo="Delete the store first, then start the workers without --overwrite.",
            )


def spec_of(backbone: Backbone, source: ImageSource, storage_dtype: str) -> CacheSpec:
    """The identity of the store that holds this backbone's tokens of this data set."""
    return CacheSpec(
        architecture=backbone.architecture,
        weights=backbone.weights_digest,
        tap=backbone.tap,
        token_rule=backbone.token_rule,
        transform=transform_of(backbone, source),
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
    on_event: OnEvent = ignore,
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
    extract_together(
        [Extraction(backbone=backbone, config=config, store=store, request=request)], source, on_event=on_event
    )


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """The arguments of `extract` that belong to one model, and what `parity.settle` measured of it, which the store keeps."""

    backbone: Backbone
    config: ExtractConfig
    store: Path
    request: dict[str, Any] | None = None
    parity: Mapping[str, Mapping[str, Any]] | None = None


def extract_together(extractions: Sequence[Extraction], source: ImageSource, *, on_event: OnEvent = ignore) -> None:
    """`extract` for several models, decoding each image once.

    Args:
        extractions: one a store. How to decode, and what to do with a bad image, is taken from the first.
        source: the labelled images, N of them.
        emit: told what happens.

    Raises:
        As `extract`; what was committed to any of the stores is kept.
        RequestError: two extractions have the same store.
    """
    _refuse_one_store_twice(extractions)
    with ExitStack() as stack:
        tasks = [task for one in extractions if (task := _open_task(one, source, stack, on_event)) is not None]
        first = extractions[0].config
        under_way = tasks
        while any(task.pending for task in under_way):  # several workers take rows several times
            run_tasks(
                under_way, source, num_workers=first.num_workers, on_bad_image=first.on_bad_image, on_event=on_event
            )
            under_way = [replace(task, pending=task.writer.claim()) for task in under_way]
        for task in tasks:
            if not task.writer.complete():
                on_event(
                    ShareFinished(store=task.store, worker=str(first.worker), num_missing=task.writer.num_missing_rows)
                )


def begin(extractions: Sequence[Extraction], source: ImageSource, *, on_event: OnEvent = ignore) -> None:
    """Make the stores of `extract_together`, or make them anew, without a row; the rest is for workers.

    Raises:
        As `extract_together`.
    """
    with ExitStack() as stack:
        for one in extractions:
            _open_task(one, source, stack, on_event)


def forecast(extraction: Extraction, source: ImageSource) -> StoreForecast:
    """What `extract_together` would leave on the disk for one model; nothing is touched.

    Raises:
        RequestError: the backbone has no such level or kind.
        CacheError: the store holds something else, or cannot be read.
    """
    config = extraction.config
    return forecast_store(
        extraction.store,
        spec_of(extraction.backbone, source, config.storage_dtype),
        _arrays_of(extraction),
        labels=source.labels,
        sample_ids=source.ids,
        batch_size=config.batch_size or batch_size_on_a_cpu(extraction.backbone),  # on a GPU only its digits may differ
        attributes=_attributes_of(source, extraction.request),
        parity=extraction.parity,
        overwrite=config.overwrite,
        worker=config.worker,
    )


def _refuse_one_store_twice(extractions: Sequence[Extraction]) -> None:
    """`timm/x` and `x`, say: the second would wait for the first one's lock and blame another process."""
    known: dict[Path, str] = {}
    for one in extractions:
        if one.store in known:
            raise RequestError(
                where=f"--model {one.backbone.model_id}",
                expected="a store for each model",
                got=f"that of {known[one.store]}: their weights are the same",
                todo="Name each model once: all of its layers come from one pass.",
            )
        known[one.store] = one.backbone.model_id


def _open_task(
    extraction: Extraction, source: ImageSource, stack: ExitStack, on_event: OnEvent
) -> ExtractionTask | None:
    """What is to be computed for one store; None where it has everything."""
    backbone, config, store = extraction.backbone, extraction.config, extraction.store
    spec = spec_of(backbone, source, config.storage_dtype)
    arrays = _arrays_of(extraction)
    if not config.overwrite and _is_complete(store, spec, arrays):  # so that a store on a read-only disk can be used
        on_event(CacheReused(store=store, num_rows=len(source)))
        return None
    writer = CacheWriter.open(
        store,
        spec,
        arrays,
        labels=source.labels,
        sample_ids=source.ids,
        batch_size=_batch_size(backbone, config, store),
        attributes=_attributes_of(source, extraction.request),
        parity=extraction.parity,
        overwrite=config.overwrite,
        worker=config.worker,
    )
    stack.enter_context(writer)
    compiled = backbone.device.type == "cuda" if config.compile is None else config.compile
    return ExtractionTask(
        backbone=backbone,
        writer=writer,
        pending=writer.claim(),
        storage_dtype=config.storage_dtype,
        store=store,
        backend="inductor" if compiled else None,
    )


def _arrays_of(extraction: Extraction) -> list[ArraySpec]:
    row_shape = extraction.backbone.row_shape
    return [
        ArraySpec(level=level, kind=kind, row_shape=row_shape(level, kind)) for level, kind in extraction.config.arrays
    ]


def _batch_size(backbone: Backbone, config: ExtractConfig, store: Path) -> int:
    """Of a store that is made now; a store that is taken up keeps its own, so nothing is tried out for it."""
    if config.batch_size is not None:
        return config.batch_size
    if store.exists() and not config.overwrite:
        return batch_size_on_a_cpu(backbone)
    levels, kinds = (list(dict.fromkeys(names)) for names in zip(*config.arrays, strict=True))
    return choose_batch_size(backbone, backbone.compile(levels, kinds))


def _attributes_of(source: ImageSource, request: dict[str, Any] | None) -> dict[str, Any]:
    attributes = {"class_names": list(source.class_names), "request": request or {}}
    return attributes | ({"num_views": source.rule.num_views} if isinstance(source, ViewedSource) else {})


def _is_complete(store: Path, spec: CacheSpec, arrays: Sequence[ArraySpec]) -> bool:
    """Whether the store holds everything already. Whatever is wrong with it is for the writer to say or to mend."""
    try:
        cache = TokenCache.open(store, spec)
    except CacheError:
        return False
    return all(cache.arrays.get((array.level, array.kind)) == array for array in arrays)
