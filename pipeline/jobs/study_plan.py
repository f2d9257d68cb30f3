"""Plan a study before it does anything: units, images, trainings, bytes, and with --calibrate hours.

Models are built without weights, and data sets are opened where they lie; of a data set of the catalogue that is not here the
training images are known, the test images are not. Stores and results that exist are not considered, because the names of stores
need the weights: the plan is that of a study from nothing. Hours come from a short calibration of models and probes on this
machine (`planning/calibrate_study.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from layerbank.cache import CacheError, storage_dtype_of
from layerbank.probes import HEADS, TrainingProtocol, first_duplicates, plan_batches, resolve_compute

from ..data.catalogue import find_data, find_entry
from ..data.image_set import identify
from ..errors import LayerbankError, RequestError, WorkError
from ..models.families import models_with_code
from ..models.layers import unknown_level
from ..models.listing import open_meta_tower
from ..models.request import choose_device, choose_tap
from ..models.taps import kind_shape
from ..models.tower import measure_widths
from ..planning.calibrate_study import image_seconds, step_seconds
from ..probing.probe_sizes import RowShape, head_of, token_shape
from ..probing.probe_spec import ProbeSpec, SmallestLevels, TopSettings
from ..quantities import duration
from .extract import request_of
from .job import StudyJob
from .probe import protocol_of
from .recipe import check_study
from .units import open_data, permission_of, probes_that_fit

PLAN_COLUMNS = ("model", "data set", "images", "trainings", "tokens", "time", "remark")


@dataclass(frozen=True, kw_only=True)
class PlannedUnit:
    """One model on one data set.

    Attributes:
        model, dataset: as the study names them.
        num_train, num_test: images; None if unknown before the data are here.
        num_trainings: settings of all probes and seeds, without duplicate settings, and the final training of each.
        forward_s, training_s: seconds that images and probes would take on this machine; None if not calibrated.
        size_bytes: tokens of the splits that are known; None if neither the model nor the data are.
        problems: what is known to fail.
    """

    model: str
    dataset: str
    num_train: int | None
    num_test: int | None
    num_trainings: int
    forward_s: float | None
    training_s: float | None
    size_bytes: int | None
    problems: tuple[str, ...]

    @property
    def seconds(self) -> float | None:
        """Seconds in all; None if not calibrated, or if the training images are unknown."""
        return None if self.forward_s is None or self.training_s is None else self.forward_s + self.training_s


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """Images of a split; `hashes`: [N] their content hashes as far as they are known, 0 elsewhere; None if they are not here."""

    num_images: int
    hashes: NDArray[np.uint64] | None = None


@dataclass(frozen=True, kw_only=True)
class Data:
    """The splits and classes of a data set as far as they are known: all splits, the training images alone, or nothing.

    Attributes:
        num_cases: targets, subsets and folds that are trained one after the other.
    """

    splits: tuple[Split, ...] = ()
    num_classes: int | None = None
    num_cases: int = 1
    problems: tuple[str, ...] = ()


def plan_study(job: StudyJob, *, calibrate: bool = False) -> list[PlannedUnit]:
    """Plan every unit of a study, in its order; nothing is downloaded or written.

    Args:
        job: the study.
        calibrate: measure how long it would take on this machine.

    Raises:
        RequestError: a model whose code is not allowed to run.
    """
    check_study(job)
    models_with_code(job.models, permission_of(job))
    found = {dataset: find_splits(job, dataset) for dataset in job.data}
    device = choose_device(job.device) if calibrate else job.device  # elsewhere, perhaps
    protocol = protocol_of(job)
    units = []
    for model in job.models:
        problems: list[str] = []
        probes, row_shape = find_probes(job, model, problems)
        image_bytes = sum(bytes_of_arrays(probes, row_shape, job.storage_dtype).values()) if row_shape else None
        trainings = [(one, num_trainings(one, protocol, row_shape)) for one in probes] if row_shape else []
        image_s = None
        if calibrate and probes:
            arrays = list(dict.fromkeys(array for one in probes for array in one.arrays))
            image_s = image_seconds(request_of(job, model, None, device), arrays, device)
        for dataset, data in found.items():
            num_train, num_test = (*(split.num_images for split in data.splits), None, None)[:2]
            num_images = sum(split.num_images for split in data.splits) + (num_train or 0) * job.views
            training_s = None
            if image_s is not None and row_shape and num_train and data.num_classes:
                of_seed = [
                    count * training_seconds(one, row_shape, protocol, num_train, data.num_classes, device)
                    for one, count in trainings
                ]
                training_s = data.num_cases * len(job.seeds) * sum(of_seed)
            units.append(
                PlannedUnit(
                    model=model,
                    dataset=dataset,
                    num_train=num_train,
                    num_test=num_test,
                    num_trainings=sum(count for _, count in trainings) * len(job.seeds) * data.num_cases,
                    forward_s=None if image_s is None else num_images * image_s,
                    training_s=training_s,
                    size_bytes=num_images * image_bytes if num_images and image_bytes else None,
                    problems=(*problems, *data.problems),
                )
            )
    return units


def plan_table(units: Sequence[PlannedUnit]) -> list[list[str]]:
    """Return the lines under PLAN_COLUMNS."""
    return [
        [
            unit.model,
            unit.dataset,
            " + ".join("?" if count is None else f"{count:,}" for count in (unit.num_train, unit.num_test)),
            f"{unit.num_trainings:,}",
            "?" if unit.size_bytes is None else f"{unit.size_bytes / 1e9:,.3f} GB",
            "?" if unit.seconds is None else duration(unit.seconds),
            "; ".join(unit.problems),
        ]
        for unit in units
    ]


def plan_title(units: Sequence[PlannedUnit]) -> str:
    """Return one line with the sums."""
    num_images = sum((unit.num_train or 0) + (unit.num_test or 0) for unit in units)
    size_bytes = sum(unit.size_bytes or 0 for unit in units)
    trainings = sum(unit.num_trainings for unit in units)
    known = [unit.seconds for unit in units if unit.seconds is not None]
    hours = f"; estimated for this machine, one process: {duration(sum(known))}" if known else "; hours: --calibrate"
    unknown = ", without what is not known (?)" if any(unit.num_test is None for unit in units) else ""
    return (
        f"{len(units)} units from nothing: {num_images:,} images through a model, {trainings:,} trainings, "
        f"{size_bytes / 1e9:,.2f} GB of tokens{hours}{unknown}"
    )


def find_splits(job: StudyJob, dataset: str) -> Data:
    """Look for a data set of a study; nothing is downloaded."""
    try:
        _, cases = open_data(replace(job, fetch=False), dataset)
    except (LayerbankError, CacheError) as error:
        entry = None if ":" in dataset else find_entry(dataset)
        if entry is None:
            return Data(problems=(f"{error.where}: {error.got}",))
        downloads = job.fetch and find_data(entry, job.data_root) is None
        problem = "to be downloaded" if downloads else f"{error.where}: {error.got}"
        train = Split(num_images=entry.num_train)
        return Data(splits=(train,), num_classes=entry.num_classes, problems=(problem,))
    known = [identify(source, job.cache_root, may_hash=False).hashes for source in cases.sources]
    splits = tuple(Split(num_images=len(hashes), hashes=hashes) for hashes in known)
    num_classes = len(cases.cases[0].train.class_names)
    return Data(splits=splits, num_classes=num_classes, num_cases=len(cases.cases))


def find_probes(job: StudyJob, model: str, problems: list[str]) -> tuple[list[ProbeSpec], RowShape | None]:
    """Return the probes that are trained on a model, with those they are derived from, and the shapes of its tokens.

    Whatever does not fit is added to the problems.
    """
    try:
        tap = choose_tap(job.tap, job.tap_module)
        tower = open_meta_tower(model, tap=tap, image_size=job.image_size, permission=permission_of(job))
        widths = measure_widths(tower, tap)
    except (RequestError, WorkError) as error:
        problems.append(f"{error.where}: {error.got}")
        return [], None

    def row_shape(level: str, kind: str) -> tuple[int, ...]:
        if level not in widths:
            raise unknown_level(level, list(widths))
        return (*kind_shape(kind, tower.layout), widths[level])

    fitting = probes_that_fit(
        job, len(tower.blocks), row_shape, lambda name, error: problems.append(f"{name} does not fit")
    )
    with_bases = [one for probe in fitting for one in ((probe.derived.base, probe) if probe.derived else (probe,))]
    return [one for number, one in enumerate(with_bases) if one not in with_bases[:number]], row_shape


def bytes_of_arrays(probes: Sequence[ProbeSpec], row_shape: RowShape, storage_dtype: str) -> dict[tuple[str, str], int]:
    """Return the (level, kind) pairs that probes read -> bytes of the tokens of an image."""
    bytes_of = {"float16": 2, "bfloat16": 2, "float32": 4}
    return {
        (level, kind): bytes_of[storage_dtype_of(storage_dtype, kind)] * prod(row_shape(level, kind))
        for one in probes
        for level, kind in one.arrays
    }


def num_trainings(named: ProbeSpec, protocol: TrainingProtocol, row_shape: RowShape) -> int:
    """Count the trainings of one seed: the grid without duplicate settings, or what a derived probe trains, and the final one."""
    if HEADS[named.head].is_solved:
        return 0  # nothing is trained
    changed = _protocol_of(named, protocol)
    grid = sum(
        len(set(first_duplicates(changed.settings(head_of(one, token_shape(one, row_shape)[0])))))
        for one in named.family
    )
    match named.derived:
        case SmallestLevels():
            return len(named.levels) * (len(named.levels) + 1) // 2 + 1
        case TopSettings(num_members=num_members):
            return 2 * min(num_members, grid)
        case _:
            return grid + 1


def training_seconds(
    named: ProbeSpec, row_shape: RowShape, protocol: TrainingProtocol, num_train: int, num_classes: int, device: str
) -> float:
    """Return the seconds of one training among those of the grid."""
    if HEADS[named.head].is_solved:
        return 0.0
    changed = _protocol_of(named, protocol)
    num_kept = max(round((1 - changed.validation_fraction) * num_train), 2)
    batches = plan_batches(num_kept, wish=changed.batch_size, epochs=changed.epochs, min_steps=changed.min_steps)
    changed = replace(changed, batch_size=batches.batch_size, compute=resolve_compute(changed.compute, device))
    shape = token_shape(named.family[-1], row_shape)
    head = head_of(named.family[-1], shape[0])
    step_s = step_seconds(head, shape, num_classes, changed, device)
    return batches.num_steps * step_s / len(changed.settings(head))


def _protocol_of(named: ProbeSpec, protocol: TrainingProtocol) -> TrainingProtocol:
    return replace(protocol, **named.protocol)  # type: ignore[arg-type]  # checked by TrainingProtocol
