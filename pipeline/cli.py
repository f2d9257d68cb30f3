"""The command line: parse, call, show. Everything it does can be done from Python with the modules it calls.

Exit codes: 0 done, 1 the work failed, 2 the request was wrong. Nothing heavy is imported before a command runs, so that `--help`
answers at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .cli_cache import cache
from .cli_models import datasets, models
from .cli_probes import attention, probes
from .cli_report import report
from .cli_study import study

if TYPE_CHECKING:
    from cache import Worker

    from .backbones import Backbone
    from .datasets import ImageSource
    from .events import Emit
    from .extract import Extraction
    from .probe import Store
    from .request import ModelRequest

Command = Callable[..., Any]

CONTEXT = {
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": lambda token: token.replace("_", "-"),  # - and _ are the same in option names
    "max_content_width": 110,
}


class _Layerbank(click.Group):
    """Turns our errors into four lines and an exit code; everything else is a bug and keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            from .console import print_error

            todo = "What was committed is kept: run the same command again to go on."
            print_error("interrupted", {"do": todo})
            ctx.exit(130)
        except Exception as error:  # judged below: ours and the system's are shown, any other is raised again
            from .console import print_error

            shown: Any = error
            if all(hasattr(error, part) for part in ("where", "expected", "got", "todo")):
                print_error(shown.where, {"expected": shown.expected, "got": shown.got, "do": shown.todo})
                ctx.exit(_exit_code(error))
            if not isinstance(error, OSError) or isinstance(error, BrokenPipeError) or error.filename is None:
                raise
            todo = "Check the path, its permissions and the space left; what was committed is kept."
            print_error(str(error.filename), {"got": error.strerror or str(error), "do": todo})
            ctx.exit(1)


def _exit_code(error: Exception) -> int:
    """1 when the work failed, 2 when the request was wrong."""
    return 1 if isinstance(error, (OSError, RuntimeError)) and not isinstance(error, FileNotFoundError) else 2


def _options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator, shown by --help in this order."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_device = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, ...")
_batch_size = click.option(
    "--batch-size",
    type=click.IntRange(1),
    help="Images a forward pass. [default: 64 on a CPU; on a GPU the power of two that fits its free memory, up to 512; a "
    "store keeps the size it was begun with]",
)
_workers = click.option(
    "--workers",
    type=click.IntRange(0),
    help="Decoding processes; 0 decodes in this one. [default: a CPU one for each 16 cores (0 below), a GPU every core but one]",
)
_on_bad_image = click.option(
    "--on-bad-image",
    type=click.Choice(["stop", "skip"]),
    default="stop",
    show_default=True,
    help="What to do with an image that cannot be read; skipped ids are recorded.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON, and no progress.")
_DIR = click.Path(file_okay=False, path_type=Path)

_MODELS = "timm/NAME, open_clip/ARCH/PRETRAINED, hf-hub:ORG/REPO, torchhub:REPO:ENTRY, demo/vit-s-focus; see `layerbank models`."
_one_model = _options(
    click.option("--model", required=True, help=_MODELS),
    click.option("--weights", metavar="FILE", help="A file of weights, or `random`. [default: the pretrained ones]"),
)
_several_models = _options(
    click.option(
        "--model",
        "models",
        required=True,
        multiple=True,
        help=f"{_MODELS} Given several times, each image is decoded once for all of them.",
    ),
    click.option(
        "--weights",
        "several_weights",
        metavar="FILE",
        multiple=True,
        help="A file of weights, `random` or `pretrained`; one for each --model, in their order. "
        "[default: the pretrained ones]",
    ),
)
_extraction_options = _options(
    click.option("--weights-seed", type=int, default=0, show_default=True, help="Of random weights."),
    click.option(
        "--data",
        required=True,
        help="folder:DIR, wds:DIR, wds:PATTERN, hdf5:FILE, images:DIR or demo:digits; see `layerbank datasets`.",
    ),
    click.option(
        "--tap",
        type=click.Choice(["norm2", "block"]),
        help="Where a block is read: the norm before its MLP, or what leaves it. [default: norm2]",
    ),
    click.option(
        "--tap-module",
        metavar="PATTERN",
        help="In place of --tap, for a model of other names: a module's name with {i} for the number of the block, such as "
        "'layers.{i}.ffn_norm'. [default: none]",
    ),
    click.option(
        "--image-size",
        type=click.IntRange(1),
        help="Side of the square input in pixels. [default: the model's own]",
    ),
    click.option(
        "--precision",
        type=click.Choice(["auto", "float32", "float16", "bfloat16"]),
        default="auto",
        show_default=True,
        help="Of weights and activations; auto is float16 on a GPU, float32 on a CPU.",
    ),
    click.option(
        "--storage-dtype",
        metavar="DTYPES",
        default="float16",
        show_default=True,
        help="Of tokens on disk: float16, float32 or bfloat16, or by kind: cls=float32,ap=float16.",
    ),
    click.option(
        "--parity-threshold",
        type=float,
        help="Stop before anything is written if a token of the first 32 images of a split has a smaller cosine than this to the "
        "one of a float32 run, or a value that is saturated or not finite; 0 to 1. [default: none]",
    ),
    click.option(
        "--views",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="Augmented views to store of each training image beside its centre view: random crops, mirrored at random.",
    ),
    click.option(
        "--view-scale",
        type=click.FloatRange(0, 1, min_open=True),
        default=0.08,
        show_default=True,
        help="Smallest share of an image's area that a view keeps.",
    ),
    click.option("--view-flip/--no-view-flip", default=True, show_default=True, help="Mirror half of the views."),
    click.option("--cache", "cache_root", type=_DIR, default="caches", show_default=True, help="Folder of all stores."),
    _device,
    _batch_size,
    click.option(
        "--compile/--no-compile",
        "compile_model",
        default=None,
        help="Make one graph of the model with torch.compile. [default: compile on a GPU; on a CPU it takes a minute and gains "
        "nothing]",
    ),
    _workers,
    _on_bad_image,
)


@click.group(cls=_Layerbank, context_settings=CONTEXT)
@click.version_option(package_name="layerbank", prog_name="layerbank")
def main() -> None:
    """Run a vision foundation model once, keep every layer's tokens, train attentive probes by the hundred.

    \b
    layerbank probe --model demo/vit-s-focus --data demo:digits --protocol quick
    """


main.add_command(cache)
main.add_command(models)
main.add_command(datasets)
main.add_command(probes)
main.add_command(attention)
main.add_command(report)
main.add_command(study)


@main.command()
@_several_models
@_extraction_options
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
    "--shard",
    metavar="I/N",
    help="Compute only share I of N, such as 0/4, beside other runs or before them; torchrun needs no --shard. [default: all]",
)
@_json
def extract(
    models: tuple[str, ...],
    several_weights: tuple[str, ...],
    splits: tuple[str, ...],
    views_split: str,
    levels: str,
    kinds: str,
    overwrite: bool,
    processes: int | None,
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
    from .extract import begin, extract_together
    from .request import choose_device, pair_models_with_weights
    from .shards import choose_processes, device_of_worker, parse_shard, worker_of_launcher
    from .workers import run_processes

    worker = parse_shard(shard) if shard is not None else worker_of_launcher(os.environ)
    num_processes = choose_processes(processes, options["device"], worker)
    if worker is not None and shard is None:
        options["device"] = device_of_worker(options["device"], int(os.environ["LOCAL_RANK"]))
    request = options | {
        "pairs": pair_models_with_weights(models, several_weights),
        "splits": splits,
        "views_split": views_split,
        "levels": levels,
        "kinds": kinds,
        "overwrite": overwrite,
    }
    with Listener(quiet=as_json) as listener:
        if options["precision"] == "auto" and choose_device(options["device"]) == "cpu":
            advise_on_precision(listener.show)
        if num_processes > 1:
            # what is wrong with the request is told once, and the first images are looked at once
            prepared = _prepare(request, listener.show, None)
            if overwrite:
                for source, extractions in prepared:
                    begin(extractions, source, emit=listener.show)
            share = request | {"overwrite": False, "settled": _what_was_settled(prepared)}
            run_processes(partial(_extract_share, share), num_processes, listener.show)
        else:
            prepared = _prepare(request, listener.show, worker)
            for source, extractions in prepared:
                extract_together(extractions, source, emit=listener.show)
    if as_json:
        print_json({"stores": [str(one.store) for _, extractions in prepared for one in extractions]})


@main.command()
@_one_model
@_extraction_options
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
@click.option("--runs", "runs_root", type=_DIR, default="runs", show_default=True, help="Folder of all results.")
@_json
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
    from probes import resolve_compute

    from .console import Listener, print_json, print_table
    from .datasets import open_source
    from .memory import memory_for_probes, parse_size
    from .number_lists import parse_numbers
    from .probe import check_classes, check_train_views, run_folder, verify_arrays
    from .probe import probe as train_probes
    from .probe_names import DEMO_PROBES, resolve_probes
    from .probe_sizes import check_heads, leave_out_unfit
    from .protocols import open_protocol
    from .report import COLUMNS, results_table, results_title, summarize
    from .request import choose_device

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
        train_source = _with_views(train_source, options)
        work = _open_extraction(options, listener.show)
        named = resolve_probes(
            _names(probes) if probes else DEMO_PROBES,
            work.backbone.depth,
            num_heads=head_counts,
            reference_quirks=reference_quirks,
        )
        named = leave_out_unfit(named, work.backbone.row_shape)
        check_heads(named, work.backbone.row_shape)
        arrays = list(dict.fromkeys(array for one in named for array in one.arrays))
        work = work.settled([train_source, test_source], arrays)
        train, test = (
            work.extract(source, arrays) if may_extract else work.store(source)
            for source in (train_source, test_source)
        )
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
                emit=listener.show,
            )
    if as_json:
        print_json({"folder": str(folder), "rows": rows, "summary": [summary.to_dict() for summary in summarize(rows)]})
    else:
        print_table(COLUMNS, results_table(rows), title=results_title(rows, folder))


@main.command()
@click.option("--probe", "folder", type=_DIR, required=True, help="What `layerbank probe` saved: RUNS/.../NAME-KEY.")
@click.option("--data", required=True, help="images:DIR for images without labels, or any data URI.")
@click.option("--split", default="test", show_default=True, help="Where the data has splits.")
@click.option("--weights", metavar="FILE", help="Where the backbone's weights lie now. [default: where they were]")
@_device
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True, help="Images a forward pass.")
@_options(_workers, _on_bad_image, _json)
def predict(
    folder: Path,
    data: str,
    split: str,
    weights: str | None,
    device: str,
    batch_size: int,
    workers: int | None,
    on_bad_image: str,
    as_json: bool,
) -> None:
    """Classify images with a trained probe: CSV on stdout, one line an image.

    \b
    layerbank predict --probe runs/photos/STORE/alf-1a2b3c4d --data images:holiday
    """
    from .console import Listener, print_json, print_lines
    from .datasets import open_source
    from .predict import SavedProbe, predictions_csv
    from .request import choose_device, choose_workers

    with Listener(quiet=as_json) as listener:
        device = choose_device(device)
        saved = SavedProbe(folder, weights=weights, device=device)
        source = open_source(data, split)
        predictions = saved.predict(
            source,
            batch_size=batch_size,
            num_workers=choose_workers(workers, device),
            on_bad_image=on_bad_image,
            emit=listener.show,
        )
        if as_json:
            print_json([asdict(prediction) for prediction in predictions])
        else:
            print_lines(predictions_csv(predictions))


@dataclass(frozen=True)
class _Extraction:
    """The model, the data and the way of extraction that a command line asked for."""

    backbone: Backbone
    request: ModelRequest
    options: dict[str, Any]
    emit: Emit
    parity: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # of each split

    def settled(
        self, sources: Sequence[ImageSource], arrays: Sequence[tuple[str, str]], *, overwrite: bool = False
    ) -> _Extraction:
        """After a look at the first images: perhaps in another precision, see `parity.settle`."""
        from .parity import settle

        found = settle(
            self.request,
            self.backbone,
            sources,
            arrays,
            storage_dtype=self.options["storage_dtype"],
            cache_root=self.options["cache_root"],
            overwrite=overwrite,
            threshold=self.options["parity_threshold"],
            emit=self.emit,
        )
        return replace(self, backbone=found.backbone, request=found.request, parity=found.parity)

    def store(self, source: ImageSource) -> Store:
        from .extract import spec_of
        from .probe import Store

        spec = spec_of(self.backbone, source, self.options["storage_dtype"])
        return Store(spec.store_path(self.options["cache_root"]), spec)

    def extract(self, source: ImageSource, arrays: Sequence[tuple[str, str]]) -> Store:
        from .extract import extract_together

        extract_together([self.extraction(source, arrays)], source, emit=self.emit)
        return self.store(source)

    def extraction(
        self,
        source: ImageSource,
        arrays: Sequence[tuple[str, str]],
        *,
        overwrite: bool = False,
        worker: Worker | None = None,
    ) -> Extraction:
        from .extract import ExtractConfig, Extraction

        config = ExtractConfig(
            arrays=tuple(arrays),
            storage_dtype=self.options["storage_dtype"],
            batch_size=self.options["batch_size"],
            num_workers=self.options["workers"],
            on_bad_image=self.options["on_bad_image"],
            overwrite=overwrite,
            compile=self.options["compile_model"],
            worker=worker,
        )
        return Extraction(
            backbone=self.backbone,
            config=config,
            store=self.store(source).path,
            request=self.config(source),
            parity=self.parity.get(source.split),
        )

    def config(self, source: ImageSource | None = None) -> dict[str, Any]:
        """What `cache repair` and `predict` need to open the same model on the same data, or source, again."""
        from .sources import ViewedSource

        views = {"views": source.rule.to_dict()} if isinstance(source, ViewedSource) else {}
        return {"model": self.request.to_dict(), "data": self.options["data"]} | views


def _prepare(request: dict[str, Any], emit: Emit, worker: Worker | None) -> list[tuple[ImageSource, list[Extraction]]]:
    """Open the data and the models of `layerbank extract`: what to do, a split at a time."""
    from .datasets import open_source
    from .layers import choose_levels

    levels, overwrite = request["levels"], request["overwrite"]
    splits = dict.fromkeys(request["splits"])
    sources = [open_source(request["data"], split) for split in splits]  # before the slow model
    sources = [_with_views(one, request) if one.split == request["views_split"] else one for one in sources]
    works, wanted = [], []
    for number, (model, weights) in enumerate(request["pairs"]):
        options = request | {"model": model, "weights": weights}
        settled = request.get("settled")
        work = _open_extraction(options if settled is None else options | {"precision": settled[number][0]}, emit)
        chosen = work.backbone.levels if levels == "every" else choose_levels(levels, work.backbone.depth)
        wanted.append([(level, kind) for level in chosen for kind in _names(request["kinds"])])
        if settled is None:
            works.append(work.settled(sources, wanted[-1], overwrite=overwrite))
        else:
            works.append(replace(work, parity=settled[number][1]))
    return [
        (
            source,
            [
                work.extraction(source, arrays, overwrite=overwrite, worker=worker)
                for work, arrays in zip(works, wanted, strict=True)
            ],
        )
        for source in sources
    ]


def _what_was_settled(prepared: list[tuple[ImageSource, list[Extraction]]]) -> list[tuple[str, dict[str, Any]]]:
    """Of each model its precision, and what was measured of each split: for processes that need not look again."""
    return [
        (
            extraction.backbone.precision,
            {source.split: extractions[number].parity for source, extractions in prepared},
        )
        for number, extraction in enumerate(prepared[0][1])
    ]


def _extract_share(request: dict[str, Any], worker: Worker, emit: Emit) -> None:
    """What one of several processes does of `layerbank extract`."""
    from .extract import extract_together
    from .shards import device_of_worker

    request = request | {"device": device_of_worker(request["device"], worker.index)}
    for source, extractions in _prepare(request, emit, worker):
        extract_together(extractions, source, emit=emit)


def _with_views(source: ImageSource, options: dict[str, Any]) -> ImageSource:
    """The source with the views that the options ask for, a row each."""
    from .sources import ViewedSource, ViewRule

    if not options["views"]:
        return source
    rule = ViewRule(num_views=options["views"], min_scale=options["view_scale"], flip=options["view_flip"])
    return ViewedSource(source, rule)


def _open_extraction(options: dict[str, Any], emit: Emit) -> _Extraction:
    from .images import start_worker_server
    from .request import (
        ModelRequest,
        choose_device,
        choose_precision,
        choose_storage_dtype,
        choose_tap,
        choose_workers,
    )

    device = choose_device(options["device"])
    storage_dtype = choose_storage_dtype(options["storage_dtype"])
    num_workers = choose_workers(options["workers"], device)
    if num_workers:
        start_worker_server()
    request = ModelRequest(
        model=options["model"],
        weights=options["weights"],
        tap=choose_tap(options["tap"], options["tap_module"]),
        image_size=options["image_size"],
        precision=choose_precision(options["precision"], device),
        seed=options["weights_seed"],
    )
    options = options | {"workers": num_workers, "storage_dtype": storage_dtype}
    return _Extraction(request.open(device), request, options, emit)


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


if __name__ == "__main__":
    main()
