"""A unit of a study: one model on one data set, all probes and seeds. Each is what `layerbank probe` does.

The decisions taken here: a unit needs the job of the study and its own name, which pickle, so any process that sees the same
folders may run it; it goes on from whatever a killed run left in its stores, its sweep journal and its results.jsonl, and writes
its own rows. What cannot be done comes back as data and the rest of the unit goes on; any other exception is a bug.

Knows nothing of other units: `executors/studies.py` decides who runs which, and in what order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from ..data.catalogue import SPLITS, check_size, find_entry, locate_data
from ..errors import LayerbankError, WorkError
from ..events import OnEvent, StudyFailed, StudyUnit, ignore
from ..models.backbone import Backbone
from ..models.request import ModelRequest, choose_device
from ..models.trust import CodePermission
from ..probing.probe_sizes import RowShape, check_heads, leave_out_unfit
from ..probing.probe_spec import ProbeSpec, parse_probes
from ..probing.rows.results import Row
from .cases import Cases, open_cases
from .extract import request_of as request_model
from .job import ProbeJob, StudyJob, TrainingJob
from .probe import prepare_probes, protocol_of

UNIT_ERRORS = (LayerbankError, OSError)  # any other exception is a bug and ends the study


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One model on one data set, as the study names them."""

    model: str
    dataset: str


@dataclass(frozen=True, kw_only=True)
class UnitResult:
    """The outcome of a unit.

    Attributes:
        unit: the unit.
        rows: its rows of results.jsonl, those of earlier runs too, in the order of seeds and probes.
        failures: what could not be done.
    """

    unit: Unit
    rows: tuple[Row, ...]
    failures: tuple[StudyFailed, ...]


def result_of_lost_unit(unit: Unit, reason: str, on_event: OnEvent = ignore) -> UnitResult:
    """The outcome of a unit whose process died: one failure, which is reported."""
    failure = _failure(unit, None, WorkError("jobs.unit_lost", reason=reason))
    on_event(failure)
    return UnitResult(unit=unit, rows=(), failures=(failure,))


class OpenModels:
    """Opens models and keeps the last one: the units of a model stand side by side in a study.

    A model that cannot be opened is not tried again for its next data set.
    """

    def __init__(self) -> None:
        self._last: tuple[ModelRequest, str, Backbone | Exception] | None = None

    def open(self, request: ModelRequest, device: str, on_event: OnEvent = ignore) -> Backbone:
        """The model on its device.

        Raises:
            RequestError, OSError: as `ModelRequest.open`.
        """
        if self._last is None or self._last[:2] != (request, device):
            self._last = None  # before the next one takes its memory
            opened: Backbone | Exception
            try:
                opened = request.open(device, on_event)
            except UNIT_ERRORS as error:
                opened = error
            self._last = (request, device, opened)
        if isinstance(self._last[2], Exception):
            raise self._last[2]
        return self._last[2]


def units_of(job: StudyJob) -> list[Unit]:
    """Every unit of a study, models in the outer loop. Units are independent: they may run in any order, or at the same time."""
    return [Unit(model=model, dataset=dataset) for model in job.models for dataset in job.data]


def run_unit(
    job: StudyJob,
    unit: Unit,
    *,
    num_sharers: int = 1,
    models: OpenModels | None = None,
    on_event: OnEvent = ignore,
) -> UnitResult:
    """Do what is not done of a unit: extract, train, test, write rows.

    Args:
        job: the study.
        unit: one of `units_of(job)`.
        num_sharers: number of processes that run units on this machine at once; each takes its part of the memory.
        models: for a process that runs several units one after the other.
        on_event: called with every event.
    """
    failures: list[StudyFailed] = []

    def fail(name: str | None, error: Exception, seed: int | None = None) -> None:
        failures.append(_failure(unit, name, error, seed))
        on_event(failures[-1])

    on_event(StudyUnit(model=unit.model, dataset=unit.dataset))
    rows: list[Row] = []
    try:
        device = choose_device(job.device)
        protocol_of(job, device)  # before the model; a node need not have what the driver has
        request = request_model(job, unit.model, job.weights.get(unit.model), device)
        backbone = (models or OpenModels()).open(request, device, on_event)
        uri, cases = open_data(job, unit.dataset, on_event)
        _, trainings = prepare_probes(
            probe_job(job, unit, uri),
            cases=cases,
            opened=(request, backbone),
            choose=lambda one, backbone: probes_that_fit(job, backbone.depth, backbone.row_shape, fail),
            fail=fail,
            num_sharers=num_sharers,
            on_event=on_event,
        )
        for training in trainings:
            rows += training()  # rows that were made before an error are kept
    except UNIT_ERRORS as error:
        fail(None, error)
    return UnitResult(unit=unit, rows=tuple(rows), failures=tuple(failures))


def permission_of(job: StudyJob) -> CodePermission:
    """Which models of a study may run code of their own."""
    return CodePermission(job.allow_code, "a study")


def open_data(job: StudyJob, name: str, on_event: OnEvent = ignore) -> tuple[str, Cases]:
    """The URI of a data set of a study, and the cases of its images.

    Raises:
        WorkError: a data set of the catalogue is missing and cannot be fetched.
        RequestError: no such data, or a data set of another size than the study's.
    """
    entry = None if ":" in name else find_entry(name)
    uri = name if entry is None else locate_data(entry, job.data_root, fetch=job.fetch)
    cases = open_cases(job, uri, on_event)
    if entry is not None and [source.split for source in cases.sources] == list(SPLITS):
        train = cases.sources[0]
        check_size(entry, num_train=len(train), num_classes=len(train.class_names))
    return uri, cases


def probes_that_fit(
    job: StudyJob, depth: int, row_shape: RowShape, fail: Callable[[str | None, Exception], None]
) -> list[ProbeSpec]:
    """The probes that a backbone can have; the others fail one by one, such as `linear-cls` of a model without CLS."""
    fitting: dict[str, ProbeSpec] = {}
    for name in job.probes:
        try:
            found = parse_probes(
                [name],
                depth,
                num_heads=job.num_heads,
                reference_quirks=job.reference_quirks,
            )
            found = leave_out_unfit(found, row_shape)
            for level, kind in (array for one in found for array in one.arrays):
                row_shape(level, kind)
            check_heads(found, row_shape)
        except UNIT_ERRORS as error:
            fail(name, error)
        else:
            fitting |= {one.name: one for one in found}
    return list(fitting.values())


def probe_job(job: StudyJob, unit: Unit, uri: str) -> ProbeJob:
    """The job of a unit."""
    shared = {one.name: getattr(job, one.name) for one in fields(TrainingJob)}
    return ProbeJob(model=unit.model, weights=job.weights.get(unit.model), data=uri, **shared)


def _failure(unit: Unit, probe_name: str | None, error: Any, seed: int | None = None) -> StudyFailed:
    if not isinstance(error, LayerbankError):
        error = WorkError("jobs.file_error", file=error.filename or "a file of the study", error=error)
    parts = {part: getattr(error, part) for part in ("where", "expected", "got", "todo")}
    return StudyFailed(model=unit.model, dataset=unit.dataset, probe=probe_name, seed=seed, **parts)
