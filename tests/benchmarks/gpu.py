"""Everything that is asked of a GPU, measured in one run: both stages, one JSON line a figure.

    python tests/benchmarks/gpu.py --out gpu.jsonl                    # all sections, on the GPU, within 8 minutes
    python tests/benchmarks/gpu.py --sections step sweep --out gpu.jsonl
    python tests/benchmarks/gpu.py --device cpu --smoke               # that all of it runs: tiny sizes, figures of no use

    truth       gradients, losses and logits of every kind of bank at every precision against float64 on the CPU; the trainer; one
                group of all probes against small ones; CUDA graph against eager; streamed rows on every GPU against the host's
    peak        one large matrix product in each of the numbers, and a copy: what shares of the roofline are of
    sweep       63 settings, 45,000 images, 24 tokens of 768 channels, 100 classes, with validation and refit: seconds of each
                phase, share of the roofline, memory taken and planned (goal: 20 s)
    step        a step of the whole grid: eager, with a CUDA graph of the gradients, with one of all; groups and chunks; how
                often the host waits in it
    forward     S, B and L of random weights: images/s for each batch size, bare, with taps and compiled; share of the roofline
    extraction  stage one from JPEG files to the finished store against the bare pass, and where one second of it goes
    tokens      a store in the GPU's memory: seconds to upload, to take a batch; and streamed through page-locked buffers
    accuracy    what TF32 and bfloat16 change: gradients of one step, and small sweeps over seeds

Each section is a process with a time limit, the most valuable first: an error, a crash or a section that hangs is told on its own
line and by exit code 1, and loses nothing of the others. Lines are written as they come; a run that goes on with the same --out
skips the sections that are finished there. None has met a GPU: what only one does (capture, the compiler, page-locked memory) may
need a hand the first time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gpu_extraction
import gpu_step
import gpu_training
import gpu_truth
import torch
from gpu_sizes import FULL, SMOKE, Measured

from layerbank.errors import Message, RequestError


class Section(NamedTuple):
    """What measures, and the seconds after which its process is ended."""

    measure: Callable[[Measured], Iterator[dict[str, Any]]]
    limit_s: int


SECTIONS = {
    "truth": Section(gpu_truth.truth, 100),
    "peak": Section(gpu_training.peak, 30),
    "sweep": Section(gpu_training.sweep, 120),
    "step": Section(gpu_step.step, 90),
    "forward": Section(gpu_extraction.forward, 90),
    "extraction": Section(gpu_extraction.extraction, 80),
    "tokens": Section(gpu_training.tokens, 40),
    "accuracy": Section(gpu_training.accuracy, 90),
}
SHORTEST_S = 10  # a process that has less is not begun


def main(arguments: list[str] | None = None) -> int:
    """0 if every section ran, 1 if one did not, 2 if there is nothing to run them on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--smoke", action="store_true", help="tiny sizes")
    parser.add_argument("--out", type=Path, metavar="FILE", help="append the lines there too")
    parser.add_argument("--limit", type=int, default=465, metavar="SECONDS", help="of all sections together")
    parser.add_argument("--in-process", action="store_true", help="run the sections here, without limits")
    options = parser.parse_args(arguments)
    try:
        device = check_device(options.device, smoke=options.smoke)
    except RequestError as error:
        print(f"gpu.py: {error}", file=sys.stderr)
        return 2
    finished = finished_sections(options.out)
    sections = [section for section in options.sections if section not in finished]
    if options.in_process:
        measured = Measured(
            device=device, sizes=SMOKE if options.smoke else FULL, folder=options.out and options.out.parent
        )
        failed = [report(section, figures_of(section, measured), options.out) for section in sections]
        return int(any(failed))
    ends_s = time.monotonic() + options.limit
    failed = [run_section(section, options, ends_s) for section in sections]
    return int(any(failed))


def finished_sections(out: Path | None) -> set[str]:
    """The sections whose last run, as the file tells it, came to its end without an error."""
    finished: set[str] = set()
    faulty = False
    for line in out.read_text().splitlines() if out and out.exists() else ():
        figure = json.loads(line)
        faulty = "error" in figure or (faulty and "began" not in figure)
        if "took_s" in figure and not faulty:
            finished.add(figure["section"])
    return finished


def run_section(section: str, options: argparse.Namespace, ends_s: float) -> bool:
    """Run a section in a process of its own; whether something failed."""
    limit_s = min(SECTIONS[section].limit_s, ends_s - time.monotonic())
    if limit_s < SHORTEST_S:
        return report(section, iter([{"error": f"not begun: {limit_s:.0f} s were left"}]), options.out)
    command = [sys.executable, __file__, "--in-process", "--sections", section, "--device", options.device]
    command += ["--smoke"] * options.smoke + (["--out", str(options.out)] if options.out else [])
    process = subprocess.Popen(command, start_new_session=True)
    try:
        code = process.wait(limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # its workers too
        process.wait()
        return report(section, iter([{"error": f"ended after {limit_s:.0f} s"}]), options.out)
    if code not in (0, 1):
        return report(section, iter([{"error": f"its process ended with {code}"}]), options.out)
    return code == 1


def report(section: str, figures: Iterator[dict[str, Any]], out: Path | None) -> bool:
    """Write figures as they come, tracebacks to the file alone if there is one; whether one is an error."""
    failed = False
    for figure in figures:
        failed |= "error" in figure
        line = {"section": section, **figure}
        if out:
            with out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            line.pop("traceback", None)
        print(json.dumps(line), flush=True)
    return failed


def figures_of(section: str, measured: Measured) -> Iterator[dict[str, Any]]:
    """Where and when, then the figures of a section; its error, if there is one, in place of the rest."""
    device = measured.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    began_s = time.perf_counter()
    yield {"device": name, "torch": torch.__version__, "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    try:
        yield from SECTIONS[section].measure(measured)
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
