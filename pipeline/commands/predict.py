"""`layerbank predict`: the predictions of a trained probe for images."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from . import options as shared


@click.command()
@click.option(
    "--probe",
    "folder",
    type=shared.FOLDER,
    required=True,
    help="Folder that `layerbank probe` saved: RUNS/.../NAME-KEY.",
)
@click.option("--data", required=True, help="images:DIR for images without labels, or any data URI.")
@click.option(
    "--split", default="test", show_default=True, help="Split whose images are predicted, where the data has splits."
)
@click.option(
    "--weights", metavar="FILE", help="The backbone's weights, if they have moved. [default: where they were]"
)
@shared.device
@shared.combine(shared.batch_size(), shared.workers, shared.on_bad_image, shared.allow_code, shared.as_json)
def predict(
    folder: Path,
    data: str,
    split: str,
    weights: str | None,
    device: str,
    batch_size: int | None,
    workers: int | None,
    on_bad_image: str,
    allow_code: tuple[str, ...],
    as_json: bool,
) -> None:
    """Predict the class or value of each image with a trained probe, and print a line of CSV for each.

    \b
    layerbank predict --probe runs/photos/STORE/alf-1a2b3c4d --data images:holiday
    """
    from ..console import Listener, print_json
    from ..data.sources import open_source
    from ..models.request import choose_device, choose_workers
    from ..probing.predict import SavedProbe, predictions_csv

    with Listener(quiet=as_json) as listener:
        device = choose_device(device)
        saved = SavedProbe(folder, weights=weights, device=device, allow_code=allow_code)
        source = open_source(data, split, listener.show)
        predictions = saved.predict(
            source,
            batch_size=batch_size,
            num_workers=choose_workers(workers, device),
            on_bad_image=on_bad_image,
            on_event=listener.show,
        )
        if as_json:
            print_json([asdict(prediction) for prediction in predictions])
        else:
            for line in predictions_csv(predictions):
                click.echo(line, nl=False)  # bytes as they are: a console would drop tabs and bells of names
