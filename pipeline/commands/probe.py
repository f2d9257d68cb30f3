"""`layerbank probe`: stage two, train probes on stored tokens."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from . import options as shared


@click.command()
@click.option(
    "--store",
    is_eager=True,
    metavar="STORE",
    help="In place of --model and --data: a store with tokens and targets; STORE?target=NAME for another target than label, "
    "STORE?split=0.2&seed=0 to hold a fifth of each class out as test.",
)
@click.option("--test-store", metavar="STORE", help="The store to test on, by the same model.")
@shared.one_model
@shared.extraction_options
@click.option(
    "--probe",
    "probes",
    help="Names, separated by commas; see `layerbank probes`. [default: linear-cls,linear-last,linear-all,attn-last,alf,alf-grid2]",
)
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
    "--task",
    default="auto",
    show_default=True,
    help="multiclass, multilabel, ordinal or regression. auto is what labels show: decimals are regression, a matrix of 0 and 1 "
    "is multilabel, anything else multiclass.",
)
@click.option(
    "--metric",
    help="Metric that settings are chosen by. multiclass: balanced_accuracy, accuracy, macro_f1, kappa, auroc, average_precision, "
    "log_loss; multilabel: map, auroc, macro_f1; ordinal: quadratic_kappa, accuracy, balanced_accuracy, mae; regression: r2, mae, "
    "rmse, pearson, spearman. [default: the first of the task]",
)
@click.option(
    "--class-weights",
    metavar="WEIGHTS",
    help="Weight of a training image by its class: balanced gives every class the same total, none every image the same, "
    "cat=1,dog=2.5 is as given (1 for the others). [default: balanced]",
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
@shared.cases
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
@shared.events
@shared.as_json
def probe(
    seeds: str,
    probes: str | None,
    targets: str | None,
    shots: str | None,
    train_fractions: str | None,
    events: Path | None,
    as_json: bool,
    store: str | None,
    test_store: str | None,
    **options: Any,
) -> None:
    """Stage two: train probes on stored tokens, choose on validation, test once.

    Tokens that are missing are extracted first. Results go to RUNS/<data set>/<store>/results.jsonl; each
    trained probe, its test predictions and its attention map to a folder beside it.

    \b
    layerbank probe --model timm/vit_small_patch16_224 --data folder:photos --probe linear-cls,alf --protocol paper
    layerbank probe --store train.zarr --test-store test.zarr --probe linear-last
    """
    from ..console import Listener, print_json, print_table
    from ..errors import RequestError
    from ..jobs.extract import split_names
    from ..probing.probe_spec import DEMO_PROBES
    from ..probing.rows.results import COLUMNS, results_table, results_title, summarize
    from ..quantities import parse_numbers, parse_percentages

    shared.check_answers(events, as_json)
    num_heads = options.pop("num_heads")
    named = tuple(DEMO_PROBES) if probes is None else split_names(probes)
    if not named:
        raise RequestError("probing.no_probe_named", probes=probes)
    options |= {
        "probes": named,
        "seeds": tuple(parse_numbers(seeds, where="--seed", at_least=0)),
        "targets": split_names(targets or ""),
        "shots": () if shots is None else parse_numbers(shots, where="--shots", at_least=1),
        "train_fractions": () if train_fractions is None else parse_percentages(train_fractions),
        "num_heads": () if num_heads is None else tuple(parse_numbers(num_heads, where="--num-heads", at_least=1)),
    }
    prepare = _prepare(store, test_store, options)
    with Listener(quiet=as_json, events=events) as listener:
        folder, trainings = prepare(on_event=listener.show)
        rows = [row for training in trainings for row in training()]
    if as_json:
        print_json({"folder": str(folder), "rows": rows, "summary": [summary.to_dict() for summary in summarize(rows)]})
        return
    with shared.answers_beside(events):
        print_table(COLUMNS, results_table(rows), title=results_title(rows, folder))


def _prepare(store: str | None, test_store: str | None, options: dict[str, Any]) -> Callable[..., Any]:
    """What prepares the training on stores, or on a data set."""
    from ..errors import RequestError
    from ..jobs.job import ProbeJob
    from ..jobs.probe import prepare_probes
    from ..jobs.probe_stores import StoreProbeJob, prepare_store_probes

    if store is None:
        if test_store is not None:
            raise RequestError("jobs.test_store_alone", store=test_store)
        return partial(prepare_probes, ProbeJob(**options))
    of_images = {name: options.pop(name) for name in ("model", "weights", "data")}
    if given := [f"--{name}" for name, value in of_images.items() if value is not None]:
        raise RequestError("jobs.store_or_data", option=given[0])
    return partial(prepare_store_probes, StoreProbeJob(store=store, test_store=test_store, **options))
