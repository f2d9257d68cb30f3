"""Successive halving against the full grid on a store of real tokens: what it saves, and how often it chooses otherwise.

    python tests/benchmarks/halving.py                             # the demo's stores, made under caches/ if need be
    python tests/benchmarks/halving.py --probes linear-all --num-seeds 3 --min-steps 500
    python tests/benchmarks/halving.py --train caches/digits/train/STORE.zarr --test caches/digits/test/STORE.zarr

Every seed is another split, another initial weight, another order. The test accuracy of both choices is shown after the choice was
made, as anywhere; it decides nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import torch
from machine import describe_machine

from layerbank.cache import TokenCache
from layerbank.probes import PAPER, Head, SweepResult, TrainingProtocol, run_sweep
from layerbank.probing.probe_spec import parse_probe
from layerbank.probing.tokens.token_source import CachedTokens


@dataclass(frozen=True)
class Pair:
    """One seed: both sweeps of the same probe."""

    full: SweepResult
    halving: SweepResult


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, help="store of the training split")
    parser.add_argument("--test", type=Path, help="store of the test split")
    parser.add_argument("--probes", nargs="+", default=["linear-cls", "linear-last", "linear-all"])
    parser.add_argument("--num-seeds", type=int, default=5)
    parser.add_argument("--depth", type=int, default=12, help="blocks of the backbone")
    parser.add_argument("--min-steps", type=int, default=PAPER.min_steps)
    options = parser.parse_args()
    if (options.train is None) != (options.test is None):
        parser.error("give both --train and --test, or neither")
    if options.train is None:
        options.train, options.test = demo_stores()
    torch.set_num_threads(1)
    print(describe_machine(), flush=True)
    for name in options.probes:
        named = parse_probe(name, options.depth)
        train, test = (CachedTokens(TokenCache.open(path), named).in_memory() for path in (options.train, options.test))
        heads = named.num_heads or train.token_shape[0] if named.head == "attentive" else 0
        pairs = []
        for seed in range(options.num_seeds):
            protocol = replace(PAPER, min_steps=options.min_steps, seed=seed)
            sweeps = [
                run_sweep(
                    Head(kind=named.head, num_heads=heads), train, lambda t=test: t, replace(protocol, sweep=sweep)
                )
                for sweep in ("full", "halving")
            ]
            pairs.append(Pair(*sweeps))
            print(f"  {name} seed {seed}: " + "; ".join(f"{describe(sweep)}" for sweep in sweeps), flush=True)
        summarize(name, protocol, pairs)


def demo_stores() -> list[Path]:
    """The stores of `make extract`, train and test; computes what is missing, a minute or two the first time."""
    extract = ("extract", "--model", "demo/vit-s-focus", "--data", "demo:digits", "--json")
    answer = subprocess.run([sys.executable, "-m", "layerbank", *extract], check=True, stdout=subprocess.PIPE)
    return [Path(store) for store in json.loads(answer.stdout)["stores"]]


def describe(result: SweepResult) -> str:
    assert result.chosen is not None
    assert result.validation is not None
    assert result.test is not None
    return (
        f"lr {result.chosen.lr:g} wd {result.chosen.weight_decay:g} p {result.chosen.dropout:g} "
        f"validation {100 * result.validation:.2f} test {100 * result.test.balanced_accuracy:.2f} "
        f"{result.seconds['select']:.1f} s"
    )


def summarize(name: str, protocol: TrainingProtocol, pairs: list[Pair]) -> None:
    rungs = pairs[0].halving.rungs
    saved = 1 - sum(rung.probe_steps for rung in rungs) / sum(rung.probe_steps for rung in pairs[0].full.rungs)
    other = sum(pair.full.chosen != pair.halving.chosen for pair in pairs)
    worse = [
        100 * (one.full.validation - one.halving.validation)  # type: ignore[operator]
        for one in pairs
    ]
    test = [
        100 * (one.halving.test.balanced_accuracy - one.full.test.balanced_accuracy)  # type: ignore[union-attr]
        for one in pairs
    ]
    ratio = sum(one.halving.seconds["select"] for one in pairs) / sum(one.full.seconds["select"] for one in pairs)
    print(
        f"{name}: rungs {[(rung.num_settings, rung.num_steps) for rung in rungs]}, {saved:.0%} of the probe-steps saved, "
        f"{ratio:.2f} of the time; another setting in {other} of {len(pairs)} seeds; "
        f"validation lower by {mean(worse):.2f} points on average, {max(worse):.2f} at worst; "
        f"test {mean(test):+.2f} points on average, from {min(test):+.2f} to {max(test):+.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
