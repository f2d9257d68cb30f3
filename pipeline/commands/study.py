"""`layerbank study`: parse, call, show."""

from __future__ import annotations

from pathlib import Path

import click

_DIR = click.Path(file_okay=False, path_type=Path)


@click.command()
@click.argument("recipe")
@click.option("--dry-run", is_flag=True, help="Say what there is to do: units, trainings, images, bytes; do nothing.")
@click.option(
    "--calibrate",
    is_flag=True,
    help="With --dry-run: estimate the hours from passes of each model and steps of each head on this machine; takes a minute or "
    "several, without weights or data.",
)
@click.option(
    "--data-root", type=_DIR, default="data", show_default=True, help="Folder of the data sets of the catalogue."
)
@click.option(
    "--fetch/--no-fetch", default=True, show_default=True, help="Fetch a data set that is not there from the hub."
)
@click.option("--cache", "cache_root", type=_DIR, default="caches", show_default=True, help="Folder of all stores.")
@click.option("--runs", "runs_root", type=_DIR, default="runs", show_default=True, help="Folder of all results.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, ...")
@click.option(
    "--memory",
    help="What the whole program may take of the host's memory, such as 4GB. [default: 80 % of what is free]",
)
@click.option(
    "--workers",
    type=click.IntRange(0),
    help="Decoding processes. [default: a CPU one for each 16 cores (0 below), a GPU every core but one]",
)
@click.option(
    "--processes",
    type=click.IntRange(1),
    help="Processes that each do one model on one data set at a time and share the memory. [default: one a GPU with --device auto, "
    "else 1]",
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Where those processes run: on this machine, or on the Ray cluster that RAY_ADDRESS names (without it, on a Ray of this "
    "machine alone), one a GPU, else one a node.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON, and no progress.")
def study(
    recipe: str,
    dry_run: bool,
    calibrate: bool,
    data_root: Path,
    fetch: bool,
    cache_root: Path,
    runs_root: Path,
    device: str,
    memory: str | None,
    workers: int | None,
    processes: int | None,
    engine: str,
    as_json: bool,
) -> None:
    """Do a whole study: every model on every data set of a recipe, every probe, every seed.

    RECIPE is smoke, demo, layers, ablations, paper-base, paper-full, or a TOML file with models, data, probes and, if they are to
    differ, seeds, protocol, num_heads, weights, image_size, tap. Run it again after a crash and it goes on where it was. What
    fails is told, kept in RUNS/failures.jsonl, and the rest goes on; the exit code is then 1.

    \b
    layerbank study demo --dry-run
    """
    from dataclasses import asdict

    from ..console import Listener, print_json, print_table
    from ..event_text import part_of_study
    from ..executors.studies import on_ray, one_process, run_study, several_processes
    from ..extraction.ranks import choose_processes
    from ..jobs.recipe import open_recipe
    from ..jobs.study_table import STUDY_COLUMNS, study_table
    from ..jobs.units import Place
    from ..quantities import parse_size

    if calibrate and not dry_run:
        from ..errors import RequestError

        raise RequestError(
            where="--calibrate",
            expected="--dry-run beside it",
            got="a study to be done",
            todo="Leave it out, or plan first.",
        )
    opened = open_recipe(recipe)
    if memory is not None:
        parse_size(memory)
    place = Place(
        cache_root=cache_root,
        runs_root=runs_root,
        data_root=data_root,
        fetch=fetch,
        device=device,
        memory=memory,
        num_workers=workers,
    )
    if dry_run:
        from ..jobs.study_plan import PLAN_COLUMNS, plan_study, plan_table, plan_title

        planned = plan_study(opened, place, calibrate=calibrate)
        if as_json:
            print_json([asdict(unit) for unit in planned])
        else:
            print_table(PLAN_COLUMNS, plan_table(planned), title=plan_title(planned))
        return
    if engine == "ray":
        does_units = on_ray(processes)
    else:
        num_processes = choose_processes(processes, device, None)
        does_units = one_process if num_processes == 1 else several_processes(num_processes)
    with Listener(quiet=as_json) as listener:
        rows, failures = run_study(opened, place, engine=does_units, on_event=listener.show)
    if as_json:
        print_json({"rows": rows, "failures": [asdict(failure) for failure in failures]})
    else:
        print_table(STUDY_COLUMNS, study_table(rows), title=f"balanced accuracy in percent; {runs_root}")
        for failure in failures:
            part = part_of_study(failure.model, failure.dataset, failure.probe, failure.seed)
            click.echo(f"failed: {part}: {failure.where}: {failure.got}", err=True)
    if failures:
        raise SystemExit(1)
