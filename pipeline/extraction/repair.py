"""Repair a store: drop what is damaged, then extract exactly those rows again with the model and data it was made from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from layerbank.cache import (
    FieldDifference,
    Gap,
    Journal,
    Repair,
    SpecMismatchError,
    StoreFiles,
    array_key,
    gap_of,
    repair_store,
    require_current,
)

from ..data.image_set import identify
from ..data.sources import open_source
from ..data.split_rows import SplitRows
from ..data.views import ViewRule
from ..errors import RequestError
from ..events import OnEvent, ignore
from ..models.request import ModelRequest
from .disk_space import check_disk_space
from .extract import ExtractConfig, Extraction, fill_store, forecasts


def repair_and_fill(
    store: Path,
    *,
    device: str = "cpu",
    num_workers: int = 1,
    remove_foreign: bool = False,
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
        on_event: callback for progress.

    Raises:
        RequestError: the store does not record its model and data, they cannot be opened, or the disk is too small.
        SpecMismatchError: the model or the data have changed.
        CacheError: no such store, held by another process, of an older format, or damaged beyond repair.
    """
    files = StoreFiles.read(store)
    require_current(files.path, files.header)
    extractions, rows = _open_again(files, device, num_workers, on_event)
    gaps = [_whole(one, files, rows) for one in extractions]
    # a damaged file of the right size frees the space that the new one takes
    planned = [forecast for one, gap in zip(extractions, gaps, strict=True) for forecast in forecasts(one, rows, [gap])]
    check_disk_space(store.parent, planned, repaired=store)
    repaired = repair_store(store, remove_foreign=remove_foreign)
    for one in extractions:
        if (gap := _gap(one, StoreFiles.read(store), rows)) is not None:
            fill_store(one, gap, rows, on_event=on_event)
    return repaired


def _open_again(
    files: StoreFiles, device: str, num_workers: int, on_event: OnEvent
) -> tuple[list[Extraction], SplitRows]:
    """Open the model and the data that a store was made from; an extraction for each tap of the store."""
    store, header = files.path, files.header
    model = header.spec.model
    request = header.attributes.get("request") or {}
    if not {"model", "data", "split"} <= request.keys():
        raise RequestError("extraction.unknown_origin", store=store)
    source = open_source(request["data"], request["split"])
    rule = ViewRule.from_dict(request["views"]) if "views" in request else None
    images = identify(source, store.parent.parent, on_event=on_event)
    rows = SplitRows(source=source, images=images, rule=rule)
    asked = replace(ModelRequest.from_dict(request["model"]), precision=model.compute_dtype)
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


def _gap(extraction: Extraction, files: StoreFiles, rows: SplitRows) -> Gap | None:
    """What the store lacks, if all of it is among the rows."""
    keys = [array_key(extraction.backbone.tap, *array) for array in extraction.config.arrays]
    return gap_of(files, rows.wanted, keys)[0]


def _whole(extraction: Extraction, files: StoreFiles, rows: SplitRows) -> Gap:
    """The whole store as a gap: any of its rows may turn out to be damaged.

    Raises:
        SpecMismatchError: an image of the store is no longer among the data.
    """
    gap = _gap(extraction, replace(files, journal=Journal()), rows)
    if gap is None:
        spec = files.header.spec
        differences = [FieldDifference("rows", spec.rows_digest, "data without some of these images")]
        raise SpecMismatchError("cache.other_identity_to_repair", store=files.path, differences=differences)
    return gap
