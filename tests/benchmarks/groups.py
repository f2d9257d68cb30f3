"""Probes trained together against the same probes one after the other, on the same random tokens.

    python tests/benchmarks/groups.py                        # six probes, medians of 3
    python tests/benchmarks/groups.py --repeats 1 --images 400 --min-steps 20

A group gathers and jitters a batch once for all of its probes; alone, each has a source with its own tokens only. The results are
equal to the last bit (tests/test_groups.py), which is checked. In turns in one process on one thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import torch
from machine import describe_machine

from layerbank.probes import (
    QUICK,
    ArraySource,
    Candidate,
    ColumnBlock,
    Head,
    SweepResult,
    TrainingProtocol,
    columns_of,
    l2_normalize,
    run_sweeps,
)

LEVELS = [*(f"block.{number}" for number in range(1, 12)), "final"]
KINDS = {"cls": 1, "ap": 1, "grid2": 4}


def candidates() -> dict[str, Candidate]:
    """The six probes of the demo study."""
    every = [f"{level}/{kind}" for level in LEVELS for kind in ("cls", "ap")]
    last = ("final/cls", "final/ap")
    grid = [f"{level}/{kind}" for level in LEVELS for kind in ("cls", "grid2")]
    linear = Head(kind="linear")
    return {
        "linear-cls": Candidate(head=linear, blocks=("final/cls",)),
        "linear-last": Candidate(head=linear, blocks=last),
        "linear-all": Candidate(head=linear, blocks=tuple(every)),
        "attn-last": Candidate(head=Head(kind="attentive", num_heads=2), blocks=last),
        "alf": Candidate(head=Head(kind="attentive", num_heads=24), blocks=tuple(every)),
        "alf-grid2": Candidate(head=Head(kind="attentive", num_heads=24), blocks=tuple(grid)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="turns; the median counts")
    parser.add_argument("--images", type=int, default=800)
    parser.add_argument("--embed-dim", type=int, default=192)
    parser.add_argument("--min-steps", type=int, default=40, help="of a training; the grid is QUICK's")
    parser.add_argument("--probes", nargs="+", choices=list(candidates()), default=list(candidates()))
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{describe_machine()}, {options.repeats} turns")
    source = make_source(options.images, options.embed_dim)
    protocol = replace(QUICK, epochs=1, min_steps=options.min_steps)
    chosen = [candidates()[name] for name in options.probes]
    lone = [hold_only(source, one) for one in chosen]
    train(chosen, source, replace(protocol, min_steps=1))  # code paths of the first step
    times: dict[str, list[tuple[float, float]]] = {"alone": [], "together": []}
    for _ in range(options.repeats):
        alone, spent = timed(lambda: [train([one], own, protocol)[0] for one, own in zip(chosen, lone, strict=True)])
        times["alone"].append(spent)
        together, spent = timed(lambda: train(chosen, source, protocol))
        times["together"].append(spent)
        assert all(
            one.test_logits is not None
            and other.test_logits is not None
            and torch.equal(one.test_logits, other.test_logits)
            for one, other in zip(alone, together, strict=True)
        )
    ratios = [[one / other for one, other in zip(*turn, strict=True)] for turn in zip(*times.values(), strict=True)]
    cpu, wall = ([turn[place] for turn in ratios] for place in (0, 1))
    print(
        f"{' '.join(options.probes)}: {options.images} images, D {options.embed_dim}, at least {options.min_steps} steps\n"
        f"  one after the other {median(spent for spent, _ in times['alone']):.1f} s, "
        f"together {median(spent for spent, _ in times['together']):.1f} s (CPU)\n"
        f"  ratio {median(cpu):.2f} (turns {min(cpu):.2f} to {max(cpu):.2f}; wall {median(wall):.2f})"
    )


def make_source(num_images: int, embed_dim: int) -> ArraySource:
    """Random tokens of every level and kind, and ten classes that they say nothing about."""
    blocks = tuple(
        ColumnBlock(name=f"{level}/{kind}", num_tokens=count, width=embed_dim)
        for level in LEVELS
        for kind, count in KINDS.items()
    )
    num_tokens = sum(block.num_tokens for block in blocks)
    generator = torch.Generator().manual_seed(0)
    rows = l2_normalize(torch.randn(num_images, num_tokens, embed_dim, generator=generator)).flatten(1)
    return ArraySource(rows, torch.arange(num_images) % 10, 10, blocks=blocks)


def hold_only(source: ArraySource, candidate: Candidate) -> ArraySource:
    """A source of the blocks that one probe reads."""
    columns, names = columns_of(source.blocks or ()), candidate.blocks or ()
    tokens = torch.cat([source.tokens[:, columns[name]] for name in names], 1)
    by_name = {block.name: block for block in source.blocks or ()}
    return ArraySource(tokens, source.targets, source.task, blocks=tuple(by_name[name] for name in names))


def train(chosen: list[Candidate], source: ArraySource, protocol: TrainingProtocol) -> list[SweepResult]:
    """As a study does, but tested on the images trained on: the scores are of no interest."""
    return run_sweeps([[one] for one in chosen], source, lambda: source, protocol)


def timed(work: Callable[[], list[SweepResult]]) -> tuple[list[SweepResult], tuple[float, float]]:
    """What it gives, and its CPU and wall seconds."""
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    result = work()
    return result, (time.process_time() - cpu_s, time.perf_counter() - wall_s)


if __name__ == "__main__":
    main()
