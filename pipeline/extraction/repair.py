"""Repair a store: forget what is damaged, then extract exactly those rows again with the model and data it was made from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from layerbank.cache import Repair, SpecMismatchError, read_store_info, repair_store

from ..data.sources import open_source
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
    """Mend a store in place.

    The model and the data are opened and compared with the store's identity, and the disk is asked for room, before anything is
    dropped.

    Args:
        store: its path.
        device: where the model runs.
        num_workers: decoding processes.
        remove_foreign: also delete files that do not belong to the store.
        emit: told what happens.

    Raises:
        RequestError: the store does not say what it was made from, the model or data cannot be opened, or the disk does not take
            what is missing.
        SpecMismatchError: they are no longer what they were.
        CacheError: no such store, held by another process, or damaged beyond repair.
    """
    info = read_store_info(store)
    if info.problem is not None:
        raise info.problem
    assert info.spec is not None
    request = info.attributes.get("request") or {}
    if "model" not in request or "data" not in request:
        raise RequestError(
            where=str(store),
            expected="a store that says which model and data it was made from",
            got="none recorded",
            todo="Verify it, then make it anew from Python: CacheWriter.open(..., overwrite=True).",
        )
    source = open_source(request["data"], info.spec.split)
    if "views" in request:
        source = ViewedSource(source, ViewRule.from_dict(request["views"]))
    model = replace(ModelRequest.from_dict(request["model"]), precision=info.spec.compute_dtype)
    backbone = model.open(device)
    if differences := info.spec.difference(spec_of(backbone, source, info.spec.storage_dtype)):
        raise SpecMismatchError("cache.other_identity_to_repair", store=store, differences=differences)
    config = ExtractConfig(
        arrays=tuple((array.level, array.kind) for array in info.arrays),
        storage_dtype=info.spec.storage_dtype,
        num_workers=num_workers,
        on_bad_image="skip",  # what was skipped when it was made is skipped again, so that the rows come out the same
    )
    extraction = Extraction(backbone=backbone, config=config, store=store, request=request)
    # a damaged file of the right size frees what the new one takes
    check_disk_space(store.parent, [forecast(extraction, source)], mended=store)
    repaired = repair_store(store, remove_foreign=remove_foreign)
    extract_together([extraction], source, on_event=on_event)
    return repaired
