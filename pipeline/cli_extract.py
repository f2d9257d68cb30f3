"""The command of stage one."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import click

from . import cli_options as shared


@click.command()
@shared.several_models
@shared.extraction_options
@click.option(
    "--split",
    "splits",
    multiple=True,
    default=("train", "test"),
    show_default=True,
    help="May be given several times.",
)
@click.option("--views-split", default="train", show_default=True, help="The split whose images get --views.")
@click.option(
    "--levels",
    default="every",
    show_default=True,
    help="every, a layer set (last, mid, quarterly, all), or block.3,final.",
)
@click.option(
    "--kinds",
    default="cls,ap",
    show_default=True,
    help="cls, ap, grid{g}, patch, register, with commas between.",
)
@click.option("--overwrite", is_flag=True, help="Begin anew even where a store is complete.")
@click.option(
    "--processes",
    type=click.IntRange(1),
    help="Processes that run the model and share the rows, one a GPU; not those that decode, see --workers. "
    "[default: one a GPU with --device auto, else 1]",
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Where those processes run: on this machine, or on the Ray cluster that RAY_ADDRESS names (without it, on a Ray of this "
    "machine alone), one a GPU, else one a node.",
)
@click.option(
    "--shard",
    metavar="I/N",
    help="Compute only share I of N, such as 0/4, beside other runs or before them; torchrun needs no --shard. [default: all]",
)
@shared.as_json
def extract(
    models: tuple[str, ...],
    several_weights: tuple[str, ...],
    splits: tuple[str, ...],
    views_split: str,
    levels: str,
    kinds: str,
    overwrite: bool,
    processes: int | None,
    engine: str,
    shard: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Stage one: run a model once over a data set and store the tokens of its layers.

    Run it again after a crash and it goes on where it was. Ask for more levels or kinds and only those are computed.
    Several models share the decoding; each has a store of its own.

    \b
    layerbank extract --model timm/vit_small_patch16_224 --data folder:photos --kinds cls,ap,grid2
    """
    from .console import Listener, print_json
    from .cpu_precision import advise_on_precision
    from .extract import extract_together
    from .request import choose_device, pair_models_with_weights
    from .requested import extract_share, prepare, prepare_shares
    from .shards import choose_processes, device_of_worker, parse_shard, refuse_shards, worker_of_launcher
    from .workers import run_processes

    worker = parse_shard(shard) if shard is not None else worker_of_launcher(os.environ)
    request = options | {
        "pairs": pair_models_with_weights(models, several_weights),
        "splits": splits,
        "views_split": views_split,
        "levels": levels,
        "kinds": kinds,
        "overwrite": overwrite,
    }
    with Listener(quiet=as_json) as listener:
        if engine == "ray":
            from .ray_engine import RayEngine, run_on_ray

            refuse_shards(worker)
            with RayEngine([options["cache_root"]], processes, options["device"], listener.show) as cluster:
                request["device"] = cluster.placement.device
                # there, because the device that settles the precision is there
                share, stores = cluster.do_one(partial(prepare_shares, request), listener.show)
                run_on_ray(partial(extract_share, share), cluster, listener.show)
        else:
            num_processes = choose_processes(processes, options["device"], worker)
            if worker is not None and shard is None:
                request["device"] = device_of_worker(options["device"], int(os.environ["LOCAL_RANK"]))
            if options["precision"] == "auto" and choose_device(request["device"]) == "cpu":
                advise_on_precision(listener.show)
            if num_processes > 1:
                share, stores = prepare_shares(request, listener.show)
                run_processes(partial(extract_share, share), num_processes, listener.show)
            else:
                prepared = prepare(request, listener.show, worker)
                stores = [one.store for _, extractions in prepared for one in extractions]
                for source, extractions in prepared:
                    extract_together(extractions, source, emit=listener.show)
    if as_json:
        print_json({"stores": [str(store) for store in stores]})
