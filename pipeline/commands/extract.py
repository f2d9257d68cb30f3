"""`layerbank extract` and `layerbank plan`: stage one, and what it would take."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import options as shared

if TYPE_CHECKING:
    from layerbank.cache import Worker

    from ..executors.local import LocalExecutor
    from ..jobs.job import ExtractJob


_options = shared.combine(
    shared.several_models,
    shared.extraction_options,
    click.option(
        "--split",
        "splits",
        multiple=True,
        default=("train", "test"),
        show_default=True,
        help="May be given several times.",
    ),
    click.option("--views-split", default="train", show_default=True, help="The split whose images get --views."),
    click.option(
        "--levels",
        default="every",
        show_default=True,
        help="every, a layer set (last, mid, quarterly, all), or block.3,final.",
    ),
    click.option(
        "--kinds",
        default="cls,ap",
        show_default=True,
        help="cls, ap, grid{g}, patch, register, with commas between.",
    ),
    click.option(
        "--overwrite",
        is_flag=True,
        help="Delete the stores of these images alone and compute them again; tokens of images that lie in a store with "
        "others, or in one of format 1, are kept.",
    ),
    click.option(
        "--processes",
        type=click.IntRange(1),
        help="Processes that run the model and share the rows, one a GPU; not those that decode, see --workers. "
        "[default: one a GPU with --device auto, else 1]",
    ),
    click.option(
        "--shard",
        metavar="I/N",
        help="Compute only share I of N, such as 0/4, beside other runs or before them; torchrun needs no --shard. "
        "[default: all]",
    ),
)


@click.command()
@_options
@click.option("--dry-run", is_flag=True, help="Only say what it would take, as `layerbank plan` does.")
@shared.engine
@shared.events
@shared.as_json
def extract(dry_run: bool, engine: str, events: Path | None, as_json: bool, **options: Any) -> None:
    """Stage one: run a model once over a data set and store the tokens of its layers.

    Run it again after a crash and it goes on where it was. Ask for more levels or kinds and only those are computed.
    Several models share the decoding; each has a store of its own. What does not fit the disk is refused first.

    \b
    layerbank extract --model timm/vit_small_patch16_224 --data folder:photos --kinds cls,ap,grid2
    """
    if dry_run:
        _plan(options, as_json)
        return
    from ..console import Listener, print_json
    from ..executors.run import run_extraction
    from ..extraction.cpu_precision import advise_on_precision
    from ..extraction.ranks import refuse_shards
    from ..models.request import choose_device

    shared.check_answers(events, as_json)
    job, processes, worker = _job_of(options)
    with Listener(quiet=as_json, events=events) as listener:
        if engine == "ray":
            from ..executors.ray_executor import RayExecutor

            refuse_shards(worker)
            with RayExecutor([job.cache_root], processes, job.device, listener.show) as cluster:
                folders = run_extraction(job, executor=cluster, on_event=listener.show)
        else:
            job, executor = _on_this_machine(job, options["shard"], processes, worker)
            if job.precision == "auto" and choose_device(job.device) == "cpu":
                advise_on_precision(listener.show)
            folders = run_extraction(job, executor=executor, worker=worker, on_event=listener.show)
    if as_json:
        print_json({"folders": folders})


@click.command()
@_options
@shared.as_json
def plan(as_json: bool, **options: Any) -> None:
    """What `layerbank extract` with the same options would take: images, bytes, files, minutes, memory.

    Opens data and models, compares the first images with float32, runs a sample of the images and writes one row block to
    the disk of the cache; nothing is kept. What the stores hold already is not counted. The exit code is 2 if the disk is
    too small.

    \b
    layerbank plan --model timm/vit_small_patch16_224 --data folder:photos --kinds cls,ap,grid2
    """
    _plan(options, as_json)


def _job_of(options: dict[str, Any]) -> tuple[ExtractJob, int | None, Worker | None]:
    """Return the job, --processes, and which of several workers this process is."""
    from ..extraction.ranks import parse_shard, worker_of_launcher
    from ..jobs.job import ExtractJob
    from ..models.request import pair_models_with_weights

    others = ("models", "several_weights", "shard", "processes", "splits")
    pairs = pair_models_with_weights(options["models"], options["several_weights"])
    shard = options["shard"]
    worker = parse_shard(shard) if shard is not None else worker_of_launcher(os.environ)
    fields = {name: value for name, value in options.items() if name not in others}
    job = ExtractJob(models=tuple(pairs), splits=tuple(options["splits"]), **fields)
    return job, options["processes"], worker


def _on_this_machine(
    job: ExtractJob, shard: str | None, processes: int | None, worker: Worker | None
) -> tuple[ExtractJob, LocalExecutor | None]:
    """Choose the number of processes, and give each worker of torchrun a GPU of its own."""
    from ..executors.local import LocalExecutor
    from ..extraction.ranks import choose_processes, device_of_worker

    num_processes = choose_processes(processes, job.device, worker)
    if worker is not None and shard is None:
        job = replace(job, device=device_of_worker(job.device, int(os.environ["LOCAL_RANK"])))
    return job, LocalExecutor(num_processes) if num_processes > 1 else None


def _plan(options: dict[str, Any], as_json: bool) -> None:
    import time

    from ..console import Listener, print_json, print_lines, print_table
    from ..extraction.disk_space import check_disk_space
    from ..jobs.extract import prepare
    from ..planning.calibrate import work_of
    from ..planning.plan import plan_extraction
    from ..planning.plan_table import SPLIT_COLUMNS, split_lines, summary, token_columns, token_lines

    job, processes, worker = _job_of(options)
    job, executor = _on_this_machine(job, options["shard"], processes, worker)
    root = job.cache_root
    began = time.perf_counter()
    with Listener(quiet=as_json) as listener:
        work = work_of(prepare(job, listener.show, worker, only_plan=True))
        planned = plan_extraction(
            work,
            root,
            num_processes=1 if executor is None else executor.num_workers,
            start_s=time.perf_counter() - began,
            on_event=listener.show,
        )
    if as_json:
        print_json(planned.to_dict())
    else:
        print_table(SPLIT_COLUMNS, split_lines(planned))
        print_table(token_columns(planned), token_lines(planned), title="bytes of tokens to write, all splits")
        print_lines(summary(planned))
    check_disk_space(root, [store for one in work for store in one.forecasts])
