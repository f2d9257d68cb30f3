"""What `extract` costs over the bare forward pass, over the slower of decoding and model, and against the reference's way.

    python tests/benchmarks/extraction.py [--images 512] [--repeats 5] [--threads 2] [--workers 0 1 2]
    python tests/benchmarks/extraction.py --data photos --model timm/vit_small_patch16_224 --images 192 --workers 0 1 2

The same images and model in turn: the forward pass alone on tensors that are ready in memory, in the batches and by the library
of products that an extraction has, and as torch comes, in batches of 64; decoding alone in as many processes; and the whole of
stage one (decoding, transform, forward pass with pooled taps at every level, rounding, checksums, writing, fsync) once for each
number of workers. `--reference` adds the way of the authors' code: torch as it comes, batches of 64, decoded in this process for
each of three passes, hooks that keep whole activations, pooled afterwards. `photos` are JPEGs of 224 to 500 pixels. Ratios are
medians over the repeats; 1.0 against the bare pass of the same batches means that extraction is free.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from jpegs import write_jpegs

from layerbank.data.sources import ImageSource, open_source
from layerbank.events import Event, ExtractionFinished
from layerbank.extraction.batch_size import choose_batch_size
from layerbank.extraction.decoding import Rows, decode_batches, start_worker_server
from layerbank.extraction.extract import ExtractConfig
from layerbank.models.backbone import Backbone, open_backbone
from layerbank.models.tower import tapped_modules

sys.path.append(str(Path(__file__).parent.parent))
from extractions import extract

KINDS = ("cls", "ap")
USUAL_BATCH = 64
NUM_REFERENCE_PASSES = 3


def bare_forward_s(
    backbone: Backbone, images: torch.Tensor, batch_size: int, inference: AbstractContextManager[None]
) -> float:
    """Seconds for the model's own forward pass over images in batches, nothing kept."""
    start = time.perf_counter()
    with inference:
        for batch in torch.split(images, batch_size):
            backbone.tower.forward(batch)
    return time.perf_counter() - start


def decoding_s(backbone: Backbone, source: ImageSource, batch_size: int, num_workers: int) -> float:
    """Seconds to decode and transform every image, nothing else running."""
    ranges = [Rows(start, min(start + batch_size, len(source))) for start in range(0, len(source), batch_size)]
    start = time.perf_counter()
    for _ in decode_batches(source, [backbone.geometry], ranges, num_workers=num_workers):
        pass
    return time.perf_counter() - start


def extraction_s(
    backbone: Backbone, source: ImageSource, config: ExtractConfig
) -> tuple[float, int, ExtractionFinished]:
    """Seconds and bytes on disk of stage one into an empty folder, and what it says of itself."""
    events: list[Event] = []
    with tempfile.TemporaryDirectory() as root:
        start = time.perf_counter()
        extract(backbone, source, config, Path(root), on_event=events.append)
        elapsed = time.perf_counter() - start
        size_bytes = sum(path.stat().st_size for path in Path(root).rglob("*.zarr/**/*") if path.is_file())
    finished = events[-1]
    assert isinstance(finished, ExtractionFinished)
    return elapsed, size_bytes, finished


def reference_s(backbone: Backbone, source: ImageSource, batch_size: int) -> float:
    """Seconds of the authors' way: see above."""
    kept: dict[str, torch.Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _, __, output, level=level: kept.__setitem__(level, output.clone()))  # type: ignore[misc]
        for level, module in tapped_modules(backbone.tower, backbone.tap).items()
    ]
    prefix = backbone.layout.num_prefix_tokens
    start = time.perf_counter()
    for _ in range(NUM_REFERENCE_PASSES):
        features = []
        for first in range(0, len(source), batch_size):
            rows = range(first, min(first + batch_size, len(source)))
            images = torch.stack([backbone.transform(source.load(row)[0]) for row in rows])
            with torch.inference_mode():
                backbone.tower.forward(images)
            features.append({level: (tokens[:, 0], tokens[:, prefix:].mean(1)) for level, tokens in kept.items()})
    elapsed = time.perf_counter() - start
    for hook in hooks:
        hook.remove()
    return elapsed


class FirstRows(ImageSource):
    """The first rows of a source, so that a benchmark can be short."""

    def __init__(self, source: ImageSource, count: int) -> None:
        super().__init__(
            name=source.name,
            split=source.split,
            ids=source.ids[:count],
            labels=source.labels[:count],
            class_names=source.class_names,
            sizes=source.labels[:count],
        )
        self._source = source

    def read(self, row: int) -> object:  # type: ignore[override]
        return self._source.read(row)

    def file_of(self, row: int) -> str:
        return self._source.file_of(row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo/vit-s-focus", help="a timm model runs with random weights")
    parser.add_argument("--data", default="demo:digits", help="a data URI, or photos")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--batch-size", type=int, help="of the extraction; its own choice by default")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, nargs="+", default=[0])
    parser.add_argument("--reference", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    start_worker_server()
    weights = None if arguments.model.startswith("demo/") else "random"
    backbone = open_backbone(arguments.model, weights=weights, image_size=arguments.image_size)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.data == "photos":
            source = open_source(f"folder:{write_jpegs(Path(folder), arguments.images)}", "train")
        else:
            source = FirstRows(open_source(arguments.data, "train"), arguments.images)
        measure(backbone, source, arguments)


def measure(backbone: Backbone, source: ImageSource, arguments: argparse.Namespace) -> None:
    """Everything in turns, then the medians."""
    arrays = tuple(
        (level, kind) for level in backbone.levels for kind in KINDS if kind != "cls" or backbone.layout.has_cls
    )
    images = torch.stack([backbone.transform(source.load(row)[0]) for row in range(len(source))])
    function = backbone.compile(["final"], ["ap"])
    batch_size = arguments.batch_size or choose_batch_size(backbone, function)

    def as_extracted() -> float:
        return bare_forward_s(backbone, images, batch_size, function.inference())

    def as_usual() -> float:
        return bare_forward_s(backbone, images, USUAL_BATCH, torch.inference_mode())

    as_extracted(), as_usual()  # warm up
    found: dict[str, list[float]] = defaultdict(list)

    def note(name: str, value: float) -> float:
        found[name].append(value)
        return value

    size_bytes = 0
    for _ in range(arguments.repeats):
        wholes = []
        for workers in arguments.workers:
            bare, usual = as_extracted(), as_usual()
            decoding = decoding_s(backbone, source, batch_size, workers)
            config = ExtractConfig(arrays=arrays, batch_size=arguments.batch_size, num_workers=workers)
            whole, size_bytes, finished = extraction_s(backbone, source, config)
            wholes.append(whole)
            note(f"{workers} workers: bare forward / extract", bare / whole)
            note(f"{workers} workers: bare forward as torch comes / extract", usual / whole)
            note(f"{workers} workers: max(decoding, forward) / extract", max(decoding, bare) / whole)
            note(f"{workers} workers: decoding / bare forward", decoding / bare)
            for part in ("decode_s", "compute_s", "write_s"):
                note(f"{workers} workers: share of the loop, {part[:-2]}", getattr(finished, part) / whole)
        if arguments.reference:
            reference = reference_s(backbone, source, USUAL_BATCH)
            note(f"the reference's way / extract, {arguments.workers[0]} workers", reference / wholes[0])
    tokens_bytes = sum(2 * len(source) * backbone.embed_dim[level] for level, _ in arrays)
    print(f"{arguments.model}, {tuple(images.shape[2:])} px, {len(source)} images of {arguments.data}, batch ", end="")
    print(f"{batch_size}, {arguments.threads} threads, medians of {arguments.repeats}")
    for name, values in found.items():
        print(f"{name:55} {statistics.median(values):6.3f}", [round(value, 3) for value in sorted(values)])
    print(f"{'bytes on disk / tokens (goal <= 1.02)':55} {size_bytes / tokens_bytes:6.4f}")


if __name__ == "__main__":
    main()
