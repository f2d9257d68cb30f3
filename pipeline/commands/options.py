"""Options that several commands share."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

Command = Callable[..., Any]


def combine(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator, shown by --help in this order."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


class CommandGroup(click.Group):
    """A group whose --help shows the first sentence of each command as a whole; click would cut it at the end of a line.

    Its commands refuse an option of one value that is given several times; click would take the last.
    """

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        if command is not None:
            _check_given_once(click.Context(command, info_name=name, parent=ctx), rest)
        return name, command, rest

    def get_help(self, ctx: click.Context) -> str:
        columns = shutil.get_terminal_size().columns
        if columns < 52:  # click writes lines of at least 50
            ctx.terminal_width = columns - 1
        return super().get_help(ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, one.get_short_help_str(limit=1000)) for name, one in sorted(self.commands.items())]
            )


def _check_given_once(ctx: click.Context, args: list[str]) -> None:
    """Raise RequestError for an option that takes one value and has several, or is both set and unset."""
    from ..errors import RequestError

    parser = ctx.command.make_parser(ctx)
    options = [one for one in ctx.command.params if isinstance(one, click.Option) and not (one.multiple or one.count)]
    for option in options:  # as if they took several values
        if option.is_flag:
            for names in (option.opts, option.secondary_opts):
                parser.add_option(option, names, option.name, action="append_const", const=names and names[0])
        else:
            parser.add_option(option, option.opts, option.name, action="append", nargs=option.nargs)
    try:
        given, _, _ = parser.parse_args(list(args))
    except click.UsageError:
        return  # the command raises it again
    for option in options:
        values = given.get(option.name, [])
        if len(set(values) if option.is_flag else values) > 1:
            raise RequestError(
                "layerbank.one_value",
                option=option.opts[0],
                command=ctx.command_path.partition(" ")[2],
                number=len(values),
                values=", ".join(map(str, values)),
            )


class OutputFile(click.Path):
    """A file to write; what must not be replaced is refused before the command begins.

    Args:
        dash: whether `-` is standard output.
    """

    def __init__(self, *, dash: bool = True) -> None:
        super().__init__(dir_okay=False, path_type=Path)
        self.dash = dash

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        from ..errors import RequestError
        from ..outputs import STDOUT, check_output

        path, where = Path(value), _name_of(param)
        if path == STDOUT and not self.dash:
            raise RequestError("layerbank.not_to_stdout", where=where)
        check_output(path, where)
        return path


class Folder(click.Path):
    """A folder of this machine, which need not be there; a URL is refused."""

    def __init__(self) -> None:
        super().__init__(file_okay=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from ..outputs import check_local

        check_local(Path(value), _name_of(param))
        return super().convert(value, param, ctx)


class OutputFolder(click.Path):
    """A folder to write files into; it is made if nothing has its name."""

    def __init__(self) -> None:
        super().__init__(file_okay=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        from ..errors import RequestError
        from ..outputs import check_folder

        path, where = Path(value), _name_of(param)
        if str(path) == "-":
            raise RequestError("layerbank.not_to_stdout", where=where)
        check_folder(path, where)
        return path


def _name_of(param: click.Parameter | None) -> str:
    return param.opts[0] if isinstance(param, click.Option) else str(param and param.name).upper()


def check_answers(events: Path | None, as_json: bool) -> None:
    """Refuse `--events -` together with `--json`.

    Raises:
        RequestError: both ask for standard output.
    """
    from ..outputs import STDOUT, check_different

    check_different({"--events": events, "--json": STDOUT if as_json else None})


@contextmanager
def answers_beside(*outputs: Path | None) -> Iterator[None]:
    """Within it answers go to standard error, if an output has standard output for itself."""
    with redirect_stdout(sys.stderr) if Path("-") in outputs else nullcontext():
        yield


FILE = click.Path(dir_okay=False, path_type=Path)
OUTPUT = OutputFile()
FOLDER = Folder()

device = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, ...")
one_store = click.argument("store", type=FOLDER)
cache_root = click.option(
    "--cache", "cache_root", type=FOLDER, default="caches", show_default=True, help="Folder of all stores."
)
runs_root = click.option(
    "--runs", "runs_root", type=FOLDER, default="runs", show_default=True, help="Folder of all results."
)
memory = click.option(
    "--memory",
    help="Host memory that the program may use, such as 4GB; tokens that do not fit are streamed from the store, and a grid "
    "that does not fit is trained in parts. [default: 80 % of what is free]",
)
engine = click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Where the processes of --processes run: on this machine, or on the Ray cluster that RAY_ADDRESS names (without it, on a "
    "Ray of this machine alone), one a GPU, else one a node.",
)


def batch_size(more: str = "") -> Callable[[Command], Command]:
    """Images per forward pass; `more` is appended to the description of the default."""
    return click.option(
        "--batch-size",
        type=click.IntRange(1),
        help="Images per forward pass. [default: on a CPU up to 64 images and 1,600 tokens (8 images of 224 pixels in patches of "
        f"16); on a GPU up to 512, as its free memory holds{more}]",
    )


workers = click.option(
    "--workers",
    type=click.IntRange(0),
    help="Number of decoding processes; 0 decodes in the main process. [default: with a GPU all cores but one, without one per 16 "
    "cores]",
)
on_bad_image = click.option(
    "--on-bad-image",
    type=click.Choice(["stop", "skip"]),
    default="stop",
    show_default=True,
    help="Stop at an image that cannot be read, or skip it and record its id.",
)
events = click.option(
    "--events",
    type=OUTPUT,
    metavar="FILE",
    help="Append every event to this file, a line of JSON each; - is standard output.",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON, without progress.")

allow_code = click.option(
    "--allow-code",
    metavar="MODEL",
    multiple=True,
    help="Let this model run code of its own, with your rights; needed for torchhub: models that your trusted.toml does not "
    "list. May be given several times. [default: none]",
)


class UnlessStore(click.Option):
    """A required option, unless `--store` takes its place."""

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        is_required = self.required
        self.required = is_required and ctx.get_parameter_source("store") != ParameterSource.COMMANDLINE
        try:
            return super().process_value(ctx, value)
        finally:
            self.required = is_required


_MODELS = (
    "timm/NAME, open_clip/ARCH/PRETRAINED, ORG/NAME, transformers:DIR, torchhub:REPO:ENTRY, demo/vit-s-focus; "
    "see `layerbank models`."
)
one_model = combine(
    click.option("--model", cls=UnlessStore, required=True, help=_MODELS),
    click.option("--weights", metavar="FILE", help="A checkpoint file, or `random`. [default: pretrained weights]"),
)
several_models = combine(
    click.option(
        "--model",
        "models",
        required=True,
        multiple=True,
        help=f"{_MODELS} May be given several times: each image is then decoded once for all models.",
    ),
    click.option(
        "--weights",
        "several_weights",
        metavar="FILE",
        multiple=True,
        help="A checkpoint file, `random` or `pretrained`; one for each --model, in the same order. "
        "[default: pretrained weights]",
    ),
)
extraction_options = combine(
    click.option(
        "--weights-key",
        metavar="KEY",
        help="Which set of weights of a checkpoint file, such as teacher. [default: the only one, or the one with ema, teacher "
        "or target in its name]",
    ),
    click.option(
        "--weights-seed", type=click.IntRange(0), default=0, show_default=True, help="Seed for random initial weights."
    ),
    click.option(
        "--data",
        cls=UnlessStore,
        required=True,
        help="folder:DIR, csv:FILE, parquet:FILE, hf:DIR, wds:DIR, hdf5:FILE, npz:FILE, demo:digits; see `layerbank datasets`.",
    ),
    click.option(
        "--trust-files",
        is_flag=True,
        help="Take the content hash of an image, without reading it, from a store of the same data set and split that has one of "
        "the same name and size: an image that was replaced by another of its size goes unnoticed. Only for folder:, images:, "
        "csv:, wds: and Arrow files of hf:, whose images have known sizes; images of other sources are hashed. "
        "[default: hash every image that is new to the content index]",
    ),
    click.option(
        "--tap",
        type=click.Choice(["norm2", "block"]),
        help="Where a transformer block is read: output of the norm before its MLP, or output of the block. [default: norm2]",
    ),
    click.option(
        "--tap-module",
        metavar="PATTERN",
        help="Instead of --tap, for a model with other module names: the name of a module with {i} for the block index, such as "
        "'layers.{i}.ffn_norm'.",
    ),
    click.option(
        "--image-size",
        type=click.IntRange(1),
        help="Side of the square input in pixels. [default: that of the model]",
    ),
    click.option(
        "--precision",
        type=click.Choice(["auto", "float32", "float16", "bfloat16"]),
        default="auto",
        show_default=True,
        help="Dtype of weights and activations; auto is float16 on a GPU and float32 on a CPU.",
    ),
    click.option(
        "--storage-dtype",
        metavar="DTYPES",
        default="float16",
        show_default=True,
        help="Dtype of tokens on disk: float16, float32 or bfloat16, or one a kind: cls=float32,ap=float16.",
    ),
    click.option(
        "--parity-threshold",
        type=float,
        help="Stop before anything is written if a token of the first 32 images of a split has a cosine similarity below this "
        "value (0 to 1) to a float32 run, or a saturated or non-finite value. [default: no check]",
    ),
    click.option(
        "--background",
        metavar="COLOUR",
        default="white",
        show_default=True,
        help="Ground of transparent images: white, black or #rrggbb; drop ignores transparency.",
    ),
    click.option(
        "--exif-orientation/--no-exif-orientation",
        default=False,
        show_default=True,
        help="Turn images as their EXIF data say. TIFF files are always turned.",
    ),
    click.option(
        "--max-pixels",
        type=click.IntRange(1),
        default=178_956_970,
        show_default=True,
        help="Width times height above which an image counts as one that cannot be read.",
    ),
    click.option(
        "--views",
        type=click.IntRange(0, 65_535),
        default=0,
        show_default=True,
        help="Number of augmented views (random crops, randomly mirrored) stored for each training image beside its centre view.",
    ),
    click.option(
        "--view-scale",
        type=click.FloatRange(0, 1, min_open=True),
        default=0.08,
        show_default=True,
        help="Smallest fraction of the image area that a view keeps.",
    ),
    click.option("--view-flip/--no-view-flip", default=True, show_default=True, help="Mirror half of the views."),
    cache_root,
    device,
    batch_size("; a store keeps the batch size it was started with"),
    click.option(
        "--compile/--no-compile",
        "compile_model",
        default=None,
        help="Compile the model with torch.compile. [default: compile on a GPU; on a CPU it needs a C++ compiler and ten seconds "
        "to a minute, and makes passes up to a third faster]",
    ),
    workers,
    on_bad_image,
    allow_code,
)


def warn_of_plugins(noun: str, broken: Mapping[str, str]) -> None:
    """Name the plug-ins that cannot be loaded, on standard error."""
    for name, reason in broken.items():
        click.echo(f"warning: the {noun} {name} cannot be loaded: {reason}", err=True)


cases = combine(
    click.option(
        "--labels",
        type=FILE,
        metavar="FILE",
        help="A table (.csv, .tsv, .jsonl, .parquet) that is joined to the images by a column of sample ids or paths: id, path, "
        "image, ... [default: the table of the data]",
    ),
    click.option(
        "--target",
        "targets",
        metavar="COLUMNS",
        help="Columns of the table to predict, with commas between, each with results of its own. [default: the labels of the "
        "data]",
    ),
    click.option(
        "--allow-missing",
        is_flag=True,
        help="Leave out images without a row or a value in the table, and rows without an image.",
    ),
    click.option("--group", metavar="COLUMN", help="Column of groups, such as patients, that are never on two sides."),
    click.option(
        "--split-column",
        metavar="COLUMN",
        help="Column of the table that names the split of each image; the data are opened without splits (split `all`).",
    ),
    click.option(
        "--val-split",
        metavar="SPLIT",
        help="Split that settings are chosen by; it is never trained on. [default: a fraction of the training images]",
    ),
    click.option("--train-rows", type=FILE, metavar="FILE", help="Train on these images: sample ids, one a line."),
    click.option("--test-rows", type=FILE, metavar="FILE", help="Test on these images: sample ids, one a line."),
    click.option(
        "--shots",
        metavar="NUMBERS",
        help="Train on so many images of each class: 1,2,5,10. Settings are chosen by as many others, at most 4.",
    ),
    click.option(
        "--train-fraction",
        "train_fractions",
        metavar="PERCENTAGES",
        help="Train on so much of each class: 1%,10%. Smaller parts lie within larger ones.",
    ),
    click.option(
        "--draws",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help="How often --shots and --train-fraction are drawn.",
    ),
    click.option(
        "--folds",
        type=click.IntRange(2),
        help="Divide the training split into so many folds and test on each; --test-split is not read.",
    ),
)
