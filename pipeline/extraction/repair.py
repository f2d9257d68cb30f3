"""Repair a store: drop what is damaged, then extract exactly those rows again with the model and data it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from layerbank.cache import (
    DamagedStoreError,
    Gap,
    ModelStores,
    Repair,
    SpecMismatchError,
    StoreFiles,
    array_key,
    find_gaps,
    ids_of,
    repair_store,
    require_current,
    store_gap,
    verify_store,
)
from layerbank.cache.maintenance.verify import find_unfinished_work

from ..data.image_set import identify
from ..data.pixels import recorded_rule
from ..data.sources import open_source
from ..data.splits.split_rows import SplitRows
from ..data.views import ViewRule
from ..errors import RequestError
from ..events import OnEvent, ignore
from ..models.families import models_with_code
from ..models.request import ModelRequest
from ..models.trust import CodePermission
from .disk_space import check_disk_space
from .extract import ExtractConfig, Extraction, fill_store, forecasts


def repair_and_fill(
    store: Path,
    *,
    device: str = "cpu",
    num_workers: int = 1,
    remove_foreign: bool = False,
    allow_code: Sequence[str] = (),
    on_event: OnEvent = ignore,
) -> Repair:
    """Repair a store in place.

    Before anything is dropped, the model and the data are opened and compared with the store's identity, and the disk space is
    checked.

    Args:
        store: its path.
        device: where the model runs.
        num_workers: decoding processes.
        remove_foreign: also delete files that do not belong to the store.
        allow_code: ids of models that may run code of their own.
        on_event: callback for progress.

    Raises:
        RequestError: the store does not record its model and data, they cannot be opened, the model's code is not allowed to run,
            images of rows to compute are gone, or the disk is too small.
        SpecMismatchError: the model has changed.
        CacheError: no such store, held by another process, of an older format, or damaged beyond repair.
    """
    files = StoreFiles.read(store)
    require_current(files.path, files.header)
    extractions, rows = _open_again(files, device, num_workers, allow_code, on_event)
    gaps = [_whole(one, files, rows) for one in extractions]
    # a damaged file of the right size frees the space that the new one takes
    planned = [forecast for one, gap in zip(extractions, gaps, strict=True) for forecast in forecasts(one, rows, [gap])]
    check_disk_space(store.parent, planned, repaired=store)
    repaired = repair_store(store, remove_foreign=remove_foreign)
    for one, gap in zip(extractions, gaps, strict=True):
        fill_store(one, gap, rows, on_event=on_event)
    left = [one for one in (*verify_store(store), *find_unfinished_work(store)) if one not in repaired.foreign]
    return replace(repaired, still_damaged=tuple(left))


def _open_again(
    files: StoreFiles, device: str, num_workers: int, allow_code: Sequence[str], on_event: OnEvent
) -> tuple[list[Extraction], SplitRows]:
    """Open the model and the data that a store was made from; an extraction for each tap of the store."""
    store, header = files.path, files.header
    model = header.spec.model
    request = header.attributes.get("request")
    parts = {"model": dict, "data": str, "split": str}
    if not isinstance(request, dict) or not all(isinstance(request.get(part), kind) for part, kind in parts.items()):
        raise RequestError("extraction.unknown_origin", store=store)
    permission = CodePermission(allow_code, str(store / "zarr.json"))
    try:
        asked = replace(ModelRequest.from_dict(request["model"], permission), precision=model.compute_dtype)
        rule = ViewRule.from_dict(request["views"]) if "views" in request else None
        pixels = recorded_rule(request)
    except TypeError:  # values of other types
        raise RequestError("extraction.unknown_origin", store=store) from None
    models_with_code([asked.model], permission)  # before the images are hashed
    source = open_source(request["data"], request["split"], on_event, pixels=pixels)
    images = identify(source, store.parent.parent, on_event=on_event)
    rows = SplitRows(source=source, images=images, rule=rule)
    extractions = []
    for tap in sorted({entry.spec.tap for entry in header.arrays.values()} - {""}) or [asked.tap]:
        specs = [entry.spec for entry in header.arrays.values() if entry.spec.tap in ("", tap)]
        config = ExtractConfig(
            arrays=tuple((array.level, array.kind) for array in specs),
            storage_dtype=model.storage_dtype,
            num_workers=num_workers,
            on_bad_image="skip",  # what was skipped when it was made is skipped again, so that the rows come out the same
        )
        backbone = replace(asked, tap=tap).open(device)
        one = Extraction(backbone=backbone, config=config, cache_root=store.parent.parent, request=request)
        if differences := model.difference(one.model):
            raise SpecMismatchError("cache.other_identity_to_repair", store=store, differences=differences)
        extractions.append(one)
    return extractions, rows


def _keys(extraction: Extraction) -> list[tuple[str, str, str]]:
    return [array_key(extraction.backbone.tap, *array) for array in extraction.config.arrays]


def _whole(extraction: Extraction, files: StoreFiles, rows: SplitRows) -> Gap:
    """The whole store as a gap: any of its rows may turn out to be damaged.

    Raises:
        RequestError: an image of a row to compute is no longer among the data.
        DamagedStoreError: the hashes of the rows are damaged, and the data are not the images of the store and no others.
    """
    try:
        gap = store_gap(files, rows.wanted)
    except DamagedStoreError:
        if (recovered := _gap_of_lost_rows(extraction, files, rows)) is None:
            raise
        gap = recovered
    gone = np.flatnonzero(gap.wanted < 0)
    if len(gone) and (needed := np.intersect1d(gone, _rows_to_compute(extraction, files))).size:
        raise RequestError(
            "extraction.images_gone",
            store=files.path,
            count=len(needed),
            id=ids_of(gap, rows.ids)[int(needed[0])],
            data=(extraction.request or {})["data"],
            split=rows.source.split,
        )
    return gap


def _gap_of_lost_rows(extraction: Extraction, files: StoreFiles, rows: SplitRows) -> Gap | None:
    """The store with the rows that it would have if it were made now, if those are its rows."""
    stores = ModelStores(extraction.cache_root, extraction.model)
    every = [one.path for one in stores.stores]
    found = find_gaps(stores, rows.wanted, _keys(extraction), order=rows.reading_order, name=rows.name, leave_out=every)
    same = [gap for gap in found.gaps if gap.rows.digest == files.header.spec.rows_digest]
    return replace(same[0], path=files.path, files=files) if same else None


def _rows_to_compute(extraction: Extraction, files: StoreFiles) -> NDArray[np.int64]:
    """The rows of the row blocks that are missing or damaged; reads the whole store."""
    header = files.header
    blocks = ~files.committed([files.arrays[key] for key in _keys(extraction)])
    for damage in verify_store(files.path):
        if damage.rows is not None and damage.array in header.arrays:  # of ids, rows are bytes
            blocks[damage.rows.start // header.block_rows] = True
    return np.flatnonzero(files.rows_of(blocks))
