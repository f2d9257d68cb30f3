"""Extraction as a command requests it: open the data and the models, compare the first images with float32, check the disk.

Knows nothing of terminals. Options come as a mapping that pickles, so that worker processes get the same ones.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from layerbank.cache import Worker

from ..data.sources import ImageSource, open_source
from ..data.views import ViewedSource, ViewRule
from ..errors import RequestError
from ..events import OnEvent, ignore
from ..extraction.decoding import start_worker_server
from ..extraction.disk_space import check_disk_space
from ..extraction.extract import ExtractConfig, Extraction, begin, extract_together, forecast, spec_of
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
from ..probing.probe import Store


@dataclass(frozen=True)
class RequestedExtraction:
    """One model, the data and the settings of an extraction.

    Attributes:
        backbone: the model, opened.
        request: how it was opened.
        data: URI of the data.
        cache_root: folder of all stores.
        storage_dtype: as in `ExtractConfig`.
        arrays: the (level, kind) pairs to store.
        settings: other arguments of `ExtractConfig`.
        parity_threshold: minimum cosine similarity of a token to a float32 run; None accepts any.
        parity: split -> parity measured on its first images.
        on_event: called with every event.
    """

    backbone: Backbone
    request: ModelRequest
    data: str
    cache_root: Path
    storage_dtype: str
    arrays: tuple[tuple[str, str], ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    parity_threshold: float | None = None
    parity: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    on_event: OnEvent = ignore

    def settled(self, sources: Sequence[ImageSource]) -> RequestedExtraction:
        """Compare the first images of each split with float32; the precision may change, see `parity.settle`."""
        found = settle(
            self.request,
            self.backbone,
            sources,
            self.arrays,
            storage_dtype=self.storage_dtype,
            cache_root=self.cache_root,
            open_split=partial(open_source, self.data),
            overwrite=self.settings.get("overwrite", False),
            threshold=self.parity_threshold,
            on_event=self.on_event,
        )
        return replace(self, backbone=found.backbone, request=found.request, parity=found.parity)

    def store(self, source: ImageSource) -> Store:
        """Return the store of a source's tokens, which may not exist yet."""
        spec = spec_of(self.backbone, source, self.storage_dtype)
        return Store(spec.store_path(self.cache_root), spec)

    def extract(self, source: ImageSource) -> Store:
        """Compute what the store of a source lacks."""
        extract_together([self.extraction(source)], source, on_event=self.on_event)
        return self.store(source)

    def extraction(self, source: ImageSource) -> Extraction:
        """Return the extraction of one source."""
        return Extraction(
            backbone=self.backbone,
            config=ExtractConfig(arrays=self.arrays, storage_dtype=self.storage_dtype, **self.settings),
            store=self.store(source).path,
            request=self.config(source),
            parity=self.parity.get(source.split),
        )

    def config(self, source: ImageSource | None = None) -> dict[str, Any]:
        """Return what `cache repair` and `predict` need to open the same model on the same data, or source, again."""
        views = {"views": source.rule.to_dict()} if isinstance(source, ViewedSource) else {}
        return {"model": self.request.to_dict(), "data": self.data} | views


def prepare(
    request: dict[str, Any], on_event: OnEvent, worker: Worker | None, *, only_plan: bool = False
) -> list[tuple[ImageSource, list[Extraction]]]:
    """Open the data and the models of `layerbank extract`.

    Args:
        request: the options, with `settled` if `prepare_shares` has compared the first images.
        on_event: called with every event.
        worker: which of several workers of the stores this process is.
        only_plan: go on where the disk is too small.

    Returns:
        The extractions of each split, one a model.

    Raises:
        RequestError: wrong options, or a disk that is too small or cannot be written.
    """
    splits = dict.fromkeys(request["splits"])
    sources = [open_source(request["data"], split) for split in splits]  # before the slow model
    sources = [with_views(one, request) if one.split == request["views_split"] else one for one in sources]
    settled = request.get("settled")
    requested = []
    for number, (model, weights) in enumerate(request["pairs"]):
        options = request | {"model": model, "weights": weights, "worker": worker}
        precision, parity = (request["precision"], {}) if settled is None else settled[number]
        one = open_extraction(options | {"precision": precision}, on_event)
        backbone, levels = one.backbone, request["levels"]
        chosen = backbone.levels if levels == "every" else choose_levels(levels, backbone.depth)
        arrays = tuple((level, kind) for level in chosen for kind in split_names(request["kinds"]))
        requested.append(replace(one, arrays=arrays, parity=parity))
    if only_plan:
        requested = [one.settled(sources) for one in requested]
    elif settled is None:
        requested = settle_and_check_disk(requested, sources)
    return [(source, [one.extraction(source) for one in requested]) for source in sources]


def settle_and_check_disk(
    requested: Sequence[RequestedExtraction], sources: Sequence[ImageSource]
) -> list[RequestedExtraction]:
    """Check the disk space, and compare the first images of each split with float32.

    A float16 model may become a bfloat16 one, whose store is another and perhaps complete, so its disk space is checked afterwards.

    Args:
        requested: one a model, with its arrays.
        sources: the splits.

    Raises:
        RequestError: the disk is too small, or cannot be written.
    """
    certain = [one for one in requested if one.backbone.precision != "float16"]
    _check_disk(certain, sources)
    settled = [one.settled(sources) for one in requested]
    if len(certain) < len(settled):
        _check_disk(settled, sources)
    return settled


def _check_disk(requested: Sequence[RequestedExtraction], sources: Sequence[ImageSource]) -> None:
    if requested:
        forecasts = [forecast(one.extraction(source), source) for source in sources for one in requested]
        check_disk_space(requested[0].cache_root, forecasts)


def prepare_shares(request: dict[str, Any], on_event: OnEvent) -> tuple[dict[str, Any], list[Path]]:
    """Do once what several processes of `layerbank extract` need: check the request, compare the first images, begin new stores.

    Returns:
        The request for `extract_share`, and the stores.
    """
    prepared = prepare(request, on_event, None)
    if request["overwrite"]:
        for source, extractions in prepared:
            begin(extractions, source, on_event=on_event)
    settled = [
        (one.backbone.precision, {source.split: of_split[number].parity for source, of_split in prepared})
        for number, one in enumerate(prepared[0][1])
    ]
    stores = stores_of(prepared)
    return request | {"overwrite": False, "settled": settled, "stores": stores}, stores


def extract_share(request: dict[str, Any], worker: Worker, on_event: OnEvent) -> None:
    """Do the share of one of several processes of `layerbank extract`.

    Raises:
        RequestError: on this machine the same names are other weights or other images, which would fill another store.
    """
    request = request | {"device": device_of_worker(request["device"], worker.index)}
    prepared = prepare(request, on_event, worker)
    others = [path for path, wanted in zip(stores_of(prepared), request["stores"], strict=True) if path != wanted]
    if others:
        raise RequestError(
            "jobs.worker_has_other_files",
            worker=worker,
            node=socket.gethostname(),
            stores=", ".join(map(str, request["stores"])),
            others=", ".join(map(str, others)),
        )
    for source, extractions in prepared:
        extract_together(extractions, source, on_event=on_event)


def stores_of(prepared: list[tuple[ImageSource, list[Extraction]]]) -> list[Path]:
    """Return the stores of extractions, in their order."""
    return [one.store for _, extractions in prepared for one in extractions]


def with_views(source: ImageSource, options: dict[str, Any]) -> ImageSource:
    """Return the source with the augmented views of the options, a row each."""
    if not options["views"]:
        return source
    rule = ViewRule(num_views=options["views"], min_scale=options["view_scale"], flip=options["view_flip"])
    return ViewedSource(source, rule)


def open_extraction(options: dict[str, Any], on_event: OnEvent) -> RequestedExtraction:
    """Open the model that a command's options name; its arrays are not known yet.

    Raises:
        RequestError: wrong options; errors name the option.
    """
    device = choose_device(options["device"])
    storage_dtype = choose_storage_dtype(options["storage_dtype"])
    num_workers = choose_workers(options["workers"], device)
    if num_workers:
        start_worker_server()
    request = ModelRequest(
        model=options["model"],
        weights=options["weights"],
        tap=choose_tap(options["tap"], options["tap_module"]),
        image_size=options["image_size"],
        precision=choose_precision(options["precision"], device),
        seed=options["weights_seed"],
    )
    return RequestedExtraction(
        request.open(device),
        request,
        options["data"],
        options["cache_root"],
        storage_dtype,
        settings={
            "batch_size": options["batch_size"],
            "num_workers": num_workers,
            "on_bad_image": options["on_bad_image"],
            "compile": options["compile_model"],
            "overwrite": options.get("overwrite", False),
            "worker": options.get("worker"),
        },
        parity_threshold=options["parity_threshold"],
        on_event=on_event,
    )


def split_names(text: str) -> tuple[str, ...]:
    """Split names at commas, and keep each once.

    >>> split_names("cls, ap,cls")
    ('cls', 'ap')
    """
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
