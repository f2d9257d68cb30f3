"""Extraction as a command requests it: open data and models, hash new images, compare the first ones with float32, check the disk.

Knows nothing of terminals. Options come as a mapping that pickles, so that worker processes get the same ones.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from xxhash import xxh3_64_intdigest

from layerbank.cache import StoreForecast, Worker, known_hashes

from ..data.image_set import ImageSet, identify
from ..data.sources import ImageSource, open_source
from ..data.split_rows import SplitRows
from ..data.views import ViewRule
from ..errors import RequestError
from ..events import OnEvent, ignore
from ..extraction.decoding import start_worker_server
from ..extraction.disk_space import check_disk_space
from ..extraction.extract import ExtractConfig, Extraction, begin, extract_together, forecasts
from ..extraction.parity import settle
from ..extraction.ranks import device_of_worker
from ..models.backbone import Backbone
from ..models.layers import choose_levels
from ..models.request import (
    ModelRequest,
    choose_device,
    choose_precision,
    choose_storage_dtype,
    choose_tap,
    choose_workers,
)
from ..probing.tokens.split_tokens import SplitRequest, request_tokens

Prepared = list[tuple[SplitRows, list[Extraction]]]
"""The extractions of each split, one a model."""


@dataclass(frozen=True)
class RequestedExtraction:
    """One model, the data and the settings of an extraction.

    Attributes:
        backbone: the model, opened.
        request: how it was opened.
        data: URI of the data.
        cache_root: folder of all stores.
        config: what to store, and how.
        parity_threshold: minimum cosine similarity of a token to a float32 run; None accepts any.
        parity: split -> store -> parity measured on its first images.
        on_event: called with every event.
    """

    backbone: Backbone
    request: ModelRequest
    data: str
    cache_root: Path
    config: ExtractConfig
    parity_threshold: float | None = None
    parity: Mapping[str, Mapping[Path, Mapping[str, Any]]] = field(default_factory=dict)
    on_event: OnEvent = ignore

    def settled(self, splits: Sequence[SplitRows]) -> RequestedExtraction:
        """Compare the first images of each split with float32; the precision may change, see `parity.settle`."""
        found = settle(
            self.request,
            self.backbone,
            splits,
            self.config,
            self.cache_root,
            threshold=self.parity_threshold,
            on_event=self.on_event,
        )
        return replace(self, backbone=found.backbone, request=found.request, parity=found.parity)

    def tokens(self, rows: SplitRows) -> SplitRequest:
        """Return the request for the tokens of a split, which need not exist yet."""
        return request_tokens(self.cache_root, self.extraction(rows).model, self.backbone.tap, rows, self.config.arrays)

    def extract(self, rows: SplitRows) -> SplitRequest:
        """Compute what the cache lacks of a split."""
        extract_together([self.extraction(rows)], rows, on_event=self.on_event)
        return self.tokens(rows)

    def extraction(self, rows: SplitRows) -> Extraction:
        """Return the extraction of one split."""
        return Extraction(
            backbone=self.backbone,
            config=self.config,
            cache_root=self.cache_root,
            request=self.description(rows),
            parity=self.parity.get(rows.source.split, {}),
        )

    def description(self, rows: SplitRows | None = None) -> dict[str, Any]:
        """Return what `cache repair` and `predict` need to open the same model on the same data, or rows, again."""
        split = {"split": rows.source.split} if rows else {}
        views = {"views": rows.rule.to_dict()} if rows and rows.rule else {}
        return {"model": self.request.to_dict(), "data": self.data} | split | views


def open_rows(
    source: ImageSource, options: Mapping[str, Any], on_event: OnEvent, *, may_hash: bool = True
) -> SplitRows:
    """Return the rows of a source: hash its new images, and take the views of the options if it is the split that has them.

    Args:
        source: the images of a split.
        options: `cache_root`, `trust_files`, and the options of views.
        on_event: called with every event.
        may_hash: False reads no image: those that the content index does not know count as missing.
    """
    cache_root = options["cache_root"]
    trusted = partial(known_hashes, cache_root) if options.get("trust_files") else None
    images = identify(source, cache_root, may_hash=may_hash, trusted=trusted, on_event=on_event)
    if not may_hash:
        images = _with_stand_ins(images, source.ids)
    rule = None
    if options.get("views") and options.get("views_split", source.split) == source.split:
        rule = ViewRule(num_views=options["views"], min_scale=options["view_scale"], flip=options["view_flip"])
    return SplitRows(source=source, images=images, rule=rule)


def _with_stand_ins(images: ImageSet, ids: Sequence[str]) -> ImageSet:
    """Give images that were not hashed a hash that no store has: they count as missing, not as unreadable."""
    hashes = images.hashes.copy()
    unknown = np.flatnonzero(~images.is_known)
    hashes[unknown] = [xxh3_64_intdigest(f"not hashed: {ids[row]}".encode()) or 1 for row in unknown.tolist()]
    return replace(images, hashes=hashes)


def prepare(request: dict[str, Any], on_event: OnEvent, worker: Worker | None, *, only_plan: bool = False) -> Prepared:
    """Open the data and the models of `layerbank extract`.

    Args:
        request: the options, with `settled` if `prepare_shares` has compared the first images.
        on_event: called with every event.
        worker: which of several workers of the stores this process is.
        only_plan: go on where the disk is too small, and hash no image.

    Raises:
        RequestError: wrong options, or a disk that is too small or cannot be written.
    """
    # before the slow model
    sources = [open_source(request["data"], split) for split in dict.fromkeys(request["splits"])]
    settled = request.get("settled")
    requested = []
    for number, (model, weights) in enumerate(request["pairs"]):
        options = request | {"model": model, "weights": weights, "worker": worker}
        precision, parity = (request["precision"], {}) if settled is None else settled[number]
        options |= {"precision": precision}
        model_request, backbone = open_model(options)
        chosen = backbone.levels if request["levels"] == "every" else choose_levels(request["levels"], backbone.depth)
        arrays = [(level, kind) for level in chosen for kind in split_names(request["kinds"])]
        one = request_extraction(options, model_request, backbone, arrays, on_event)
        requested.append(replace(one, parity=parity))
    splits = [open_rows(one, request, on_event, may_hash=not only_plan) for one in sources]
    if only_plan:
        requested = [one.settled(splits) for one in requested]
    elif settled is None:
        requested = settle_and_check_disk(requested, splits)
    return [(rows, [one.extraction(rows) for one in requested]) for rows in splits]


def settle_and_check_disk(
    requested: Sequence[RequestedExtraction], splits: Sequence[SplitRows]
) -> list[RequestedExtraction]:
    """Check the disk space, and compare the first images of each split with float32.

    A float16 model may become a bfloat16 one, whose stores are others, so its disk space is checked afterwards.

    Args:
        requested: one a model, with its arrays.
        splits: the rows of each split.

    Raises:
        RequestError: the disk is too small, or cannot be written.
    """
    certain = [one for one in requested if one.backbone.precision != "float16"]
    _check_disk(certain, splits)
    settled = [one.settled(splits) for one in requested]
    if len(certain) < len(settled):
        _check_disk(settled, splits)
    return settled


def _check_disk(requested: Sequence[RequestedExtraction], splits: Sequence[SplitRows]) -> None:
    if requested:
        found = [one for rows in splits for model in requested for one in forecasts_of(model.extraction(rows), rows)]
        check_disk_space(requested[0].cache_root, found)


def forecasts_of(extraction: Extraction, rows: SplitRows) -> list[StoreForecast]:
    """Return what each store would be that an extraction writes."""
    return forecasts(extraction, rows, extraction.find_gaps(rows).gaps)


def prepare_shares(request: dict[str, Any], on_event: OnEvent) -> tuple[dict[str, Any], list[str]]:
    """Do once what several processes of `layerbank extract` need: check the request, compare the first images, begin new stores.

    Returns:
        The request for `extract_share`, and the folders of the stores.
    """
    prepared = prepare(request, on_event, None)
    for rows, extractions in prepared:
        begin(extractions, rows)
    settled = [
        (one.backbone.precision, {rows.source.split: of_split[number].parity for rows, of_split in prepared})
        for number, one in enumerate(prepared[0][1])
    ]
    share = request | {"overwrite": False, "settled": settled, "identities": _identities(prepared)}
    return share, folders_of(prepared)


def extract_share(request: dict[str, Any], worker: Worker, on_event: OnEvent) -> None:
    """Do the share of one of several processes of `layerbank extract`.

    Raises:
        RequestError: on this machine the same names are other weights or other images, which would fill other stores.
    """
    request = request | {"device": device_of_worker(request["device"], worker.index)}
    prepared = prepare(request, on_event, worker)
    pairs = zip(_identities(prepared), request["identities"], strict=True)
    if others := [here for here, wanted in pairs if here != wanted]:
        raise RequestError(
            "jobs.worker_has_other_files",
            worker=worker,
            node=socket.gethostname(),
            stores=", ".join(f"{name} {digest[:8]}" for name, digest in request["identities"]),
            others=", ".join(f"{name} {digest[:8]}" for name, digest in others),
        )
    for rows, extractions in prepared:
        extract_together(extractions, rows, on_event=on_event)


def _identities(prepared: Prepared) -> list[tuple[str, str]]:
    """Name and digest of each model and of the images of each split."""
    models = [(one.backbone.model_id, one.model.digest) for one in prepared[0][1]]
    return models + [(rows.name, rows.images.digest) for rows, _ in prepared]


def folders_of(prepared: Prepared) -> list[str]:
    """Return the folder of the stores of each model."""
    return [str(one.model.folder(one.cache_root)) for one in prepared[0][1]]


def open_model(options: Mapping[str, Any]) -> tuple[ModelRequest, Backbone]:
    """Open the model that a command's options name.

    Raises:
        RequestError: wrong options; errors name the option.
    """
    device = choose_device(options["device"])
    choose_storage_dtype(options["storage_dtype"])
    if choose_workers(options["workers"], device):
        start_worker_server()
    request = ModelRequest(
        model=options["model"],
        weights=options["weights"],
        tap=choose_tap(options["tap"], options["tap_module"]),
        image_size=options["image_size"],
        precision=choose_precision(options["precision"], device),
        seed=options["weights_seed"],
    )
    return request, request.open(device)


def request_extraction(
    options: Mapping[str, Any],
    request: ModelRequest,
    backbone: Backbone,
    arrays: Sequence[tuple[str, str]],
    on_event: OnEvent,
) -> RequestedExtraction:
    """Return the extraction of a model that a command's options describe.

    Args:
        options: the options.
        request, backbone: what `open_model` returned.
        arrays: the (level, kind) pairs to store.
        on_event: called with every event.
    """
    config = ExtractConfig(
        arrays=tuple(arrays),
        storage_dtype=choose_storage_dtype(options["storage_dtype"]),
        batch_size=options["batch_size"],
        num_workers=choose_workers(options["workers"], str(backbone.device)),
        on_bad_image=options["on_bad_image"],
        compile=options["compile_model"],
        overwrite=options.get("overwrite", False),
        worker=options.get("worker"),
    )
    return RequestedExtraction(
        backbone,
        request,
        options["data"],
        options["cache_root"],
        config,
        parity_threshold=options["parity_threshold"],
        on_event=on_event,
    )


def split_names(text: str) -> tuple[str, ...]:
    """Split names at commas, and keep each once.

    >>> split_names("cls, ap,cls")
    ('cls', 'ap')
    """
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
