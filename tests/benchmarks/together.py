"""What several models save by sharing the decoding, and what the saving could be at most.

    python tests/benchmarks/together.py [--image-size 64] [--images 192] [--repeats 5] [--workers 0 1]
    python tests/benchmarks/together.py --image-size 224

Models with random weights, photographs as JPEG, every image cropped and resized alike. In turns: one `extract` for all models, and
one for each, one after the other. Without workers CPU time is told, which other programs on the machine hardly touch, and with
it what is expected: the decodings that are left out, as a part of what the extractions one by one take. With workers wall time is.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from jpegs import write_jpegs

from layerbank.data.sources import ImageSource, open_source
from layerbank.extraction.decoding import Rows, decode_batches, start_worker_server
from layerbank.extraction.extract import ExtractConfig, Extraction, extract_together
from layerbank.models.backbone import Backbone, open_backbone

sys.path.append(str(Path(__file__).parent.parent))
from extractions import rows_of

MODELS = ["timm/vit_tiny_patch16_224", "timm/deit_tiny_patch16_224", "timm/deit_tiny_distilled_patch16_224"]
Clock = Callable[[], float]


def extraction_s(groups: list[list[Backbone]], source: ImageSource, num_workers: int, clock: Clock) -> float:
    """Seconds to fill the stores of every group, the groups one after the other."""
    with tempfile.TemporaryDirectory() as root:
        start = clock()
        for group in groups:
            extractions = [
                Extraction(
                    backbone=backbone,
                    config=ExtractConfig(
                        arrays=tuple((level, "ap") for level in backbone.levels), num_workers=num_workers
                    ),
                    cache_root=Path(root),
                )
                for backbone in group
            ]
            extract_together(extractions, rows_of(source, Path(root)))
        return clock() - start


def decoding_s(backbone: Backbone, source: ImageSource, clock: Clock) -> float:
    """Seconds to decode and crop every image in this process."""
    ranges = [Rows(start, min(start + 64, len(source))) for start in range(0, len(source), 64)]
    start = clock()
    for _ in decode_batches(source, [backbone.geometry], ranges, num_workers=0):
        pass
    return clock() - start


def told(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    start_worker_server()
    backbones = [
        open_backbone(model, weights="random", seed=seed, image_size=arguments.image_size)
        for seed, model in enumerate(arguments.models)
    ]
    print(
        f"{len(backbones)} models at {arguments.image_size} px, {arguments.images} images, {arguments.threads} threads: "
        "one after the other / together"
    )
    with tempfile.TemporaryDirectory() as folder:
        source = open_source(f"folder:{write_jpegs(Path(folder), arguments.images)}", "train")
        for num_workers in arguments.workers:
            clock = time.perf_counter if num_workers else time.process_time
            extraction_s([backbones], source, num_workers, clock)  # warm up
            ratios, expected = [], []
            for _ in range(arguments.repeats):
                together_s = extraction_s([backbones], source, num_workers, clock)
                each_s = extraction_s([[backbone] for backbone in backbones], source, num_workers, clock)
                left_out_s = (len(backbones) - 1) * decoding_s(backbones[0], source, clock)
                ratios.append(each_s / together_s)
                expected.append(each_s / (each_s - left_out_s))
            if num_workers:
                print(f"  {num_workers} workers, wall time: {told(ratios)}")
            else:
                print(f"  no workers, CPU time: {told(ratios)}; expected {told(expected)}")


if __name__ == "__main__":
    main()
