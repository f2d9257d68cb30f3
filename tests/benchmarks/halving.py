"""Successive halving against the full grid on real tokens: what it saves, and how often it chooses otherwise.

    python tests/benchmarks/halving.py                             # the demo; what is missing is extracted to caches/
    python tests/benchmarks/halving.py --probes linear-all --num-seeds 3 --min-steps 500
    python tests/benchmarks/halving.py --model timm/vit_small_patch16_224 --data folder:photos --cache caches

Every seed is another split, another initial weight, another order. The test accuracy of both choices is shown after the choice was
made, as anywhere; it decides nothing.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import torch
from machine import describe_machine

from layerbank.data.image_set import identify
from layerbank.data.sources import open_source
from layerbank.data.splits.split_rows import SplitRows
from layerbank.extraction.extract import ExtractConfig, Extraction, extract_together
from layerbank.models.backbone import Backbone
from layerbank.models.request import ModelRequest
from layerbank.probes import PAPER, Head, SweepResult, TrainingProtocol, run_sweep
from layerbank.probing.probe_spec import parse_probe
from layerbank.probing.tokens.split_tokens import SplitTokens, request_tokens
from layerbank.probing.tokens.token_source import CachedTokens


@dataclass(frozen=True)
class Pair:
    """One seed: both sweeps of the same probe."""

    full: SweepResult
    halving: SweepResult


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo/vit-s-focus")
    parser.add_argument("--data", default="demo:digits")
    parser.add_argument("--cache", type=Path, default=Path("caches"))
    parser.add_argument("--probes", nargs="+", default=["linear-cls", "linear-last", "linear-all"])
    parser.add_argument("--num-seeds", type=int, default=5)
    parser.add_argument("--min-steps", type=int, default=PAPER.min_steps)
    options = parser.parse_args()
    backbone = ModelRequest(model=options.model).open("cpu")
    every = [parse_probe(name, backbone.depth) for name in options.probes]
    arrays = tuple(dict.fromkeys(array for named in every for array in named.arrays))
    splits = [extract(backbone, split, arrays, options) for split in ("train", "test")]
    torch.set_num_threads(1)
    print(describe_machine(), flush=True)
    for name, named in zip(options.probes, every, strict=True):
        train, test = (CachedTokens(split, named).in_memory() for split in splits)
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


def extract(
    backbone: Backbone, split: str, arrays: tuple[tuple[str, str], ...], options: argparse.Namespace
) -> SplitTokens:
    """The tokens of a split; what is missing is computed, a minute or two for the demo."""
    source = open_source(options.data, split)
    rows = SplitRows(source=source, images=identify(source, options.cache))
    extraction = Extraction(backbone=backbone, config=ExtractConfig(arrays=arrays), cache_root=options.cache)
    extract_together([extraction], rows)
    return request_tokens(options.cache, extraction.model, backbone.tap, rows, arrays).open()


def describe(result: SweepResult) -> str:
    assert result.chosen is not None
    assert result.validation is not None
    assert result.test is not None
    return (
        f"lr {result.chosen.lr:g} wd {result.chosen.weight_decay:g} p {result.chosen.dropout:g} "
        f"validation {100 * result.validation:.2f} test {100 * result.test['balanced_accuracy']:.2f} "
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
        100 * (one.halving.test["balanced_accuracy"] - one.full.test["balanced_accuracy"])  # type: ignore[union-attr]
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
