"""A study: every unit of a recipe (`units.py`), one after the other in this process, or in several.

The decisions taken here: a study has no state of its own, for stores, journals and results.jsonl say what is done; an engine does
the units in what order and where it likes, and their results are put into the order of the recipe. What could not be done is a row
of RUNS/failures.jsonl; results.jsonl holds results only. failures.jsonl is written anew at the end of every run: it says what
failed in the last one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from ..errors import WorkError
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
from ..jobs.recipe import Recipe
from ..jobs.study_disk_space import report_disk_space
from ..jobs.units import Failure, OpenModels, Place, Unit, UnitDone, check_compute, lost_unit, run_unit, units_of
from ..models.request import choose_device
from ..probing.results import Row
from .processes import share_cores
from .ray_engine import Lost, RayEngine
from .spread import spread

FAILURES = "failures.jsonl"
Engine = Callable[[Recipe, Place, Sequence[Unit], OnEvent], Iterable[UnitDone]]  # does each unit once, in any order

# what is told of a unit that is done beside others: lines of several that come between each other say nothing
_TOLD_BESIDE_OTHERS = (
    StudyUnit,
    StudyFailed,
    BatchHalved,
    CompileFailed,
    ImageSkipped,
    PrecisionFellBack,
    TokensOutOfRange,
    UploadFailed,
)


def run_study(
    recipe: Recipe, place: Place, *, engine: Engine | None = None, on_event: OnEvent = ignore
) -> tuple[list[Row], list[Failure]]:
    """Do all units of a recipe that are not done.

    Args:
        recipe: models, data sets, probes, seeds, protocol.
        place: folders and device.
        engine: does the units; None is `one_process`.
        emit: told what happens.

    Returns:
        Every row of the study, those of earlier runs too, and every failure, in the order of the recipe.

    Raises:
        SettingError: the device on which the units are done cannot compute as the protocol says.
    """
    report_disk_space(recipe, place, on_event)
    units = units_of(recipe)
    done: dict[Unit, UnitDone] = {}
    for one in (engine or one_process)(recipe, place, units, on_event):
        done[one.unit] = one
        on_event(
            StudyUnitFinished(
                model=one.unit.model,
                dataset=one.unit.dataset,
                num_rows=len(one.rows),
                num_failures=len(one.failures),
                num_done=len(done),
                num_units=len(units),
            )
        )
    failures = [failure for unit in units for failure in done[unit].failures]
    write_failures(place.runs_root / FAILURES, failures)
    return [row for unit in units for row in done[unit].rows], failures


def one_process(recipe: Recipe, place: Place, units: Sequence[Unit], on_event: OnEvent) -> Iterator[UnitDone]:
    """Units one after the other in this process, one model in memory at a time."""
    check_compute(recipe, choose_device(place.device))
    models = OpenModels()
    for unit in units:
        yield run_unit(recipe, place, unit, models=models, on_event=on_event)


def several_processes(num_processes: int) -> Engine:
    """Units shared out to processes of this machine, each with a GPU of its own where there are several.

    Each takes the next unit when it has done one. A process that is killed costs its unit, which is then a failure; a new one
    does the rest.
    """

    def run(recipe: Recipe, place: Place, units: Sequence[Unit], on_event: OnEvent) -> Iterator[UnitDone]:
        check_compute(recipe, choose_device(place.device))
        count = min(num_processes, len(units))
        work = partial(_one_of_several, OpenModels(), recipe, replace(place, num_sharers=count))
        for unit, done in spread(work, units, count, on_event):
            if isinstance(done, str):
                yield lost_unit(unit, done, on_event)
            else:
                yield done

    return run


def on_ray(num_workers: int | None) -> Engine:
    """Units spread over a Ray cluster, see `executors/ray_engine.py`: a unit whose worker is lost is begun again by another.

    Args:
        num_workers: at a time; None is one a GPU of the cluster, else one a node.
    """

    def run(recipe: Recipe, place: Place, units: Sequence[Unit], on_event: OnEvent) -> Iterator[UnitDone]:
        with RayEngine((place.cache_root, place.runs_root), num_workers, place.device, on_event) as cluster:
            check_compute(recipe, cluster.placement.device)  # the driver's own device does none of it
            placed = replace(place, device=cluster.placement.device, num_sharers=cluster.placement.num_on_a_node)
            tasks = [partial(_one_of_several, OpenModels(), recipe, placed, 0, unit) for unit in units]

            def lost(one: Lost) -> None:
                if one.again:
                    unit = units[one.index]
                    on_event(StudyUnitAgain(model=unit.model, dataset=unit.dataset, reason=one.reason))

            for index, done in cluster.do(tasks, lambda number, event: on_event(event), lost):
                yield lost_unit(units[index], done.got, on_event) if isinstance(done, WorkError) else done

    return run


def _one_of_several(
    models: OpenModels, recipe: Recipe, place: Place, process: int, unit: Unit, on_event: OnEvent
) -> UnitDone:
    def tell(event: Event) -> None:
        if isinstance(event, _TOLD_BESIDE_OTHERS):
            on_event(event)

    share_cores(place.num_sharers)
    place = replace(place, device=device_of_worker(place.device, process))
    return run_unit(recipe, place, unit, models=models, on_event=tell)


def write_failures(path: Path, failures: Sequence[Failure]) -> None:
    """Leave the failures of a run as JSON lines, whole or not at all; no file where there are none."""
    if not failures:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}")
    with staging.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(failure), ensure_ascii=False) + "\n" for failure in failures)
        file.flush()
        os.fsync(file.fileno())
    staging.replace(path)
