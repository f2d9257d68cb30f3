"""Extraction as a command requests it: open data and models, hash new images, compare the first ones with float32, check the disk.

Knows nothing of terminals. A job pickles, so that worker processes get the same one.
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

from layerbank.cache import ModelStores, StoreForecast, Worker, known_hashes

from ..data.classes import look_alikes, uneven_classes
from ..data.image_set import ImageSet, identify, images_with_two_labels
from ..data.pixels import USUAL, PixelRule, recorded_rule
from ..data.sources import ImageSource, open_source
from ..data.splits.split_rows import SplitRows, name_of
from ..data.views import ViewRule
from ..errors import RequestError
from ..events import FilesLeftOut, LookAlikeClasses, OnEvent, TwoLabels, ignore
from ..extraction.decoding import start_worker_server
from ..extraction.disk_space import check_disk_space
from ..extraction.extract import ExtractConfig, Extraction, begin, extract_together, forecasts
from ..extraction.parity import settle
from ..extraction.ranks import device_of_worker
from ..models.backbone import Backbone
from ..models.families import RANDOM
from ..models.layers import choose_levels
from ..models.request import (
    ModelRequest,
    choose_device,
    choose_precision,
    choose_storage_dtype,
    choose_tap,
    choose_workers,
)
from ..models.trust import CodePermission
from ..outputs import check_folder
from ..probing.tokens.split_tokens import SplitRequest, request_tokens
from .job import ExtractJob, Job, ProbeJob

Prepared = list[tuple[SplitRows, list[Extraction]]]
"""The extractions of each split, one a model."""

Settlement = tuple[str, Mapping[str, Mapping[Path, Mapping[str, Any]]]]
"""Precision of a model, and split -> store -> parity of its first images."""


@dataclass(frozen=True)
class RequestedExtraction:
    """One model, the data and the settings of an extraction.

    Attributes:
        backbone: the model, opened.
        request: how it was opened.
        data: URI of the data.
        cache_root: folder of all stores.
        config: what to store, and how.
        pixels: how the images become pixels.
        parity_threshold: minimum cosine similarity of a token to a float32 run; None accepts any.
        parity: split -> store -> parity measured on its first images.
        on_event: called with every event.
        stores: the stores of the model, if they were read just now and nothing was written since; None reads them.
    """

    backbone: Backbone
    request: ModelRequest
    data: str
    cache_root: Path
    config: ExtractConfig
    pixels: PixelRule = USUAL
    parity_threshold: float | None = None
    parity: Mapping[str, Mapping[Path, Mapping[str, Any]]] = field(default_factory=dict)
    on_event: OnEvent = ignore
    stores: ModelStores | None = None

    def settled(self, splits: Sequence[SplitRows]) -> RequestedExtraction:
        """Compare the first images of each split with float32; the precision may change, see `parity.settle`."""
        found = settle(
            self.request,
            self.backbone,
            splits,
            self.config,
            self.cache_root,
            threshold=self.parity_threshold,
            stores=self.stores,
            on_event=self.on_event,
        )
        return replace(self, backbone=found.backbone, request=found.request, parity=found.parity, stores=found.stores)

    def tokens(self, rows: SplitRows) -> SplitRequest:
        """Return the request for the tokens of a split, which need not exist yet."""
        model, arrays = self.extraction(rows).model, self.config.arrays
        return request_tokens(self.cache_root, model, self.backbone.tap, rows, arrays, self.stores)

    def extract(self, splits: Sequence[SplitRows]) -> list[SplitRequest]:
        """Compute what the cache lacks of some splits."""
        work = self
        for rows in splits:
            if extract_together([work.extraction(rows)], rows, on_event=self.on_event):
                work = replace(work, stores=None)
        return [work.tokens(rows) for rows in splits]

    def extraction(self, rows: SplitRows) -> Extraction:
        """Return the extraction of one split."""
        return Extraction(
            backbone=self.backbone,
            config=self.config,
            cache_root=self.cache_root,
            request=self.description(rows),
            parity=self.parity.get(rows.source.split, {}),
            stores=self.stores,
        )

    def description(self, rows: SplitRows | None = None) -> dict[str, Any]:
        """Return what `cache repair` and `predict` need to open the same model on the same data, or rows, again."""
        split = {"split": rows.source.split} if rows else {}
        views = {"views": rows.rule.to_dict()} if rows and rows.rule else {}
        pixels = {"pixels": self.pixels.to_dict()}
        depth = {"depth": self.backbone.depth}
        return {"model": self.request.to_dict(), "data": self.data} | depth | pixels | split | views


def open_rows(
    source: ImageSource,
    cache_root: Path,
    *,
    rule: ViewRule | None = None,
    trust_files: bool = False,
    may_hash: bool = True,
    on_event: OnEvent = ignore,
) -> SplitRows:
    """Return the rows of a source, its new images hashed.

    Args:
        source: the images of a split.
        cache_root: folder of all stores and of the content index.
        rule: how augmented views are drawn; None for centre views alone.
        trust_files: take hashes from stores of the same data set and split with images of the same names and sizes.
        may_hash: False reads no image: those that the content index does not know count as missing.
        on_event: called with every event.
    """
    trust = partial(known_hashes, cache_root, name_of(source), believe=partial(_has_pixels_of, source))
    images = identify(source, cache_root, may_hash=may_hash, trusted=trust if trust_files else None, on_event=on_event)
    if not may_hash:
        images = _with_stand_ins(images, source.ids)
    return SplitRows(source=source, images=images, rule=rule)


def _has_pixels_of(source: ImageSource, attributes: Mapping[str, Any]) -> bool:
    """Whether the images of a store became pixels as those of a source do; `attributes` are what the store records."""
    try:
        return recorded_rule(attributes["request"]) == source.pixel_rule
    except (KeyError, TypeError):
        return False


def report_data(rows: SplitRows, on_event: OnEvent) -> None:
    """Report files that are no images, classes whose names look alike, and images under two labels."""
    source = rows.source
    names = {"dataset": source.name, "split": source.split}
    if source.left_out:
        on_event(FilesLeftOut(**names, counts=dict(source.left_out)))
    if one_name := look_alikes(source):
        on_event(LookAlikeClasses(**names, names=one_name))
    alike = images_with_two_labels(rows.images.hashes, source.labels)
    if len(alike):
        on_event(TwoLabels(**names, num_images=len(alike), first=source.ids[alike[0]]))


def _with_stand_ins(images: ImageSet, ids: Sequence[str]) -> ImageSet:
    """Give images that were not hashed a hash that no store has: they count as missing, not as unreadable."""
    hashes = images.hashes.copy()
    unknown = np.flatnonzero(~images.is_known)
    hashes[unknown] = [xxh3_64_intdigest(f"not hashed: {ids[row]}".encode()) or 1 for row in unknown.tolist()]
    return replace(images, hashes=hashes)


def check_job(job: Job) -> str:
    """Refuse what can be known to be wrong before data and models are opened; return the device.

    Raises:
        RequestError: a device that is not there, an unknown dtype, two taps, or a folder that cannot hold stores.
    """
    device = choose_device(job.device)
    choose_storage_dtype(job.storage_dtype)
    choose_tap(job.tap, job.tap_module)
    check_folder(job.cache_root, "--cache", is_written=False)
    return device


def prepare(
    job: ExtractJob,
    on_event: OnEvent,
    worker: Worker | None,
    *,
    settled: Sequence[Settlement] | None = None,
    only_plan: bool = False,
) -> Prepared:
    """Open the data and the models of a job.

    Args:
        job: what to extract.
        on_event: called with every event.
        worker: which of several workers of the stores this process is.
        settled: precision and parity of each model, if `prepare_shares` has compared the first images.
        only_plan: go on where the disk is too small, and hash no image.

    Raises:
        RequestError: wrong options, or a disk that is too small or cannot be written.
    """
    check_job(job)
    if job.rule and job.views_split not in job.splits:
        raise RequestError("jobs.views_of_another_split", split=job.views_split, splits=", ".join(job.splits))
    opener = partial(open_source, job.data, on_event=on_event, pixels=job.pixels)
    sources = [opener(split) for split in dict.fromkeys(job.splits)]  # before the slow model
    is_first = settled is None  # of the processes of this command: what is said of the data is said once
    for other in sources[1:] if is_first else ():
        if uneven := uneven_classes(sources[0], other):
            on_event(uneven)
    requested = []
    for number, (model, weights) in enumerate(job.models):
        precision, parity = (job.precision, {}) if settled is None else settled[number]
        asked = replace(job, precision=precision)  # type: ignore[arg-type]  # it is a name that a job had
        request, backbone = open_model(asked, model, weights, on_event if is_first else ignore)
        chosen = backbone.levels if job.levels == "every" else choose_levels(job.levels, backbone.depth)
        arrays = [(level, kind) for level in chosen for kind in split_names(job.kinds)]
        pixels = sources[0].pixel_rule
        one = request_extraction(
            job, request, backbone, arrays, pixels, on_event, overwrite=job.overwrite, worker=worker
        )
        requested.append(replace(one, parity=parity))
    splits = [
        open_rows(
            source,
            job.cache_root,
            rule=job.rule if source.split == job.views_split else None,
            trust_files=job.trust_files,
            may_hash=not only_plan,
            on_event=on_event,
        )
        for source in sources
    ]
    for rows in splits if is_first else ():
        report_data(rows, on_event)
    if only_plan:
        requested = [one.settled(splits) for one in requested]
    elif settled is None:
        requested = settle_and_check_disk(requested, splits)
    requested = [replace(one, stores=None) for one in requested]  # a split may have rows that one before it writes
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
    requested = [replace(one, stores=one.extraction(splits[0]).read_stores()) for one in requested]
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


@dataclass(frozen=True)
class Share:
    """The part of a job that every one of several workers does.

    Attributes:
        job: the job; nothing is made anew any more.
        settled: precision and parity of each model.
        identities: name and digest of each model and of the images of each split.
        folders: the folder of the stores of each model.
    """

    job: ExtractJob
    settled: tuple[Settlement, ...]
    identities: tuple[tuple[str, str], ...]
    folders: tuple[str, ...]


def prepare_shares(job: ExtractJob, on_event: OnEvent) -> Share:
    """Do once what several workers need: check the job, compare the first images, begin anew what is to be overwritten."""
    prepared = prepare(job, on_event, None)
    for rows, extractions in prepared if job.overwrite else ():
        begin(extractions, rows)
    settled = tuple(
        (one.backbone.precision, {rows.source.split: of_split[number].parity or {} for rows, of_split in prepared})
        for number, one in enumerate(prepared[0][1])
    )
    return Share(replace(job, overwrite=False), settled, tuple(_identities(prepared)), tuple(folders_of(prepared)))


def extract_share(share: Share, worker: Worker, on_event: OnEvent) -> None:
    """Do the part of one of several workers.

    Raises:
        RequestError: on this machine the same names are other weights or other images, which would fill other stores.
    """
    job = replace(share.job, device=device_of_worker(share.job.device, worker.index))
    prepared = prepare(job, on_event, worker, settled=share.settled)
    pairs = zip(_identities(prepared), share.identities, strict=True)
    if others := [here for here, wanted in pairs if here != wanted]:
        raise RequestError(
            "jobs.worker_has_other_files",
            worker=worker,
            node=socket.gethostname(),
            stores=", ".join(f"{name} {digest[:8]}" for name, digest in share.identities),
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


def open_model(job: Job, model: str, weights: str | None, on_event: OnEvent = ignore) -> tuple[ModelRequest, Backbone]:
    """Open a model of a job.

    Raises:
        RequestError: wrong options; errors name the option.
    """
    device = choose_device(job.device)
    if choose_workers(job.workers, device):
        start_worker_server()
    request = request_of(job, model, weights, device)
    return request, request.open(device, on_event)


def request_of(job: Job, model: str, weights: str | None, device: str) -> ModelRequest:
    """The request for a model of a job."""
    return ModelRequest(
        model=model,
        weights=weights,
        tap=choose_tap(job.tap, job.tap_module),
        image_size=job.image_size,
        precision=choose_precision(job.precision, device),
        seed=job.weights_seed,
        weights_key=None if weights in (None, RANDOM) else job.weights_key,
        permission=CodePermission(job.allow_code),
    )


def request_extraction(
    job: ExtractJob | ProbeJob,
    request: ModelRequest,
    backbone: Backbone,
    arrays: Sequence[tuple[str, str]],
    pixels: PixelRule,
    on_event: OnEvent,
    *,
    overwrite: bool = False,
    worker: Worker | None = None,
) -> RequestedExtraction:
    """Return the extraction of a model that a job describes.

    Args:
        job: the job.
        request, backbone: what `open_model` returned.
        arrays: the (level, kind) pairs to store.
        pixels: how the images become pixels.
        on_event: called with every event.
        overwrite: whether the stores of these images alone are made anew.
        worker: which of several workers of the stores this process is.
    """
    config = ExtractConfig(
        arrays=tuple(arrays),
        storage_dtype=choose_storage_dtype(job.storage_dtype),
        batch_size=job.batch_size,
        num_workers=choose_workers(job.workers, str(backbone.device)),
        on_bad_image=job.on_bad_image,
        compile=job.compile_model,
        overwrite=overwrite,
        worker=worker,
    )
    return RequestedExtraction(
        backbone,
        request,
        job.data,
        job.cache_root,
        config,
        pixels,
        parity_threshold=job.parity_threshold,
        on_event=on_event,
    )


def split_names(text: str) -> tuple[str, ...]:
    """Split names at commas, and keep each once.

    >>> split_names("cls, ap,cls")
    ('cls', 'ap')
    """
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
