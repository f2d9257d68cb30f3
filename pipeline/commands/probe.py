"""`layerbank probe`: stage two, train probes on stored tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import options as shared

if TYPE_CHECKING:
    from layerbank.probes import TrainingProtocol

    from ..events import OnEvent
    from ..probing.results import Row


@click.command()
@shared.one_model
@shared.extraction_options
@click.option("--probe", "probes", help="Names, separated by commas. [default: the six of the demo]")
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
    help="Precision of matrix products; sums and everything else are float32. auto is tf32 on a GPU and float32 on a CPU, "
    "where bfloat16 is no faster. [default: the protocol's: auto]",
)
@click.option(
    "--num-heads",
    metavar="NUMBERS",
    help="Train every probe of an attentive head once with each number of heads: 4,8,24. [default: as its name says]",
)
@click.option(
    "--seed",
    "seeds",
    metavar="NUMBERS",
    default="0",
    show_default=True,
    help="Seed for split, initial weights, order, jitter and dropout; 0,1,2 runs the whole protocol once a seed.",
)
@click.option(
    "--reference-quirks",
    is_flag=True,
    help="Repeat what the paper's code does and the paper does not say: patches normalised over the tokens of a level, settings "
    "chosen on jittered images, quarterly as blocks 3, 6, 9 of any depth.",
)
@click.option("--train-split", default="train", show_default=True, help="Split that probes are trained and chosen on.")
@click.option(
    "--test-split", default="test", show_default=True, help="Split that the chosen probes are tested on, once."
)
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
@shared.memory
@click.option(
    "--train-views",
    type=click.IntRange(0),
    help="How many of the --views of an image to train on; validation and test use the centre view only. [default: all]",
)
@click.option("--retrain", is_flag=True, help="Train again what results.jsonl has.")
@shared.runs_root
@shared.as_json
def probe(seeds: str, runs_root: Path, as_json: bool, **options: Any) -> None:
    """Stage two: train probes on stored tokens, choose on validation, test once.

    Tokens that are missing are extracted first. Results go to RUNS/<data set>/<store>/results.jsonl; each
    trained probe, its test predictions and its attention map to a folder beside it.

    \b
    layerbank probe --model timm/vit_small_patch16_224 --data folder:photos --probe linear-cls,alf --protocol paper
    """
    from ..console import Listener, print_json, print_table
    from ..probing.results import COLUMNS, results_table, results_title, summarize
    from ..quantities import parse_numbers

    each_seed = parse_numbers(seeds, where="--seed", at_least=0)
    head_counts = options["num_heads"]
    if head_counts is not None:
        head_counts = parse_numbers(head_counts, where="--num-heads", at_least=1)
    protocol = _open_protocol(options, each_seed[0])
    with Listener(quiet=as_json) as listener:
        protocols = [replace(protocol, seed=seed) for seed in each_seed]
        folder, rows = _train(options | {"num_heads": head_counts or ()}, protocols, runs_root, listener.show)
    if as_json:
        print_json({"folder": str(folder), "rows": rows, "summary": [summary.to_dict() for summary in summarize(rows)]})
    else:
        print_table(COLUMNS, results_table(rows), title=results_title(rows, folder))


def _open_protocol(options: dict[str, Any], seed: int) -> TrainingProtocol:
    """The protocol with what the options change of it; what is wrong with the options is refused before hours of extraction."""
    from layerbank.probes import resolve_compute

    from ..models.request import choose_device
    from ..probing.probe import check_train_views
    from ..probing.protocols import open_protocol
    from ..quantities import parse_size

    changed = {name: options[name] for name in ("sweep", "compute") if options[name] is not None}
    if options["reference_quirks"]:
        changed["jitter_validation"] = True
    protocol = replace(open_protocol(options["protocol"], seed=seed), **changed)
    resolve_compute(protocol.compute, choose_device(options["device"]))
    if options["memory"] is not None:
        parse_size(options["memory"])
    check_train_views(options["train_views"], options["views"])
    return protocol


def _train(
    options: dict[str, Any], protocols: Sequence[TrainingProtocol], runs_root: Path, on_event: OnEvent
) -> tuple[Path, list[Row]]:
    """Extract what is missing, and train the probes by each protocol; the folder of the results, and the rows."""
    from ..data.sources import open_source
    from ..jobs.extract import open_model, open_rows, request_extraction, settle_and_check_disk, split_names
    from ..memory import memory_for_probes
    from ..probing.probe import check_classes, run_folder, verify_tokens
    from ..probing.probe import probe as train_probes
    from ..probing.probe_sizes import check_heads, leave_out_unfit
    from ..probing.probe_spec import DEMO_PROBES, parse_probes

    options = options | {"views_split": options["train_split"]}
    sources = [open_source(options["data"], options[split]) for split in ("train_split", "test_split")]
    check_classes(*sources)
    request, backbone = open_model(options)
    named = parse_probes(
        split_names(options["probes"]) if options["probes"] else DEMO_PROBES,
        backbone.depth,
        num_heads=options["num_heads"],
        reference_quirks=options["reference_quirks"],
    )
    named = leave_out_unfit(named, backbone.row_shape)
    check_heads(named, backbone.row_shape)
    arrays = tuple(dict.fromkeys(array for one in named for array in one.arrays))
    work = request_extraction(options, request, backbone, arrays, on_event)
    splits = [open_rows(source, options, on_event) for source in sources]
    if options["may_extract"]:
        (work,) = settle_and_check_disk([work], splits)
        train, test = (work.extract(rows) for rows in splits)
    else:
        work = work.settled(splits)
        train, test = (work.tokens(rows) for rows in splits)
    if options["train_views"] is not None:
        train = train.with_views(min(options["train_views"], train.num_views))
    if options["may_verify"]:
        verify_tokens([train, test])
    folder, rows = run_folder(runs_root, train), []
    for protocol in protocols:
        rows += train_probes(
            train,
            test,
            named,
            protocol,
            folder,
            config=work.description(),
            retrain=options["retrain"],
            device=work.backbone.device,
            memory_bytes=memory_for_probes(options["memory"]),
            on_event=on_event,
        )
    return folder, rows
