"""The command of stage two."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from . import options as shared


@click.command()
@shared.one_model
@shared.extraction_options
@click.option("--probe", "probes", help="Names with commas between. [default: the six of the demo]")
@click.option(
    "--protocol",
    default="paper",
    show_default=True,
    help="paper (63 settings, at least 1,000 steps), quick (4 settings, 500 steps), or a TOML file.",
)
@click.option(
    "--sweep",
    type=click.Choice(["full", "halving"]),
    help="halving trains the grid for a ninth of the steps, its best third for a third, the best of those in full. "
    "[default: the protocol's: full]",
)
@click.option(
    "--compute",
    type=click.Choice(["auto", "float32", "tf32", "bfloat16"]),
    help="Numbers that matrices are multiplied in, sums and all else being float32; auto is tf32 on a GPU, float32 on a CPU, "
    "where bfloat16 is no faster. [default: the protocol's: auto]",
)
@click.option(
    "--num-heads",
    metavar="NUMBERS",
    help="Train every probe whose head has heads once with each of these: 4,8,24. [default: what its name says]",
)
@click.option(
    "--seed",
    "seeds",
    metavar="NUMBERS",
    default="0",
    show_default=True,
    help="Of split, initial weights, order, jitter, dropout; 0,1,2 goes through the whole protocol once a seed.",
)
@click.option(
    "--reference-quirks",
    is_flag=True,
    help="Repeat what the paper's code does and the paper does not say: patches normalised over the tokens of a level, settings "
    "chosen on jittered images, quarterly as blocks 3, 6, 9 of any depth.",
)
@click.option("--train-split", default="train", show_default=True, help="What probes are trained and chosen on.")
@click.option("--test-split", default="test", show_default=True, help="What the chosen ones are tested on, once.")
@click.option(
    "--extract/--no-extract",
    "may_extract",
    default=True,
    show_default=True,
    help="Compute tokens that are missing.",
)
@click.option(
    "--verify/--no-verify",
    "may_verify",
    default=True,
    show_default=True,
    help="Check the checksums of the stores first.",
)
@click.option(
    "--memory",
    help="What the whole program may take of the host's memory, such as 4GB; tokens that do not fit are streamed from the "
    "store, and a grid that does not fit is trained in parts. [default: 80 % of what is free]",
)
@click.option(
    "--train-views",
    type=click.IntRange(0),
    help="How many of the --views of an image to train on; validation and test see the centre view alone. [default: all]",
)
@click.option("--retrain", is_flag=True, help="Train again what results.jsonl has already.")
@click.option(
    "--runs", "runs_root", type=shared.FOLDER, default="runs", show_default=True, help="Folder of all results."
)
@shared.as_json
def probe(
    probes: str | None,
    protocol: str,
    sweep: str | None,
    compute: str | None,
    num_heads: str | None,
    seeds: str,
    reference_quirks: bool,
    train_split: str,
    test_split: str,
    may_extract: bool,
    may_verify: bool,
    memory: str | None,
    train_views: int | None,
    retrain: bool,
    runs_root: Path,
    as_json: bool,
    **options: Any,
) -> None:
    """Stage two: train probes on stored tokens, choose on validation, test once.

    Tokens that are missing are extracted first. Results go to RUNS/<data set>/<store>/results.jsonl; each
    trained probe, its test predictions and its attention map to a folder beside it.

    \b
    layerbank probe --model timm/vit_small_patch16_224 --data folder:photos --probe linear-cls,alf --protocol paper
    """
    from layerbank.probes import resolve_compute

    from ..console import Listener, print_json, print_table
    from ..data.sources import open_source
    from ..jobs.extract import open_extraction, settle_within_room, split_names, with_views
    from ..memory import memory_for_probes
    from ..models.request import choose_device
    from ..probing.probe import check_classes, check_train_views, run_folder, verify_arrays
    from ..probing.probe import probe as train_probes
    from ..probing.probe_sizes import check_heads, leave_out_unfit
    from ..probing.probe_spec import DEMO_PROBES, parse_probes
    from ..probing.protocols import open_protocol
    from ..probing.results_table import COLUMNS, results_table, results_title, summarize
    from ..quantities import parse_numbers, parse_size

    each_seed = parse_numbers(seeds, where="--seed", at_least=0)
    head_counts = parse_numbers(num_heads, where="--num-heads", at_least=1) if num_heads is not None else ()
    chosen_protocol = open_protocol(protocol, seed=each_seed[0])
    if sweep is not None:
        chosen_protocol = replace(chosen_protocol, sweep=sweep)
    if compute is not None:
        chosen_protocol = replace(chosen_protocol, compute=compute)
    resolve_compute(chosen_protocol.compute, choose_device(options["device"]))  # told before hours of extraction
    if reference_quirks:
        chosen_protocol = replace(chosen_protocol, jitter_validation=True)
    if memory is not None:
        parse_size(memory)  # a slip of the pen is told before hours of extraction
    check_train_views(train_views, options["views"])
    with Listener(quiet=as_json) as listener:
        train_source, test_source = (open_source(options["data"], split) for split in (train_split, test_split))
        check_classes(train_source, test_source)
        train_source = with_views(train_source, options)
        work = open_extraction(options, listener.show)
        named = parse_probes(
            split_names(probes) if probes else DEMO_PROBES,
            work.backbone.depth,
            num_heads=head_counts,
            reference_quirks=reference_quirks,
        )
        named = leave_out_unfit(named, work.backbone.row_shape)
        check_heads(named, work.backbone.row_shape)
        arrays = list(dict.fromkeys(array for one in named for array in one.arrays))
        sources = [train_source, test_source]
        if may_extract:
            (work,) = settle_within_room([work], sources, [arrays])
        else:
            work = work.settled(sources, arrays)
        train, test = (work.extract(source, arrays) if may_extract else work.store(source) for source in sources)
        if train_views is not None and train_views < options["views"]:
            train = train._replace(num_views=train_views)
        if may_verify:
            verify_arrays([train, test], arrays)
        folder = run_folder(runs_root, train)
        rows = []
        for seed in each_seed:
            rows += train_probes(
                train,
                test,
                named,
                replace(chosen_protocol, seed=seed),
                folder,
                config=work.config(),
                retrain=retrain,
                device=work.backbone.device,
                memory_bytes=memory_for_probes(memory),
                on_event=listener.show,
            )
    if as_json:
        print_json({"folder": str(folder), "rows": rows, "summary": [summary.to_dict() for summary in summarize(rows)]})
    else:
        print_table(COLUMNS, results_table(rows), title=results_title(rows, folder))
