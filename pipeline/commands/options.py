"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

Command = Callable[..., Any]


def combine(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator, shown by --help in this order."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


device = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, ...")


def batch_size(more: str = "") -> Callable[[Command], Command]:
    """How many images go through a model at once; `more` is said of the default."""
    return click.option(
        "--batch-size",
        type=click.IntRange(1),
        help="Images a forward pass. [default: on a CPU up to 64, of 1,600 tokens together (8 of 224 pixels in patches of 16); on "
        f"a GPU the power of two that fits its free memory, up to 512{more}]",
    )


workers = click.option(
    "--workers",
    type=click.IntRange(0),
    help="Decoding processes; 0 decodes in this one. [default: a CPU one for each 16 cores (0 below), a GPU every core but one]",
)
on_bad_image = click.option(
    "--on-bad-image",
    type=click.Choice(["stop", "skip"]),
    default="stop",
    show_default=True,
    help="What to do with an image that cannot be read; skipped ids are recorded.",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON, and no progress.")
FOLDER = click.Path(file_okay=False, path_type=Path)

_MODELS = "timm/NAME, open_clip/ARCH/PRETRAINED, hf-hub:ORG/REPO, torchhub:REPO:ENTRY, demo/vit-s-focus; see `layerbank models`."
one_model = combine(
    click.option("--model", required=True, help=_MODELS),
    click.option("--weights", metavar="FILE", help="A file of weights, or `random`. [default: the pretrained ones]"),
)
several_models = combine(
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
extraction_options = combine(
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
    click.option(
        "--cache", "cache_root", type=FOLDER, default="caches", show_default=True, help="Folder of all stores."
    ),
    device,
    batch_size("; a store keeps the size it was begun with"),
    click.option(
        "--compile/--no-compile",
        "compile_model",
        default=None,
        help="Make one graph of the model with torch.compile. [default: compile on a GPU; on a CPU it takes a C++ compiler and ten "
        "seconds to a minute, and passes are up to a third faster]",
    ),
    workers,
    on_bad_image,
)
