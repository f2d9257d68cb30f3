"""Probes on stores alone, without images and without a model: a store has the tokens of its rows, and their targets beside it.

`layerbank probe --store` does this. Rows in augmented views are left out. The depth of the model is what the store records; of one
that does not and has some of the levels only, those probes are accepted whose levels do not depend on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from layerbank.cache import LABEL, ModelStores, StoreFiles, list_targets, read_target

from ..data.classes import labels_by_name, uneven_classes
from ..data.image_set import ImageSet
from ..data.patterns import parse_options
from ..data.splits.split_record import SplitRecord
from ..data.tables.split_column import parse_held_out, rows_held_out
from ..errors import RequestError
from ..events import OnEvent, ignore
from ..models.layers import FINAL
from ..models.request import choose_device
from ..outputs import check_folder
from ..probing.probe import run_folder
from ..probing.probe_sizes import check_heads, leave_out_unfit
from ..probing.probe_spec import ProbeSpec, check_names, parse_probes
from ..probing.tokens.split_tokens import SplitRequest
from .cases import DIVISION
from .job import TrainingJob
from .probe import Training, prepare_trainings, protocol_of, report_shared_images

OPTIONS = ("split", "seed", "target")


@dataclass(frozen=True, kw_only=True)
class StoreProbeJob(TrainingJob):
    """`layerbank probe --store`.

    Attributes:
        store: a store of training images, `PATH?target=NAME`; `PATH?split=0.2&seed=0` holds a share of its rows out to test on.
        test_store: a store of test images by the same model; None where rows are held out.
    """

    store: str
    test_store: str | None = None

    kind: ClassVar[str] = "store probe"


@dataclass(frozen=True, eq=False)
class _OpenStore:
    """A store, the rows that are used, and their targets."""

    files: StoreFiles
    record: SplitRecord
    held_out: Any

    def request(self, record: SplitRecord, arrays: tuple[tuple[str, str], ...]) -> SplitRequest:
        root, model = self.files.path.parent.parent, self.files.header.spec.model
        stores = ModelStores(root, model)
        stores.stores = [one for one in stores.stores if one.path == self.files.path]
        return SplitRequest(
            cache_root=root, model=model, tap=self.tap, record=record, rule=None, arrays=arrays, stores=stores
        )

    @property
    def tap(self) -> str:
        """The only tap; of several the request's."""
        taps = sorted({one.tap for one in self.files.header.complete_arrays} - {""})
        recorded = _request_of(self.files).get("model", {}).get("tap")
        return recorded if recorded in taps or not taps else taps[0]


def prepare_store_probes(job: StoreProbeJob, *, on_event: OnEvent = ignore) -> tuple[Path, Iterator[Training]]:
    """Prepare the training of probes on the tokens and targets of stores. They are divided by their addresses alone.

    Returns:
        The folder of the results, and the trainings, to be called one after the other.

    Raises:
        RequestError: no such store or target, stores of different models, no test rows, a probe whose levels the store lacks, or a
            probe that depends on a depth that is not known.
        CacheError: a store cannot be read.
    """
    _refuse_division(job)
    device = choose_device(job.device)
    check_folder(job.runs_root, "--runs")
    protocol = protocol_of(job, device)
    check_names(job.probes)
    train = _open(job.store, job.train_split)
    if job.test_store is None:
        test, (of_train, of_test) = train, _held_out(job, train)
    else:
        test = _open(job.test_store, job.test_split)
        of_train, of_test = train.record, test.record
        _require_one_model(train.files, test.files)
    of_train, of_test = (record.with_task(job.task) for record in (of_train, of_test))
    labels = labels_by_name(of_train, of_test)
    of_test = replace(of_test, labels=labels, class_names=of_train.class_names)
    if of_train.class_names and (uneven := uneven_classes(of_train, of_test)):
        on_event(uneven)
    report_shared_images(of_train, of_test, on_event)
    named = _probes(job, train.files)
    arrays = tuple(dict.fromkeys(array for one in named for array in one.arrays))
    wanted, tested = (
        store.request(record, arrays).asked_for(job.metric, job.class_weights)
        for store, record in ((train, of_train), (test, of_test))
    )
    config = {name: value for name, value in _request_of(train.files).items() if name not in ("split", "views")}
    return run_folder(job.runs_root, wanted), prepare_trainings(
        wanted,
        tested,
        named,
        [replace(protocol, seed=seed) for seed in job.seeds],
        job.runs_root,
        config=config,
        device=_torch_device(device),
        retrain=job.retrain,
        verify=job.may_verify,
        memory=job.memory,
        on_event=on_event,
    )


def _refuse_division(job: StoreProbeJob) -> None:
    """Raise RequestError for a field that divides the images of a data set, or asks something else of them."""
    defaults = {field.name: field.default for field in fields(TrainingJob)}
    for name, option in DIVISION.items():
        if getattr(job, name) != defaults[name]:
            raise RequestError("jobs.store_or_data", option=option)


def _torch_device(device: str) -> Any:
    import torch

    return torch.device(device)


def _open(text: str, split: str) -> _OpenStore:
    path, options = parse_options("store", text, OPTIONS)
    files = StoreFiles.read(path)
    target = options.get("target", LABEL)
    if target not in list_targets(files.path):
        names = ", ".join(list_targets(files.path)) or "none"
        raise RequestError("jobs.store_without_target", store=path, target=target, names=names)
    found = read_target(files.path, target, num_rows=files.header.spec.num_rows)
    if found.values.ndim > 1:
        raise RequestError("jobs.target_of_columns", store=path, target=target, count=found.values.shape[1])
    views = files.rows.views
    rows = np.arange(len(files.rows)) if views is None else np.flatnonzero(views == 0)
    hashes = files.rows.hashes[rows]
    record = SplitRecord(
        dataset=files.header.spec.name,
        split=split,
        ids=[files.sample_ids[row] for row in rows.tolist()],
        labels=found.values[rows],
        class_names=list(found.class_names),
        images=ImageSet(hashes, None, np.ones(len(rows), dtype=np.bool_), keeps_order=True),
        task=found.type,
    )
    return _OpenStore(files, record, parse_held_out(options, f"store:{text}", has_splits=False, has_columns=False))


def _held_out(job: StoreProbeJob, train: _OpenStore) -> tuple[SplitRecord, SplitRecord]:
    """The rows to train on, and those that are held out: a share of each class."""
    if train.held_out is None:
        raise RequestError("jobs.no_test_rows", store=job.store)
    record = train.record
    strata = record.labels.tolist() if record.class_names else [0] * len(record)
    parts = []
    for split in ("train", "test"):
        rows = rows_held_out(record.ids, strata, split, train.held_out, data=f"store:{job.store}")
        images = replace(record.images, hashes=record.images.hashes[rows], is_known=np.ones(len(rows), dtype=np.bool_))
        ids = [record.ids[row] for row in rows.tolist()]
        parts.append(replace(record, split=split, ids=ids, labels=record.labels[rows], images=images))
    return parts[0], parts[1]


def _require_one_model(train: StoreFiles, test: StoreFiles) -> None:
    if differences := train.header.spec.model.difference(test.header.spec.model):
        raise RequestError(
            "jobs.stores_of_two_models",
            train=train.path,
            test=test.path,
            differences="; ".join(map(str, differences)),
        )


def _request_of(files: StoreFiles) -> dict[str, Any]:
    request = files.header.attributes.get("request")
    return dict(request) if isinstance(request, dict) else {}


def _probes(job: StoreProbeJob, files: StoreFiles) -> list[ProbeSpec]:
    """The probes of a job, whose levels and kinds the store has.

    Raises:
        RequestError: an unknown name, a level or kind that is not there, or a depth that is not known.
    """
    shapes = {(one.level, one.kind): one.row_shape for one in files.header.complete_arrays}
    blocks = sorted({int(level.removeprefix("block.")) for level, _ in shapes if level != FINAL})
    recorded = _request_of(files).get("depth")
    depth = recorded if isinstance(recorded, int) and recorded > max(blocks, default=-1) else len(blocks)
    is_known = depth == recorded or blocks == list(range(len(blocks))) != []

    def parse(some: int) -> list[ProbeSpec]:
        return parse_probes(list(job.probes), some, num_heads=job.num_heads, reference_quirks=job.reference_quirks)

    def row_shape(level: str, kind: str) -> tuple[int, ...]:
        if (level, kind) not in shapes:
            present = ", ".join(f"{one}/{kind}" for one, kind in shapes)
            raise RequestError("jobs.store_lacks_array", store=files.path, level=level, kind=kind, present=present)
        return shapes[level, kind]

    if not is_known:
        depth = max(blocks, default=0) + 1
        for one, other in zip(parse(depth), parse(depth + 8), strict=False):
            if [each.arrays for each in one.family] != [each.arrays for each in other.family]:
                raise RequestError("jobs.unknown_depth", store=files.path, probe=one.name)
    named: Sequence[ProbeSpec] = leave_out_unfit(parse(depth), row_shape)
    for level, kind in (array for one in named for array in one.arrays):
        row_shape(level, kind)
    check_heads(named, row_shape)
    return list(named)
