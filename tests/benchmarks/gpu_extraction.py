"""Sections of gpu.py about stage one: models of random weights, half precision on a GPU."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from gpu_sizes import Measured
from jpegs import write_jpegs
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from layerbank.data.sources import open_source
from layerbank.events import Event, ExtractionFinished
from layerbank.extraction.decoding import start_worker_server
from layerbank.extraction.extract import ExtractConfig
from layerbank.extraction.forward import SteadyForward
from layerbank.memory import shortage_of
from layerbank.models.backbone import PRECISIONS, Backbone, open_backbone
from layerbank.models.request import choose_precision, choose_workers

sys.path.append(str(Path(__file__).parent.parent))
from extractions import extract

Figures = Iterator[dict[str, Any]]
KINDS = ("cls", "ap")
EXTRACTION_BATCH = 256


def forward(measured: Measured) -> Figures:
    """Images/s of bytes that lie on the device: the bare pass on ready images, ours with taps at every level, ours compiled."""
    for model in measured.sizes.models:
        backbone = open_model(model, measured)
        flops_an_image = count_flops(backbone)
        peak_flops = product_flops(measured, PRECISIONS[backbone.precision])
        for batch_size in measured.sizes.batch_sizes:
            images = torch.randint(
                0, 256, (batch_size, 3, *backbone.image_size), dtype=torch.uint8, device=measured.device
            )
            for way in ("bare", "taps", *(["taps, compiled"] if measured.on_gpu else [])):
                about = {"model": model, "precision": backbone.precision, "batch": batch_size, "way": way}
                told: list[Event] = []
                measured.forget_peak()
                try:
                    run = make_pass(backbone, way, images, told)
                    first_s = measured.once(run)
                    images_per_s = batch_size / measured.seconds(run)
                except (RuntimeError, MemoryError) as error:
                    yield about | {"too_large" if shortage_of(error) else "error": str(error).partition("\n")[0]}
                    continue
                yield about | {
                    "images_per_s": images_per_s,
                    "first_s": first_s,  # with what the compiler took
                    "share_of_roofline": flops_an_image * images_per_s / peak_flops,
                    "peak_bytes": measured.peak_bytes(),
                    "told": [type(event).__name__ for event in told],
                }
        del backbone


def extraction(measured: Measured) -> Figures:
    """JPEG files to a finished store, everything included, against the bare pass at the same batch; then where the time goes."""
    start_worker_server()
    num_workers = choose_workers(None, measured.device.type)
    for model in measured.sizes.models:
        backbone = open_model(model, measured)
        batch_size = min(EXTRACTION_BATCH, measured.sizes.num_images)
        images = torch.randint(0, 256, (batch_size, 3, *backbone.image_size), dtype=torch.uint8, device=measured.device)
        bare_s = measured.seconds(make_pass(backbone, "bare", images, [])) / batch_size
        with tempfile.TemporaryDirectory() as folder:
            uri = f"folder:{write_jpegs(Path(folder), measured.sizes.num_images)}"
            run_extraction(backbone, uri, batch_size, num_workers)  # the compiler, libraries, the page cache
            measured.forget_peak()
            took_s, finished = run_extraction(backbone, uri, batch_size, num_workers)
            yield {
                "model": model,
                "num_images": measured.sizes.num_images,
                "num_workers": num_workers,
                "images_per_s": measured.sizes.num_images / took_s,
                "of_the_bare_pass": bare_s * measured.sizes.num_images / took_s,
                "shares": {
                    part: getattr(finished, f"{part}_s") / finished.elapsed_s for part in ("decode", "compute", "write")
                },
                "peak_bytes": measured.peak_bytes(),
            }
            yield {"model": model} | timeline(measured, backbone, uri, batch_size, num_workers)
        del backbone


def timeline(measured: Measured, backbone: Backbone, uri: str, batch_size: int, num_workers: int) -> dict[str, Any]:
    """How much of an extraction the device was at work, and at what; the whole timeline as a file for a browser's tracing page."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if measured.on_gpu else [])]
    with profile(activities=activities) as profiled:
        took_s, _ = run_extraction(backbone, uri, batch_size, num_workers)
    device_us: dict[str, float] = {}
    for event in profiled.key_averages():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            kind = "copies" if "emcpy" in event.key else "kernels"
            device_us[kind] = device_us.get(kind, 0.0) + event.self_device_time_total
    file = None
    if measured.folder is not None:
        file = measured.folder / f"timeline-{backbone.model_id.replace('/', '-')}.json"
        profiled.export_chrome_trace(str(file))
    return {"busy": {kind: us / 1e6 / took_s for kind, us in device_us.items()}, "timeline": file and file.name}


def run_extraction(backbone: Backbone, uri: str, batch_size: int, num_workers: int) -> tuple[float, ExtractionFinished]:
    """Seconds of stage one into an empty folder, and what it says of itself."""
    source, events = open_source(uri, "train"), list[Event]()
    arrays = tuple((level, kind) for level in backbone.levels for kind in KINDS)
    config = ExtractConfig(arrays=arrays, batch_size=batch_size, num_workers=num_workers)
    with tempfile.TemporaryDirectory() as root:
        start_s = time.perf_counter()
        extract(backbone, source, config, Path(root), on_event=events.append)
        took_s = time.perf_counter() - start_s
    (finished,) = [event for event in events if isinstance(event, ExtractionFinished)]
    return took_s, finished


def make_pass(backbone: Backbone, way: str, images: torch.Tensor, told: list[Event]) -> Any:
    """One forward pass over a batch of bytes."""
    function = backbone.compile(backbone.levels, KINDS)
    if way == "bare":
        ready = function.normalise(images)

        def bare() -> None:
            with torch.inference_mode():
                backbone.tower.forward(ready)

        return bare
    steady = SteadyForward(
        function,
        batch_size=len(images),
        model_id=backbone.model_id,
        backend="inductor" if way.endswith("compiled") else None,
        on_event=told.append,
    )
    return lambda: steady(images)


def open_model(model: str, measured: Measured) -> Backbone:
    device = str(measured.device)
    return open_backbone(
        model,
        weights="random",
        image_size=measured.sizes.image_size,
        device=device,
        precision=choose_precision("auto", device),
    )


def count_flops(backbone: Backbone) -> int:
    """Of one image's forward pass."""
    dtype = PRECISIONS[backbone.precision]
    image = torch.zeros(1, 3, *backbone.image_size, dtype=dtype, device=backbone.device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        backbone.tower.forward(image)
    return int(counter.get_total_flops())


def product_flops(measured: Measured, dtype: torch.dtype) -> float:
    """FLOP/s of one large matrix product in the model's numbers."""
    a = torch.randn(measured.sizes.product, measured.sizes.product, device=measured.device).to(dtype)
    out = torch.empty_like(a)
    return 2 * measured.sizes.product**3 / measured.seconds(lambda: torch.mm(a, a, out=out))
