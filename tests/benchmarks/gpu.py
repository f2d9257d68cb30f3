"""Everything that is asked of a GPU, measured in one run: both stages, one JSON line a figure.

    python tests/benchmarks/gpu.py --out gpu.jsonl                    # all sections, on the GPU
    python tests/benchmarks/gpu.py --sections step sweep --out gpu.jsonl
    python tests/benchmarks/gpu.py --device cpu --smoke               # that all of it runs: tiny sizes, figures of no use

    peak        one large matrix product in each of the numbers, and a copy: what shares of the roofline are of
    step        a step of the whole grid: eager, with a CUDA graph of the gradients, with one of all; groups and chunks; how
                often the host waits in it
    sweep       63 settings, 45,000 images, 24 tokens of 768 channels, 100 classes, with validation and refit: seconds of each
                phase, share of the roofline, memory taken and planned (goal: 60 s)
    accuracy    what TF32 and bfloat16 change: gradients of one step, and small sweeps over seeds
    tokens      a store in the GPU's memory: seconds to upload, to take a batch; and streamed through page-locked buffers
    forward     S, B and L of random weights: images/s for each batch size, bare, with taps and compiled; share of the roofline
    extraction  stage one from JPEG files to the finished store against the bare pass, and where one second of it goes

Sections know nothing of each other: an error in one, told on its own line and by exit code 1, loses nothing of the others.
Lines are written as they come. Sections are in gpu_training.py, gpu_step.py and gpu_extraction.py. None has met a GPU: what only
one does (capture, the compiler, page-locked memory) may need a hand the first time.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gpu_extraction
import gpu_step
import gpu_training
import torch
from gpu_sizes import FULL, SMOKE, Measured

from layerbank.errors import Message, RequestError

SECTIONS = {
    "peak": gpu_training.peak,
    "step": gpu_step.step,
    "sweep": gpu_training.sweep,
    "accuracy": gpu_training.accuracy,
    "tokens": gpu_training.tokens,
    "forward": gpu_extraction.forward,
    "extraction": gpu_extraction.extraction,
}


def main(arguments: list[str] | None = None) -> int:
    """0 if every section ran, 1 if one did not, 2 if there is nothing to run them on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--smoke", action="store_true", help="tiny sizes")
    parser.add_argument("--out", type=Path, metavar="FILE", help="append the lines there too")
    options = parser.parse_args(arguments)
    try:
        device = check_device(options.device, smoke=options.smoke)
    except RequestError as error:
        print(f"gpu.py: {error}", file=sys.stderr)
        return 2
    measured = Measured(
        device=device, sizes=SMOKE if options.smoke else FULL, folder=options.out and options.out.parent
    )
    failed = False
    for section in options.sections:
        for figure in figures_of(section, measured):
            failed |= "error" in figure
            line = json.dumps({"section": section, **figure})
            print(line, flush=True)
            if options.out:
                with options.out.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")
    return int(failed)


def figures_of(section: str, measured: Measured) -> Iterator[dict[str, Any]]:
    """Where and when, then the figures of a section; its error, if there is one, in place of the rest."""
    device = measured.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    began_s = time.perf_counter()
    yield {"device": name, "torch": torch.__version__, "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    try:
        yield from SECTIONS[section](measured)
    except Exception as error:  # whatever it is, the other sections are worth their minutes
        yield {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()
    yield {"took_s": time.perf_counter() - began_s}


def check_device(name: str, *, smoke: bool) -> torch.device:
    """The device to measure on.

    Raises:
        RequestError: there is no such GPU, or a CPU is to do a GPU's work.
    """
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RequestError(
            Message(
                where=f"--device {name}",
                expected="a GPU that torch can use",
                got=f"none (torch {torch.__version__})",
                todo="Run it where one is, or see that it works: --device cpu --smoke.",
            )
        )
    if device.type == "cpu" and not smoke:
        raise RequestError(
            Message(
                where="--device cpu",
                expected="--smoke with it",
                got="sizes of a GPU",
                todo="Add --smoke: a CPU would take days, and its figures come from the other benchmarks.",
            )
        )
    return device


if __name__ == "__main__":
    sys.exit(main())
