"""A study: every unit of it (`jobs/units.py`), one after the other in this process, or in the workers of an executor.

The decisions taken here: a study has no state of its own, because stores, journals and results.jsonl say what is done; an executor
runs the units in any order, and their results are put into the order of the job. What could not be done is a row of
RUNS/failures.jsonl; results.jsonl holds results only. failures.jsonl is rewritten at the end of every run: it says what failed in
the last one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from layerbank.cache.atomic_files import replace_file

from ..events import (
    BatchHalved,
    CompileFailed,
    Event,
    ImageSkipped,
    OnEvent,
    PrecisionFellBack,
    StudyFailed,
    StudyUnit,
    StudyUnitAgain,
    StudyUnitFinished,
    TokensOutOfRange,
    UploadFailed,
    ignore,
)
from ..extraction.ranks import device_of_worker
from ..jobs.job import StudyJob
from ..jobs.probe import check_folders, protocol_of
from ..jobs.recipe import check_study
from ..jobs.study_disk_space import report_disk_space
from ..jobs.units import OpenModels, Unit, UnitResult, permission_of, result_of_lost_unit, run_unit, units_of
from ..models.families import models_with_code
from ..models.request import choose_device
from ..probing.rows.results import Row
from ..probing.rows.results_file import FAILURES
from .executor import Done, Executor

# shown of units that run side by side; interleaved progress lines of several units would say nothing
_SHOWN_OF_PARALLEL_UNITS = (
    StudyUnit,
    StudyFailed,
    BatchHalved,
    CompileFailed,
    ImageSkipped,
    PrecisionFellBack,
    TokensOutOfRange,
    UploadFailed,
)
_MODELS = OpenModels()  # of a worker process, from one unit to the next


def run_study(
    job: StudyJob, *, executor: Executor | None = None, on_event: OnEvent = ignore
) -> tuple[list[Row], list[StudyFailed]]:
    """Run all units of a study that are not done.

    Args:
        job: models, data sets, probes, seeds, protocol, folders, device.
        executor: runs the units; None runs them in this process.
        on_event: called with every event.

    Returns:
        Every row of the study, those of earlier runs too, and every failure, in the order of the job.

    Raises:
        RequestError: the job is wrong, or names a model whose code is not allowed to run.
        SettingError: the device on which the units run cannot compute as the protocol says.
    """
    check_study(job)
    job = replace(job, allow_code=models_with_code(job.models, permission_of(job)))
    # what this process has does not matter on a cluster
    device = (executor and executor.device) or choose_device(job.device)
    protocol_of(job, device)
    check_folders(job)
    report_disk_space(job, on_event)
    units = units_of(job)
    results: dict[Unit, UnitResult] = {}
    for result in _run_units(replace(job, device=device), units, executor, on_event):
        results[result.unit] = result
        on_event(
            StudyUnitFinished(
                model=result.unit.model,
                dataset=result.unit.dataset,
                num_rows=len(result.rows),
                num_failures=len(result.failures),
                num_done=len(results),
                num_units=len(units),
            )
        )
    failures = [failure for unit in units for failure in results[unit].failures]
    write_failures(job.runs_root / FAILURES, failures)
    return [row for unit in units for row in results[unit].rows], failures


def _run_units(
    job: StudyJob, units: Sequence[Unit], executor: Executor | None, on_event: OnEvent
) -> Iterator[UnitResult]:
    """Run units in this process, one model in memory at a time, or in any order in the workers of an executor."""
    if executor is None:
        models = OpenModels()
        for unit in units:
            with _ending_on_callback_errors(on_event) as heard:
                result = run_unit(job, unit, models=models, on_event=heard)
            yield result
        return
    num_sharers = min(executor.num_per_machine, len(units))
    tasks = [partial(_run_unit_in_worker, job, unit, num_sharers) for unit in units]
    for outcome in executor.run(tasks, lambda number, event: on_event(event)):
        unit = units[outcome.index]
        if isinstance(outcome, Done):
            yield outcome.value
        elif outcome.again:
            on_event(StudyUnitAgain(model=unit.model, dataset=unit.dataset, reason=outcome.reason))
        else:
            yield result_of_lost_unit(unit, outcome.reason, on_event)


class _CallbackError(BaseException):
    """Passes by whoever takes errors for failures of a part of the work."""

    def __init__(self, error: Exception) -> None:
        self.error = error


@contextmanager
def _ending_on_callback_errors(on_event: OnEvent) -> Iterator[OnEvent]:
    """A callback whose errors end the block as they were raised, even where errors of the work would not."""

    def call(event: Event) -> None:
        try:
            on_event(event)
        except Exception as error:
            raise _CallbackError(error) from error

    try:
        yield call
    except _CallbackError as failed:
        raise failed.error from None


def _run_unit_in_worker(job: StudyJob, unit: Unit, num_sharers: int, worker: int, on_event: OnEvent) -> UnitResult:
    def filtered(event: Event) -> None:
        if isinstance(event, _SHOWN_OF_PARALLEL_UNITS):
            on_event(event)

    job = replace(job, device=device_of_worker(job.device, worker))
    return run_unit(job, unit, num_sharers=num_sharers, models=_MODELS, on_event=filtered)


def write_failures(path: Path, failures: Sequence[StudyFailed]) -> None:
    """Write the failures of a run as JSON lines, whole or not at all; without failures, delete the file."""
    if not failures:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(asdict(failure), ensure_ascii=False, allow_nan=False) + "\n" for failure in failures]
    replace_file(path, "".join(lines).encode())
