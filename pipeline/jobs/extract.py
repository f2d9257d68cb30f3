"""From the options of a command line to work that is ready: data opened, models opened, first images looked at.

Knows no terminal: options come as a mapping, so that a worker process gets the same ones.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any

from layerbank.cache import Worker

from ..data.sources import ImageSource, open_source
from ..data.views import ViewedSource, ViewRule
from ..errors import RequestError
from ..events import OnEvent
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
    """The model, the data and the way of extraction that a command line asked for."""

    backbone: Backbone
    request: ModelRequest
    options: dict[str, Any]
    on_event: OnEvent
    parity: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # of each split

    def settled(
        self, sources: Sequence[ImageSource], arrays: Sequence[tuple[str, str]], *, overwrite: bool = False
    ) -> RequestedExtraction:
        """After a look at the first images: perhaps in another precision, see `parity.settle`."""
        found = settle(
            self.request,
            self.backbone,
            sources,
            arrays,
            storage_dtype=self.options["storage_dtype"],
            cache_root=self.options["cache_root"],
            open_split=partial(open_source, self.options["data"]),
            overwrite=overwrite,
            threshold=self.options["parity_threshold"],
            on_event=self.on_event,
        )
        return replace(self, backbone=found.backbone, request=found.request, parity=found.parity)

    def store(self, source: ImageSource) -> Store:
        """Where the tokens of a source lie, or will lie."""
        spec = spec_of(self.backbone, source, self.options["storage_dtype"])
        return Store(spec.store_path(self.options["cache_root"]), spec)

    def extract(self, source: ImageSource, arrays: Sequence[tuple[str, str]]) -> Store:
        """Compute what the store of a source lacks."""
        extract_together([self.extraction(source, arrays)], source, on_event=self.on_event)
        return self.store(source)

    def extraction(
        self,
        source: ImageSource,
        arrays: Sequence[tuple[str, str]],
        *,
        overwrite: bool = False,
        worker: Worker | None = None,
    ) -> Extraction:
        """What `extract_together` takes, for one source."""
        config = ExtractConfig(
            arrays=tuple(arrays),
            storage_dtype=self.options["storage_dtype"],
            batch_size=self.options["batch_size"],
            num_workers=self.options["workers"],
            on_bad_image=self.options["on_bad_image"],
            overwrite=overwrite,
            compile=self.options["compile_model"],
            worker=worker,
        )
        return Extraction(
            backbone=self.backbone,
            config=config,
            store=self.store(source).path,
            request=self.config(source),
            parity=self.parity.get(source.split),
        )

    def config(self, source: ImageSource | None = None) -> dict[str, Any]:
        """What `cache repair` and `predict` need to open the same model on the same data, or source, again."""
        views = {"views": source.rule.to_dict()} if isinstance(source, ViewedSource) else {}
        return {"model": self.request.to_dict(), "data": self.options["data"]} | views


def prepare(
    request: dict[str, Any], on_event: OnEvent, worker: Worker | None, *, only_plan: bool = False
) -> list[tuple[ImageSource, list[Extraction]]]:
    """Open the data and the models of `layerbank extract`: what to do, a split at a time.

    Args:
        request: the options.
        emit: told what is found.
        worker: which of several workers of the stores this process is.
        only_plan: go on where the disk is too small.

    Raises:
        RequestError: options that make no sense, or a disk that is too small or cannot be written.
    """
    levels, overwrite = request["levels"], request["overwrite"]
    splits = dict.fromkeys(request["splits"])
    sources = [open_source(request["data"], split) for split in splits]  # before the slow model
    sources = [with_views(one, request) if one.split == request["views_split"] else one for one in sources]
    settled = request.get("settled")
    works, wanted = [], []
    for number, (model, weights) in enumerate(request["pairs"]):
        options = request | {"model": model, "weights": weights}
        work = open_extraction(options if settled is None else options | {"precision": settled[number][0]}, on_event)
        chosen = work.backbone.levels if levels == "every" else choose_levels(levels, work.backbone.depth)
        wanted.append([(level, kind) for level in chosen for kind in split_names(request["kinds"])])
        works.append(work if settled is None else replace(work, parity=settled[number][1]))
    if only_plan:
        works = [work.settled(sources, arrays, overwrite=overwrite) for work, arrays in zip(works, wanted, strict=True)]
    elif settled is None:
        works = settle_within_room(works, sources, wanted, overwrite=overwrite, worker=worker)
    return _extractions(works, sources, wanted, overwrite=overwrite, worker=worker)


def settle_within_room(
    works: Sequence[RequestedExtraction],
    sources: Sequence[ImageSource],
    wanted: Sequence[Sequence[tuple[str, str]]],
    *,
    overwrite: bool = False,
    worker: Worker | None = None,
) -> list[RequestedExtraction]:
    """Refuse what the disk cannot take, and look at the first images of what it can.

    A float16 model may become a bfloat16 one at that look, with another store, perhaps complete: it is judged only then.

    Args:
        works: one a model.
        sources: the splits.
        wanted: the (level, kind) pairs of each model.

    Raises:
        RequestError: the disk is too small, or cannot be written.
    """
    how: dict[str, Any] = {"overwrite": overwrite, "worker": worker}
    certain = [work.backbone.precision != "float16" for work in works]
    _check_room(list(compress(works, certain)), sources, list(compress(wanted, certain)), **how)
    works = [work.settled(sources, arrays, overwrite=overwrite) for work, arrays in zip(works, wanted, strict=True)]
    if not all(certain):
        _check_room(works, sources, wanted, **how)
    return works


def _check_room(
    works: Sequence[RequestedExtraction],
    sources: Sequence[ImageSource],
    wanted: Sequence[Sequence[tuple[str, str]]],
    **how: Any,
) -> None:
    if works:
        prepared = _extractions(works, sources, wanted, **how)
        forecasts = [forecast(one, source) for source, extractions in prepared for one in extractions]
        check_disk_space(works[0].options["cache_root"], forecasts)


def _extractions(
    works: Sequence[RequestedExtraction],
    sources: Sequence[ImageSource],
    wanted: Sequence[Sequence[tuple[str, str]]],
    *,
    overwrite: bool,
    worker: Worker | None,
) -> list[tuple[ImageSource, list[Extraction]]]:
    return [
        (
            source,
            [
                work.extraction(source, arrays, overwrite=overwrite, worker=worker)
                for work, arrays in zip(works, wanted, strict=True)
            ],
        )
        for source in sources
    ]


def prepare_shares(request: dict[str, Any], on_event: OnEvent) -> tuple[dict[str, Any], list[Path]]:
    """What is done once before several processes share the work of `layerbank extract`: what is wrong with the request is told,
    the first images are looked at, a store that is to be made anew is.

    Returns:
        The request for `extract_share`, and the stores.
    """
    prepared = prepare(request, on_event, None)
    if request["overwrite"]:
        for source, extractions in prepared:
            begin(extractions, source, on_event=on_event)
    stores = _stores(prepared)
    return request | {"overwrite": False, "settled": _what_was_settled(prepared), "stores": stores}, stores


def _what_was_settled(prepared: list[tuple[ImageSource, list[Extraction]]]) -> list[tuple[str, dict[str, Any]]]:
    """Of each model its precision, and what was measured of each split: for processes that need not look again."""
    return [
        (
            extraction.backbone.precision,
            {source.split: extractions[number].parity for source, extractions in prepared},
        )
        for number, extraction in enumerate(prepared[0][1])
    ]


def extract_share(request: dict[str, Any], worker: Worker, on_event: OnEvent) -> None:
    """What one of several processes does of `layerbank extract`.

    Raises:
        RequestError: on this machine the same names are other weights or other images, which would fill a store of their own.
    """
    request = request | {"device": device_of_worker(request["device"], worker.index)}
    prepared = prepare(request, on_event, worker)
    if others := [ours for ours, theirs in zip(_stores(prepared), request["stores"], strict=True) if ours != theirs]:
        raise RequestError(
            where=f"worker {worker} on {socket.gethostname()}",
            expected=f"the weights and images of the others, whose stores are {', '.join(map(str, request['stores']))}",
            got=f"what belongs into {', '.join(map(str, others))}",
            todo="Give all machines the same files; --weights FILE and --data by names that mean the same on each.",
        )
    for source, extractions in prepared:
        extract_together(extractions, source, on_event=on_event)


def _stores(prepared: list[tuple[ImageSource, list[Extraction]]]) -> list[Path]:
    return [one.store for _, extractions in prepared for one in extractions]


def with_views(source: ImageSource, options: dict[str, Any]) -> ImageSource:
    """The source with the views that the options ask for, a row each."""
    if not options["views"]:
        return source
    rule = ViewRule(num_views=options["views"], min_scale=options["view_scale"], flip=options["view_flip"])
    return ViewedSource(source, rule)


def open_extraction(options: dict[str, Any], on_event: OnEvent) -> RequestedExtraction:
    """Open the model of a command line; errors name the option."""
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
    options = options | {"workers": num_workers, "storage_dtype": storage_dtype}
    return RequestedExtraction(request.open(device), request, options, on_event)


def split_names(text: str) -> tuple[str, ...]:
    """Names with commas between, each once.

    >>> split_names("cls, ap,cls")
    ('cls', 'ap')
    """
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
