"""`layerbank export`: a trained probe and its backbone as one file that runs without layerbank."""

from __future__ import annotations

from pathlib import Path

import click

from . import options as shared


@click.command()
@click.argument("probe", type=shared.FOLDER)
@click.option(
    "--format",
    type=click.Choice(["torch", "onnx"]),
    default="torch",
    show_default=True,
    help="torch: a program of torch.export, .pt2. onnx: needs pip install 'layerbank[onnx]'.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE|FOLDER",
    help="File that ends in .pt2 or .onnx, or a folder, which gets preprocess.json, preprocess.py and metadata.json too. "
    "Must not exist.",
)
@click.option(
    "--weights", metavar="FILE", help="The backbone's weights, if they have moved. [default: where they were]"
)
@shared.combine(shared.allow_code, shared.as_json)
def export(
    probe: Path, format: str, output: Path, weights: str | None, allow_code: tuple[str, ...], as_json: bool
) -> None:
    """Export a trained probe with its backbone as one module that takes uint8 images [B, 3, H, W].

    The exported module is compared with `layerbank predict` on ten random images before it is written.

    \b
    layerbank export runs/photos/STORE/alf-1a2b3c4d --format onnx --output classifier
    """
    from dataclasses import asdict

    from ..console import Listener, print_json
    from ..probing.export import check_export, export_probe
    from ..probing.predict import SavedProbe
    from ..quantities import size

    with Listener(quiet=as_json):
        check_export(output, format)
        done = export_probe(SavedProbe(probe, weights=weights, allow_code=allow_code), output, format)
    if as_json:
        print_json({**asdict(done), "path": str(done.path)})
    else:
        click.echo(
            f"{done.path}: {size(done.size_bytes)}. For {done.num_images} random images, in batches of 1, 2 and 7, its outputs "
            f"differ from those of predict by at most {done.difference:.1e}, where the largest is {done.largest_output:.3g}."
        )
