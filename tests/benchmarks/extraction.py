"""What `extract` costs over the bare forward pass, and what its store costs over the bare tokens.

    python tests/benchmarks/extraction.py [--images 256] [--repeats 5] [--threads 2]

The same images, model and batches in turn, A B A B: the forward pass alone on tensors that are ready in memory, and the whole
of stage one (decoding in a worker process, transform, forward pass with pooled taps at every level, rounding, checksums,
writing, fsync). Prints the ratio of their speeds, the median over the repeats; 1.0 means that extraction is free.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch

from pipeline.backbones import Backbone, open_backbone
from pipeline.datasets import ImageSource, open_source
from pipeline.extract import ExtractConfig, extract, spec_of

KINDS = ("cls", "ap")


def bare_forward_s(backbone: Backbone, batches: list[torch.Tensor]) -> float:
    """Seconds for the model's own forward pass over the batches, nothing kept."""
    start = time.perf_counter()
    with torch.inference_mode():
        for images in batches:
            backbone.tower.forward(images)
    return time.perf_counter() - start


def extraction_s(backbone: Backbone, source: ImageSource, config: ExtractConfig, root: Path) -> tuple[float, int]:
    """Seconds and bytes on disk of stage one into an empty folder, the start of the worker process left out."""
    store = spec_of(backbone, source, config.storage_dtype).store_path(root)
    start = time.perf_counter()
    extract(backbone, source, config, store)
    return time.perf_counter() - start, sum(path.stat().st_size for path in store.rglob("*") if path.is_file())


class FirstRows(ImageSource):
    """The first rows of a source, so that a benchmark can be short."""

    def __init__(self, source: ImageSource, count: int) -> None:
        super().__init__(
            name=source.name,
            split=source.split,
            ids=source.ids[:count],
            labels=source.labels[:count],
            class_names=source.class_names,
            locations=source.ids[:count],
            sizes=source.labels[:count],
        )
        self._source = source

    def read(self, row: int) -> object:  # type: ignore[override]
        return self._source.read(row)

    def file_of(self, row: int) -> str:
        return self._source.file_of(row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo/vit-s-focus")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    backbone = open_backbone(arguments.model, image_size=arguments.image_size)
    source = FirstRows(open_source("demo:digits", "train"), arguments.images)
    arrays = tuple((level, kind) for level in backbone.levels for kind in KINDS)
    config = ExtractConfig(arrays=arrays, batch_size=arguments.batch_size, num_workers=arguments.workers)
    images = torch.stack([backbone.transform(source.load(row)[0]) for row in range(len(source))])
    batches = list(images.split(arguments.batch_size))
    bare_forward_s(backbone, batches[:1])  # warm up
    ratios, rates = [], []
    size = 0
    for _ in range(arguments.repeats):
        root = Path(tempfile.mkdtemp())
        bare = bare_forward_s(backbone, batches)
        whole, size = extraction_s(backbone, source, config, root)
        shutil.rmtree(root)
        ratios.append(bare / whole)
        rates.append(len(source) / whole)
    tokens = sum(2 * len(source) * backbone.embed_dim[level] for level, _ in arrays)
    print(
        f"{arguments.model}, {tuple(images.shape[2:])} px, {len(source)} images, batch {arguments.batch_size}, ", end=""
    )
    print(f"{arguments.threads} threads, {arguments.workers} worker, medians of {arguments.repeats}")
    print(f"extract / bare forward   {statistics.median(ratios):.2f}  (images/s ratio; goal >= 0.85)", sorted(ratios))
    print(f"images/s of extract      {statistics.median(rates):.1f}")
    print(f"bytes on disk / tokens   {size / tokens:.4f}  ({size:,} bytes with labels, ids and journal; goal <= 1.02)")


if __name__ == "__main__":
    main()
