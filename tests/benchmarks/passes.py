"""Images/s of a model's bare forward pass on a CPU, by the size of its batches and the library that multiplies.

    python tests/benchmarks/passes.py [--model timm/vit_small_patch16_224] [--image-size 224] [--batch-sizes 4 8 16 32 64]

    python tests/benchmarks/passes.py --compile --batch-sizes 32      # against one graph of torch.compile too

"as it comes" is torch's own choice, MKL on x86; "exact oneDNN" what an extraction asks for (`probes/matmul.py`). Random
weights, images of noise; batches and libraries in turns, medians of the repeats. The last line has the extraction's choice.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict

import torch
from machine import describe_machine

from layerbank.extraction.batch_size import batch_size_on_a_cpu
from layerbank.extraction.forward import SteadyForward
from layerbank.models.backbone import TokenFunction, open_backbone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="timm/vit_small_patch16_224")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[4, 8, 16, 32, 64])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="also a compiled pass, in the extraction's batches")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    backbone = open_backbone(options.model, weights="random", image_size=options.image_size)
    function = backbone.compile(["final"], ["ap"])
    images = torch.randn(max(options.batch_sizes), 3, *backbone.image_size)
    libraries = {"as it comes": torch.inference_mode, "exact oneDNN": function.inference}
    speeds: dict[tuple[str, int], list[float]] = defaultdict(list)
    for turn in range(options.repeats + 1):
        for name, inference in libraries.items():
            for batch_size in options.batch_sizes:
                began_s = time.perf_counter()
                with inference():
                    for batch in torch.split(images, batch_size):
                        backbone.tower.forward(batch)
                if turn:  # the first makes code and memory
                    speeds[name, batch_size].append(len(images) / (time.perf_counter() - began_s))
    print(
        f"{describe_machine()}; {options.model} at {backbone.image_size[0]} px, medians of {options.repeats}, images/s"
    )
    for name in libraries:
        figures = (f"{size}: {statistics.median(speeds[name, size]):.1f}" for size in options.batch_sizes)
        print(f"{name:13s}", *figures, sep="  ")
    print(f"an extraction takes batches of {batch_size_on_a_cpu(backbone)}")
    if options.compile:
        compare_compiled(function, images[: batch_size_on_a_cpu(backbone)], options.repeats)


def compare_compiled(function: TokenFunction, batch: torch.Tensor, num_repeats: int) -> None:
    """Time of the plain pass over that of the compiled one, in turns, and what the compiler takes."""
    plain, compiled = (
        SteadyForward(function, batch_size=len(batch), model_id="", backend=backend, on_event=print)
        for backend in (None, "inductor")
    )

    def seconds(forward: SteadyForward) -> float:
        began_s = time.perf_counter()
        forward(batch)
        return time.perf_counter() - began_s

    seconds(plain)
    compiler_s = seconds(compiled)
    ratios = sorted(seconds(plain) / seconds(compiled) for _ in range(3 * num_repeats))
    spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
    print(
        f"compiled      {statistics.median(ratios):.2f} ({spread}) times as fast, after {compiler_s:.0f} s of compiling"
    )


if __name__ == "__main__":
    main()
