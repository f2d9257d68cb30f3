"""Stage one: bring the cache to hold every requested token of some rows, computing only what no store of the model has.

`layerbank.cache.find_gaps` names the stores to write and their rows; `CacheWriter.claim()` returns what is missing, cut into
batches at row numbers that never change: a row has the same neighbours, and so the same bits, in every run. This module decides
what is computed; `loop` computes it.

Knows nothing of Zarr's files, of terminals, or of how a model finds its taps.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerbank.cache import (
    LABEL,
    ArraySpec,
    Batch,
    CacheWriter,
    Gap,
    Gaps,
    ModelSpec,
    ModelStores,
    NotWritableError,
    StorageFullError,
    StoreFiles,
    StoreForecast,
    StoreLockedError,
    StoreRequest,
    Target,
    Worker,
    array_key,
    check_request,
    delete_store,
    find_gaps,
    forecast_store,
    ids_of,
    list_targets,
    read_store_info,
    write_target,
)
from layerbank.cache.geometry import rows_per_block
from layerbank.cache.rows import MISSING

from ..data.image_source import BadImage
from ..data.selected_source import SelectedSource
from ..data.splits.split_rows import SplitRows
from ..errors import RequestError, WorkError
from ..events import ImageSkipped, OnEvent, RowsFound, ShareFinished, StoreRepaired, ignore
from ..models.backbone import Backbone
from .batch_size import batch_size_on_a_cpu, choose_batch_size, even_batch_size
from .loop import ExtractionTask, run_tasks
from .write_behind import BatchWriter


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """How to extract.

    Args:
        arrays: the (level, kind) pairs to store.
        storage_dtype: float16, float32 or bfloat16, then kinds that differ: `float16,cls=float32`.
        batch_size: images in a forward pass, None to choose it; an existing store keeps the size it was begun with.
        num_workers: decoding processes; 0 decodes in this process.
        on_bad_image: `stop`, or `skip` and record the sample's id in the store.
        overwrite: delete the stores that hold some of the requested rows and no others, and compute those rows again. Rows that
            lie in a store next to rows that were not asked for, or in one of format 1, are kept and not computed.
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
        cache_root: folder of all stores.
        request: kept in the attributes of new stores, so that `cache repair` can do the same work again.
        parity: what `parity.settle` measured, kept in the stores: store -> path of an array -> parity.
        stores: the stores of the model, if they were read just now and nothing was written since; None reads them.
    """

    backbone: Backbone
    config: ExtractConfig
    cache_root: Path
    request: dict[str, Any] | None = None
    parity: Mapping[Path, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    stores: ModelStores | None = None

    @property
    def model(self) -> ModelSpec:
        """The identity of what computes the tokens."""
        return model_of(self.backbone, self.config.storage_dtype)

    @property
    def arrays(self) -> list[ArraySpec]:
        """The arrays to store.

        Raises:
            RequestError: the backbone lacks a level or kind.
        """
        row_shape, tap = self.backbone.row_shape, self.backbone.tap
        return [
            ArraySpec(level=level, kind=kind, row_shape=row_shape(level, kind), tap=tap)
            for level, kind in self.config.arrays
        ]

    def read_stores(self) -> ModelStores:
        """Return the stores of the model."""
        return self.stores or ModelStores(self.cache_root, self.model)

    def find_gaps(self, rows: SplitRows, stores: ModelStores | None = None) -> Gaps:
        """Find what no store of the model has of some rows; with `overwrite`, as if there were no store of these rows alone."""
        stores = stores or self.read_stores()
        keys = [array_key(self.backbone.tap, *array) for array in self.config.arrays]
        return find_gaps(
            stores,
            rows.wanted,
            keys,
            order=rows.reading_order,
            name=rows.name,
            leave_out=self.replaced(stores, rows) if self.config.overwrite else (),
            compute_skipped=self.config.on_bad_image == "stop",
        )

    def skipped(self, rows: SplitRows, stores: ModelStores) -> NDArray[np.int64]:
        """Numbers of the images of which a store has a row without usable tokens, and none has a usable one."""
        keys = [array_key(self.backbone.tap, *array) for array in self.config.arrays]
        return np.unique(np.flatnonzero(stores.find(rows.wanted, keys).skipped) // rows.rows_an_image)

    def has_rows(self, rows: SplitRows, stores: ModelStores) -> bool:
        """Whether a store of the model, other than those that `overwrite` deletes, is of any of these rows, whatever its arrays."""
        replaced = self.replaced(stores, rows) if self.config.overwrite else ()
        return any(bool(rows.wanted.are_in(one.rows).any()) for one in stores.stores if one.path not in replaced)

    def replaced(self, stores: ModelStores, rows: SplitRows) -> list[Path]:
        """The readable stores that `overwrite` deletes: those that hold some of these rows and no others."""
        found = []
        for files in stores.stores:
            are_wanted, has_hash = rows.wanted.are_in(files.rows), files.rows.hashes != MISSING
            if files.header.format > 1 and are_wanted.any() and (are_wanted | ~has_hash).all():
                found.append(files.path)
        return found

    def to_delete(self, rows: SplitRows, gaps: Sequence[Gap]) -> list[Path]:
        """All stores that `overwrite` deletes: also what lies at the place of a new one and cannot be read."""
        if not self.config.overwrite:
            return []
        replaced = self.replaced(self.read_stores(), rows)
        new = [gap for gap in gaps if gap.files is None and gap.path.exists() and gap.path not in replaced]
        spec_of = {gap.path: read_store_info(gap.path).spec for gap in new}
        return replaced + [
            gap.path for gap in new if (spec := spec_of[gap.path]) is None or spec.rows_digest == gap.rows.digest
        ]

    def task(self, writer: BatchWriter, pending: Sequence[Batch], store: Path) -> ExtractionTask:
        """Return the task of computing some batches for a writer."""
        compiled = self.backbone.device.type == "cuda" if self.config.compile is None else self.config.compile
        return ExtractionTask(
            backbone=self.backbone,
            writer=writer,
            pending=pending,
            storage_dtype=self.config.storage_dtype,
            store=store,
            backend="inductor" if compiled else None,
        )


def model_of(backbone: Backbone, storage_dtype: str) -> ModelSpec:
    """Return the identity of the stores that hold this backbone's tokens."""
    return ModelSpec(
        architecture=backbone.architecture,
        weights=backbone.weights_digest,
        token_rule=backbone.token_rule,
        transform=backbone.transform_id,
        compute_dtype=backbone.precision,
        storage_dtype=storage_dtype,
        name=backbone.model_id,
    )


def extract_together(extractions: Sequence[Extraction], rows: SplitRows, *, on_event: OnEvent = ignore) -> bool:
    """Bring the cache to hold the requested tokens of some rows by several models, decoding each image once.

    Models that lack the same rows share the decoding; what only some of them lack is decoded for those alone.

    Args:
        extractions: one for each model. How to decode, and what to do with a bad image, is taken from the first.
        rows: images and views, N of them.
        on_event: callback for progress.

    Returns:
        Whether a store was deleted or written.

    Raises:
        RequestError: a backbone has no such level or kind, or two extractions have the same model.
        BadImage: an image could not be read and `on_bad_image` is `stop`.
        WorkError: an image could be read, but not when it was hashed.
        CacheError: a store is held by another process, holds something else, or cannot be written; or the data changed
            while they were read. What was committed to any of the stores is kept.
    """
    _refuse_one_model_twice(extractions)
    _report_unreadable(rows, extractions[0].config.on_bad_image, on_event)
    for one in extractions:
        _remove_replaced(one, rows)
    is_changed = any(one.config.overwrite for one in extractions)
    anew = [replace(one, config=replace(one.config, overwrite=False), stores=None) for one in extractions]
    gaps = []
    for one in anew if is_changed else extractions:
        stores = one.read_stores()
        _load_skipped(one, rows, stores)
        found = one.find_gaps(rows, stores)
        on_event(_found(one, rows, found))
        _finish(one, found.unfinished, rows)
        gaps.append(found.gaps)
        is_changed = is_changed or bool(found.gaps or found.unfinished)
    while not _fill_all(anew, gaps, rows, on_event):
        # a store was given up: what it lacks goes to another one
        gaps = [one.find_gaps(rows).gaps for one in anew]
    return is_changed


def begin(extractions: Sequence[Extraction], rows: SplitRows) -> None:
    """Create the stores of `extract_together`, or create them anew, without a row; workers fill them.

    Raises:
        As `extract_together`.
    """
    _refuse_one_model_twice(extractions)
    for one in extractions:
        _remove_replaced(one, rows)
        stores = ModelStores(one.cache_root, one.model)  # without those that were removed
        _load_skipped(one, rows, stores)
        for gap in one.find_gaps(rows, stores).gaps:
            _open_writer(one, gap, rows).close()
            _keep_labels(gap, rows)


def fill_store(extraction: Extraction, gap: Gap, rows: SplitRows, *, on_event: OnEvent = ignore) -> None:
    """Compute what one store lacks.

    Raises:
        As `extract_together`.
    """
    _fill([(extraction, gap)], rows, on_event)


def forecasts(extraction: Extraction, rows: SplitRows, gaps: Sequence[Gap]) -> list[StoreForecast]:
    """Return what the stores of one model would be when the gaps are filled; nothing is touched.

    Raises:
        RequestError: the backbone has no such level or kind.
        CacheError: a store holds something else, or cannot be read.
    """
    # on a GPU the chosen batch size may have more digits in the header, nothing else
    batch_size = extraction.config.batch_size or batch_size_on_a_cpu(extraction.backbone)
    replaced = extraction.to_delete(rows, gaps)
    return [
        forecast_store(
            gap.path,
            _request(extraction, gap, rows, batch_size),
            replaced=() if number else replaced,
            worker=extraction.config.worker,
        )
        for number, gap in enumerate(gaps)
    ]


def _fill_all(
    extractions: Sequence[Extraction], gaps: Sequence[Sequence[Gap]], rows: SplitRows, on_event: OnEvent
) -> bool:
    """Write what each model lacks; return False if a store had lost more rows than there are images for, see `_fill`."""
    together: dict[str, list[tuple[Extraction, Gap]]] = defaultdict(list)
    for one, of_model in zip(extractions, gaps, strict=True):
        for gap in of_model:
            together[gap.rows.digest].append((one, gap))
    return all(_fill(pairs, rows, on_event) for pairs in together.values())


def _fill(pairs: Sequence[tuple[Extraction, Gap]], rows: SplitRows, on_event: OnEvent) -> bool:
    """Write gaps of the same rows.

    Returns:
        False if a store was found damaged in rows whose images are not at hand; it stays incomplete.
    """
    pairs = [(_with_lost_arrays(one, gap), gap) for one, gap in pairs]
    first, gap = pairs[0][0].config, pairs[0][1]
    source = SelectedSource(rows, gap.wanted, ids_of(gap, rows.ids))
    with ExitStack() as stack:
        writers = [stack.enter_context(_open_writer(one, gap, rows)) for one, gap in pairs]
        for _, gap in pairs:
            _report_damage(gap, on_event)
        if first.worker is None or first.worker.index == 0:
            for _, gap in pairs:
                _keep_labels(gap, rows)
        tasks = [
            one.task(writer, _claim(writer, gap), gap.path) for (one, gap), writer in zip(pairs, writers, strict=True)
        ]
        while any(task.pending for task in tasks):
            run_tasks(tasks, source, num_workers=first.num_workers, on_bad_image=first.on_bad_image, on_event=on_event)
            # one of several workers may claim more rows
            tasks = [replace(task, pending=_claim(writer, gap)) for task, writer in zip(tasks, writers, strict=True)]
        left = [writer.pending() for writer in writers]
        for (_, gap), writer in zip(pairs, writers, strict=True):
            if not writer.pending() and not writer.complete():
                num_missing = writer.num_missing_rows
                on_event(ShareFinished(store=gap.path, worker=str(first.worker), num_missing=num_missing))
    return not any(left)


def _with_lost_arrays(extraction: Extraction, gap: Gap) -> Extraction:
    """Also ask for complete arrays of the store whose row blocks a damaged journal no longer lists: a writer drops them."""
    if gap.files is None:
        return extraction
    complete = [one for one in gap.files.header.complete_arrays if one.tap in ("", extraction.backbone.tap)]
    lost = [(one.level, one.kind) for one in complete if not gap.files.committed([one.name]).all()]
    arrays = tuple(dict.fromkeys([*extraction.config.arrays, *lost]))
    return replace(extraction, config=replace(extraction.config, arrays=arrays))


def _report_damage(gap: Gap, on_event: OnEvent) -> None:
    """Say which complete arrays of a store the writer that was just opened has found damaged."""
    if gap.files is None:
        return
    before, now = gap.files.header.arrays, StoreFiles.read(gap.path)
    damaged = tuple(name for name, one in before.items() if one.complete and not now.header.arrays[name].complete)
    if damaged:
        num_blocks = int((~now.committed(damaged)).sum())
        on_event(StoreRepaired(store=gap.path, arrays=damaged, num_blocks=num_blocks))


def _claim(writer: CacheWriter, gap: Gap) -> list[Batch]:
    """The batches to compute next, without row blocks of which an image is not at hand."""
    batches = writer.claim()
    absent = {batch.block for batch in batches if (gap.wanted[batch.start : batch.stop] < 0).any()}
    return [batch for batch in batches if batch.block not in absent]


def _finish(extraction: Extraction, unfinished: Sequence[Gap], rows: SplitRows) -> None:
    """Mark stores complete that have all their rows; one that another process writes, or on a read-only disk, stays as it is."""
    for gap in unfinished:
        with (
            suppress(StoreLockedError, NotWritableError, StorageFullError),
            _open_writer(extraction, gap, rows) as writer,
        ):
            _keep_labels(gap, rows)
            if not writer.claim():
                writer.complete()


def _keep_labels(gap: Gap, rows: SplitRows) -> None:
    """Keep the labels of a store's images beside it, so that it can be probed without the images; the first labels stay."""
    source = rows.source
    if (
        (source.class_names or source.labels.dtype.kind == "f")
        and (gap.wanted >= 0).all()
        and LABEL not in list_targets(gap.path)
    ):
        labels = source.labels[gap.wanted // rows.rows_an_image]
        target = Target(values=labels, type=source.task, class_names=source.class_names, source=rows.name)
        write_target(gap.path, LABEL, target, num_rows=len(labels))


def _refuse_one_model_twice(extractions: Sequence[Extraction]) -> None:
    """`timm/x` and `x`, say: the second would wait for the first one's lock and blame another process."""
    known: dict[str, str] = {}
    for one in extractions:
        model, digest = one.backbone.model_id, one.model.digest
        if digest in known:
            raise RequestError("extraction.two_models_one_store", model=model, other=known[digest])
        known[digest] = model


def _report_unreadable(rows: SplitRows, on_bad_image: str, on_event: OnEvent) -> None:
    """Report the images that cannot be read at all, whose rows no store can hold; raise BadImage for the first one if asked to.

    Raises:
        WorkError: an image could not be read when it was to be hashed, and can be now: it would be left out without a reason.
    """
    for image in np.flatnonzero((rows.images.hashes == MISSING) & rows.images.is_known).tolist():
        try:
            rows.source.load(image)
        except BadImage as bad:
            if on_bad_image == "stop":
                raise
            on_event(ImageSkipped(sample_id=bad.id, file=bad.file, reason=bad.reason))
        else:
            raise WorkError("extraction.unsteady_image", id=rows.source.ids[image], file=rows.source.file_of(image))


def _load_skipped(extraction: Extraction, rows: SplitRows, stores: ModelStores) -> None:
    """Load the images again that could not be decoded when they were extracted; raise BadImage for the first one if asked to."""
    if extraction.config.on_bad_image == "stop":
        for image in extraction.skipped(rows, stores).tolist():
            rows.source.load(image)


def _remove_replaced(extraction: Extraction, rows: SplitRows) -> None:
    """Delete the stores of these rows alone, if the extraction overwrites."""
    if extraction.config.overwrite:
        for path in extraction.to_delete(rows, extraction.find_gaps(rows).gaps):
            delete_store(path)


def _found(extraction: Extraction, rows: SplitRows, found: Gaps) -> RowsFound:
    return RowsFound(
        backbone=extraction.backbone.model_id,
        dataset=rows.source.name,
        split=rows.source.split,
        num_rows=len(rows),
        num_views=rows.rows_an_image - 1,
        num_found=found.num_found,
        num_skipped=found.num_skipped,
        num_missing=found.num_missing,
        num_unreadable=found.num_unreadable,
        stores=tuple(gap.path for gap in found.gaps),
    )


def _open_writer(extraction: Extraction, gap: Gap, rows: SplitRows) -> CacheWriter:
    request = _request(extraction, gap, rows, batch_size_of(extraction, gap))
    return CacheWriter.open_request(gap.path, request, worker=extraction.config.worker)


def _request(extraction: Extraction, gap: Gap, rows: SplitRows, batch_size: int) -> StoreRequest:
    is_whole = bool((gap.wanted >= 0).all())
    has_sizes = is_whole and rows.source.is_encoded
    return check_request(
        extraction.model,
        gap.rows,
        extraction.arrays,
        name=rows.name,
        sample_ids=ids_of(gap, rows.ids),
        batch_size=batch_size,
        sizes=rows.source.sizes[gap.wanted // rows.rows_an_image] if has_sizes else None,
        attributes={"request": extraction.request or {}},
        parity=extraction.parity.get(gap.path),
    )


def batch_size_of(extraction: Extraction, gap: Gap) -> int:
    """Choose the batch size of a new store; an existing one keeps its own, so nothing is tried out for it.

    A GPU's is made smaller until it divides a row block, of which no batch crosses the border.
    """
    backbone, config = extraction.backbone, extraction.config
    if config.batch_size is not None:
        return config.batch_size
    if gap.files is not None:
        return batch_size_on_a_cpu(backbone)
    levels, kinds = (list(dict.fromkeys(names)) for names in zip(*config.arrays, strict=True))
    batch_size = choose_batch_size(backbone, backbone.compile(levels, kinds))
    return even_batch_size(rows_per_block(len(gap.rows)), batch_size) if backbone.device.type == "cuda" else batch_size
