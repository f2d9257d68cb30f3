"""What several models save by sharing the decoding.

    python tests/benchmarks/together.py [--images 192] [--repeats 3] [--models timm/vit_tiny_patch16_224 ...]

Random weights, photographs of 224 to 500 pixels as JPEG. In turns: one `extract` for all models, and one for each, one after the
other. Prints the ratio of their times, and how much of the saved time the decodings that were left out would have taken.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from jpegs import write_jpegs

from pipeline.backbones import Backbone, open_backbone
from pipeline.datasets import ImageSource, open_source
from pipeline.extract import ExtractConfig, Extraction, extract_together, spec_of
from pipeline.images import start_worker_server

MODELS = ["timm/vit_tiny_patch16_224", "timm/deit_tiny_patch16_224", "timm/deit_tiny_distilled_patch16_224"]


def extraction_s(groups: list[list[Backbone]], source: ImageSource, num_workers: int) -> float:
    """Seconds to fill the stores of every group, the groups one after the other."""
    with tempfile.TemporaryDirectory() as root:
        start = time.perf_counter()
        for group in groups:
            extractions = [
                Extraction(
                    backbone=backbone,
                    config=ExtractConfig(
                        arrays=tuple((level, "ap") for level in backbone.levels), num_workers=num_workers
                    ),
                    store=spec_of(backbone, source, "float16").store_path(root),
                )
                for backbone in group
            ]
            extract_together(extractions, source)
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    start_worker_server()
    backbones = [open_backbone(model, weights="random", seed=seed) for seed, model in enumerate(arguments.models)]
    with tempfile.TemporaryDirectory() as folder:
        source = open_source(f"folder:{write_jpegs(Path(folder), arguments.images)}", "train")
        start = time.perf_counter()
        for row in range(len(source)):
            source.load(row)
        decode_s = time.perf_counter() - start
        extraction_s([[backbones[0]]], source, arguments.workers)  # warm up
        ratios, shares = [], []
        for _ in range(arguments.repeats):
            one = extraction_s([backbones], source, arguments.workers)
            each = extraction_s([[backbone] for backbone in backbones], source, arguments.workers)
            ratios.append(each / one)
            shares.append((each - one) / (decode_s * (len(backbones) - 1)))
    print(
        f"{len(backbones)} models, {arguments.images} images, {arguments.workers} workers, {arguments.threads} threads"
    )
    print(f"one after the other / together   {statistics.median(ratios):.2f}", sorted(ratios))
    print(f"saved / decodings left out       {statistics.median(shares):.2f}", sorted(shares))


if __name__ == "__main__":
    main()
