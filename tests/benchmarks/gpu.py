"""The sweep of the paper on a GPU: 63 settings on 45,000 images, 24 tokens of 768 channels, 100 classes, with validation and refit.

    python tests/benchmarks/gpu.py                         # float32, tf32 and bfloat16, in turns
    python tests/benchmarks/gpu.py --computes tf32 --repeats 3 --json gpu.json
    python tests/benchmarks/gpu.py --group-size 21 --chunk-size 1024 --computes tf32 --step-only    # tuning
    python tests/benchmarks/gpu.py --num-samples 400 --num-tokens 4 --embed-dim 32 --num-heads 4 \
        --num-classes 5 --min-steps 20 --computes float32 bfloat16      # that it runs, on a CPU

Tokens are noise around a mean of their class, normalised, and lie on the device. For each way to compute: wall seconds
of each phase, the products of the grid's training against a matrix product of 8192^3 (1024^3 on a CPU) in the same
numbers and run, the most memory that was taken, how often the host waited in a step, what was chosen, and what that is
worth on validation and test images. The accuracy of one way against another is that of one seed and one data set.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from probes import PAPER, ArraySource, AttentiveBank, AttentiveProbe, Head, TrainingProtocol, fit_bank, run_sweep
from probes.bank import CHUNK_SIZE, GROUP_SIZE
from probes.products import Products
from probes.sources import l2_normalize

SPREAD = 4.0  # of the noise, in distances of a class from the mean: hard enough that settings differ


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--computes", nargs="+", default=["float32", "tf32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=1, help="sweeps of each, in turns; the median counts")
    parser.add_argument("--num-samples", type=int, default=45_000)
    parser.add_argument("--num-tokens", type=int, default=24)
    parser.add_argument("--embed-dim", type=int, default=768)
    parser.add_argument("--num-heads", type=int, default=24)
    parser.add_argument("--num-classes", type=int, default=100)
    parser.add_argument("--min-steps", type=int, default=PAPER.min_steps)
    parser.add_argument("--group-size", type=int, default=GROUP_SIZE, help="of --step-only; a sweep plans its own")
    parser.add_argument("--chunk-size", type=int, default=CHUNK_SIZE, help="likewise")
    parser.add_argument("--step-only", action="store_true", help="steps of the whole grid, no sweep")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    options = parser.parse_args()
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    print(f"{name}, torch {torch.__version__}")
    protocol = replace(PAPER, min_steps=options.min_steps)
    train, test = (make_source(options, count, seed, device) for seed, count in ((0, options.num_samples), (1, 5000)))
    figures: dict[str, list[dict[str, Any]]] = {compute: [] for compute in options.computes}
    for _ in range(options.repeats):
        for compute in options.computes:
            chosen = replace(protocol, compute=compute)
            steps = measure_steps(options, train, chosen, device)
            sweep = {} if options.step_only else measure_sweep(options, train, test, chosen, device)
            figures[compute].append({"peak_flops": measure_peak(compute, device), **steps, **sweep})
    for compute, of_compute in figures.items():
        show(compute, of_compute)
    if options.json:
        options.json.write_text(json.dumps({"device": name, "torch": torch.__version__, "figures": figures}, indent=1))


def make_source(options: argparse.Namespace, num_samples: int, seed: int, device: torch.device) -> ArraySource:
    shape = options.num_tokens, options.embed_dim
    centres = torch.randn(options.num_classes, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    labels = torch.arange(num_samples) % options.num_classes
    tokens = torch.empty(num_samples, *shape, device=device)
    generator = torch.Generator(device).manual_seed(seed + 1)
    for start in range(0, num_samples, 1024):
        rows = labels[start : start + 1024].to(device)
        noise = torch.randn(len(rows), *shape, generator=generator, device=device)
        tokens[start : start + 1024] = l2_normalize(centres[rows] + SPREAD * noise)
    return ArraySource(tokens, labels, options.num_classes)


def measure_sweep(
    options: argparse.Namespace,
    train: ArraySource,
    test: ArraySource,
    protocol: TrainingProtocol,
    device: torch.device,
) -> dict[str, Any]:
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    start_s = time.perf_counter()
    result = run_sweep(
        Head(kind="attentive", num_heads=options.num_heads),
        train,
        lambda: test,
        protocol,
        memory_bytes=int(0.8 * torch.cuda.mem_get_info(device)[0]) if on_gpu else None,
        device=device,
    )
    total_s = time.perf_counter() - start_s
    assert result.selection is not None
    assert result.memory is not None
    products = count_products(options) * result.selection.batch_size * result.selection.num_steps * len(result.scores)
    return {
        "total_s": total_s,
        "seconds": result.seconds,
        "flops": 2 * products / result.seconds["select"],
        "memory_bytes": torch.cuda.max_memory_allocated(device) if on_gpu else None,
        "planned_bytes": result.memory.total_bytes,
        "num_banks": result.memory.num_banks,
        "chosen": None if result.chosen is None else asdict(result.chosen),
        "validation": result.validation,
        "test": None if result.test is None else result.test.balanced_accuracy,
    }


def measure_steps(
    options: argparse.Namespace, train: ArraySource, protocol: TrainingProtocol, device: torch.device
) -> dict[str, Any]:
    """A step of the whole grid, without whatever begins and ends a training; and how often the host waits in it."""
    settings = protocol.settings(Head(kind="attentive", num_heads=options.num_heads))
    probe = AttentiveProbe(options.embed_dim, options.num_heads, options.num_classes)
    bank = AttentiveBank(
        [probe] * len(settings),
        [setting.dropout for setting in settings],
        device=device,
        compute=protocol.compute,
        group_size=options.group_size,
        chunk_size=options.chunk_size,
    )
    rows = torch.arange(len(train.labels))

    def run(num_steps: int) -> float:
        return timed(lambda: fit_bank(bank, train, rows, settings, protocol, max_steps=num_steps), device)

    run(2)
    waits = [count_waits(lambda n=num_steps: run(n), device) for num_steps in (2, 6)]
    few_s, many_s = run(2), run(12)
    return {"step_s": (many_s - few_s) / 10, "waits_a_step": (waits[1] - waits[0]) / 4}


def count_waits(work: Callable[[], object], device: torch.device) -> int:
    """Of the host for the GPU, as torch sees them."""
    if device.type != "cuda":
        return 0
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in seen)


def measure_peak(compute: str, device: torch.device) -> float:
    """FLOP/s of one large matrix product in these numbers."""
    size = 8192 if device.type == "cuda" else 1024
    products = Products(compute, torch.float32, device)
    a, out = products.factor(torch.randn(size, size, device=device)), torch.empty(size, size, device=device)
    with products.chosen():
        products.mm(a, a, out=out)
        return 2 * 10 * size**3 / timed(lambda: [products.mm(a, a, out=out) for _ in range(10)], device)


def count_products(options: argparse.Namespace) -> int:
    """Multiplications a sample and probe: 4 of T D H, 6 of D I, 3 of D C."""
    inner_dim = options.num_heads * 2 * (options.embed_dim // options.num_heads)
    wide = 4 * options.num_tokens * options.num_heads + 6 * inner_dim + 3 * options.num_classes
    return int(wide * options.embed_dim)


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Wall seconds until the device has done the work."""
    start_s = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start_s


def show(compute: str, figures: list[dict[str, Any]]) -> None:
    last = figures[-1]
    line = f"{compute:9} step {1e3 * median(one['step_s'] for one in figures):.1f} ms, waits a step {last['waits_a_step']:g}"
    if "total_s" in last:
        share = median(one["flops"] / one["peak_flops"] for one in figures)
        phases = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in last["seconds"].items())
        memory = "" if last["memory_bytes"] is None else f"{last['memory_bytes'] / 2**30:.1f} GiB taken, "
        line += (
            f"; sweep {median(one['total_s'] for one in figures):.1f} s ({phases}); {last['flops'] / 1e12:.2f} TFLOP/s, "
            f"{share:.0%} of a matrix product's; {memory}{last['planned_bytes'] / 2**30:.1f} GiB planned, "
            f"{last['num_banks']} banks; chosen {last['chosen']}, validation {last['validation']}, test {last['test']}"
        )
    print(line, flush=True)


if __name__ == "__main__":
    main()
