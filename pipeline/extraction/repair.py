"""Repair a store: drop what is damaged, then extract exactly those rows again with the model and data it was made from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from layerbank.cache import CacheSpec, Repair, SpecMismatchError, StoreInfo, read_store_info, repair_store

from ..data.sources import ImageSource, open_source
from ..data.views import ViewedSource, ViewRule
from ..errors import RequestError
from ..events import OnEvent, ignore
from ..models.request import ModelRequest
from .disk_space import check_disk_space
from .extract import ExtractConfig, Extraction, extract_together, forecast, spec_of


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
        CacheError: no such store, held by another process, or damaged beyond repair.
    """
    info = read_store_info(store)
    if info.problem is not None:
        raise info.problem
    assert info.spec is not None
    extraction, source = _open_again(store, info, info.spec, device, num_workers)
    # a damaged file of the right size frees the space that the new one takes
    check_disk_space(store.parent, [forecast(extraction, source)], repaired=store)
    repaired = repair_store(store, remove_foreign=remove_foreign)
    extract_together([extraction], source, on_event=on_event)
    return repaired


def _open_again(
    store: Path, info: StoreInfo, spec: CacheSpec, device: str, num_workers: int
) -> tuple[Extraction, ImageSource]:
    """Open the model and the data that a store was made from."""
    request = info.attributes.get("request") or {}
    if "model" not in request or "data" not in request:
        raise RequestError("extraction.unknown_origin", store=store)
    source = open_source(request["data"], spec.split)
    if "views" in request:
        source = ViewedSource(source, ViewRule.from_dict(request["views"]))
    backbone = replace(ModelRequest.from_dict(request["model"]), precision=spec.compute_dtype).open(device)
    if differences := spec.difference(spec_of(backbone, source, spec.storage_dtype)):
        raise SpecMismatchError("cache.other_identity_to_repair", store=store, differences=differences)
    config = ExtractConfig(
        arrays=tuple((array.level, array.kind) for array in info.arrays),
        storage_dtype=spec.storage_dtype,
        num_workers=num_workers,
        on_bad_image="skip",  # what was skipped when it was made is skipped again, so that the rows come out the same
    )
    return Extraction(backbone=backbone, config=config, store=store, request=request), source
