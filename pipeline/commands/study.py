"""`layerbank study`: run or plan a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from . import options as shared

if TYPE_CHECKING:
    from ..jobs.job import StudyJob
    from ..probing.rows.results import Row

STUDY_COLUMNS = ("model", "data set", "probe", "validation", "test", "gain")


@click.command()
@click.argument("recipe")
@click.option("--dry-run", is_flag=True, help="Only count units, trainings, images and bytes.")
@click.option(
    "--calibrate",
    is_flag=True,
    help="With --dry-run: estimate the hours from passes of each model and steps of each head on this machine; takes a minute or "
    "several, without weights or data.",
)
@click.option(
    "--data-root",
    type=shared.FOLDER,
    default="data",
    show_default=True,
    help="Folder of the data sets of the catalogue.",
)
@click.option("--fetch/--no-fetch", default=True, show_default=True, help="Fetch missing data sets from the hub.")
@shared.cache_root
@shared.runs_root
@shared.device
@shared.memory
@shared.workers
@click.option(
    "--processes",
    type=click.IntRange(1),
    help="Processes that each do one model on one data set at a time and share the memory. [default: one a GPU with --device auto, "
    "else 1]",
)
@shared.engine
@shared.allow_code
@shared.events
@shared.as_json
def study(
    recipe: str,
    dry_run: bool,
    calibrate: bool,
    processes: int | None,
    engine: str,
    allow_code: tuple[str, ...],
    events: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Run a whole study: every model on every data set of a recipe, every probe, every seed.

    RECIPE is smoke, demo, layers, ablations, paper-base, paper-full, or a TOML file with models, data, probes and optionally the
    other options of `layerbank probe`. Options given here replace those of the file. Run it again after a crash and it continues
    where it stopped. Parts that fail are reported and listed in RUNS/failures.jsonl, the rest goes on, and the exit code is 1.

    \b
    layerbank study demo --dry-run
    """
    from ..console import print_json, print_table
    from ..jobs.recipe import open_recipe
    from ..models.families import models_with_code
    from ..models.trust import CodePermission

    shared.check_answers(events, as_json)
    if calibrate and not dry_run:
        from ..errors import RequestError

        raise RequestError("jobs.calibrate_without_dry_run")
    source_of = click.get_current_context().get_parameter_source
    given = {name: value for name, value in options.items() if source_of(name) is not ParameterSource.DEFAULT}
    job = replace(open_recipe(recipe), allow_code=allow_code, **given)
    models_with_code(job.models, CodePermission(job.allow_code, recipe))
    if dry_run:
        from ..jobs.study_plan import PLAN_COLUMNS, plan_study, plan_table, plan_title

        planned = plan_study(job, calibrate=calibrate)
        if as_json:
            print_json([asdict(unit) for unit in planned])
        else:
            print_table(PLAN_COLUMNS, plan_table(planned), title=plan_title(planned))
        return
    if not _run(job, processes, on_ray=engine == "ray", events=events, as_json=as_json):
        raise SystemExit(1)


def _run(job: StudyJob, processes: int | None, *, on_ray: bool, events: Path | None, as_json: bool) -> bool:
    """Run a study and show its results; return whether all of it was done."""
    from contextlib import ExitStack

    from ..console import Listener, print_json, print_table
    from ..event_text import part_of_study
    from ..executors.executor import Executor
    from ..executors.local import LocalExecutor
    from ..executors.ray_executor import RayExecutor
    from ..executors.studies import run_study
    from ..extraction.ranks import choose_processes
    from ..jobs.units import units_of
    from ..probing.rows.results import metric_of

    with ExitStack() as stack:
        listener = stack.enter_context(Listener(quiet=as_json, events=events))
        executor: Executor | None = None
        if on_ray:
            folders = (job.cache_root, job.runs_root)
            executor = stack.enter_context(RayExecutor(folders, processes, job.device, listener.show))
        elif (num_processes := choose_processes(processes, job.device, None)) > 1:
            executor = LocalExecutor(min(num_processes, len(units_of(job))))
        rows, failures = run_study(job, executor=executor, on_event=listener.show)
    if as_json:
        print_json({"rows": rows, "failures": [asdict(failure) for failure in failures]})
    else:
        with shared.answers_beside(events):
            titles = dict.fromkeys(metric_of(row).title for row in rows)
            print_table(STUDY_COLUMNS, study_lines(rows), title="; ".join([*titles, str(job.runs_root)]))
        for failure in failures:
            part = part_of_study(failure.model, failure.dataset, failure.probe, failure.seed)
            click.echo(f"failed: {part}: {failure.where}: {failure.got}", err=True)
    return not failures


def study_lines(rows: Sequence[Row]) -> list[list[str]]:
    """Return a line for each model, data set and probe, averaged over seeds; a dash if all settings diverged."""
    from ..probing.rows.results import summarize

    lines = []
    for one in summarize(rows):
        digits = one.metric.num_digits
        numbers = ((one.validation, ""), (one.test, ""), (one.gain, "+"))
        shown = ["-" if value is None else f"{value.mean:{sign}.{digits}f}" for value, sign in numbers]
        lines.append([one.rows[0]["backbone"], one.rows[0]["dataset"], one.probe, *shown])
    return lines
