"""Rows a second of streamed tokens against resident ones; of stored numbers against float32; of company against going alone.

    python tests/benchmarks/streaming.py [--rows N] [--repeats N] [--device cuda] [--folder DIR]

A store of 12 levels of cls and ap tokens, D 384, float16: 18 KB a row, in the page cache. For linear-all and alf, the same bank in
turns (A B A B), medians of the ratios of CPU time of the whole process:

    streamed    from the map through the reading thread, in the order of streaming; against resident, in the same order
    stored      resident as they are stored (what `layerbank probe` does); against float32, normalised once
    together    four linear probes in one pass over the streamed store; against one after the other, and how much is read

`read` is reading alone, `train` an epoch of `--probes` probes. On a GPU, where the host only waits, ratios are of wall time.
pipeline/README.md says what to expect.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from machine import describe_machine
from noise_stores import MODEL, sorted_split, write_rows
from numpy.typing import NDArray

from layerbank.cache import ArraySpec
from layerbank.probes import (
    PAPER,
    ArraySource,
    AttentiveBank,
    AttentiveProbe,
    BankRun,
    LinearBank,
    LinearProbe,
    Reading,
    Setting,
    TokenSource,
    fit_banks,
    read_batches,
)
from layerbank.probing.probe_groups import candidates_of
from layerbank.probing.probe_spec import ProbeSpec, parse_probe
from layerbank.probing.tokens.resident import ResidentTokens
from layerbank.probing.tokens.split_tokens import SplitTokens
from layerbank.probing.tokens.streaming import StreamedTokens
from layerbank.probing.tokens.token_source import CachedTokens

DEPTH, EMBED_DIM, NUM_CLASSES, BATCH = 12, 384, 47, 1024
BUFFER_ROWS = 4096
LEVELS = [*(f"block.{number}" for number in range(DEPTH)), "final"]
ARRAYS = [ArraySpec(level=level, kind=kind, row_shape=(EMBED_DIM,)) for level in LEVELS for kind in ("cls", "ap")]
TOGETHER = ("linear-last", "linear-mid", "linear-quarterly", "linear-all")


class InOrder(ResidentTokens):
    """Resident tokens in the order of streamed ones."""

    def __init__(self, tokens: CachedTokens, device: torch.device, streamed: StreamedTokens) -> None:
        super().__init__(tokens, device)
        self.order = streamed.order


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each; the median counts")
    parser.add_argument("--probes", type=int, default=7, help="of a bank")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, help="where the store is made and kept")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = options.folder or Path(temporary)
        path = MODEL.folder(root) / f"{options.rows}.zarr"
        if not path.exists():
            make_store(path, options.rows)
        cache = sorted_split(root, options.rows, NUM_CLASSES, ARRAYS)
        print(f"{describe_machine()}, {options.rows:,} rows, {options.device}, medians of {options.repeats}")
        for name in ("linear-all", "alf"):
            compare_places(cache, parse_probe(name, DEPTH), options)
        compare_company(cache, options)


def compare_places(cache: SplitTokens, named: ProbeSpec, options: argparse.Namespace) -> None:
    tokens, device = CachedTokens(cache, [named]), torch.device(options.device)
    streamed = StreamedTokens(tokens, buffer_rows=BUFFER_ROWS, device=device)
    stored = InOrder(tokens, device, streamed)
    widened = tokens.in_memory()
    widened.tokens = widened.tokens.to(device)
    exact = ArraySource(widened.tokens, tokens.targets, tokens.task, blocks=tokens.blocks)
    order = streamed.order(torch.arange(len(tokens.targets)), 0, 0).split(BATCH)

    def read(source: TokenSource) -> None:
        for _, batch in read_batches(source, order):
            batch.to(device)

    def train(source: TokenSource) -> None:
        fit(cache, [named], source, options)

    for what, work in (("read", read), ("train", train)):
        compare(f"{named.name:12} {what:6} streamed / resident", work, streamed, stored, options)
        compare(f"{named.name:12} {what:6} stored / float32", work, stored, exact, options)


def compare_company(cache: SplitTokens, options: argparse.Namespace) -> None:
    probes = [parse_probe(name, DEPTH) for name in TOGETHER]

    def source_of(read: list[ProbeSpec]) -> StreamedTokens:
        return StreamedTokens(CachedTokens(cache, read), buffer_rows=BUFFER_ROWS, device=torch.device(options.device))

    def train(groups: list[list[ProbeSpec]]) -> None:
        for group in groups:
            fit(cache, group, source_of(group), options)

    what = f"{len(probes)} linear     train  together / one after the other"
    compare(what, train, [probes], [[one] for one in probes], options)
    read, alone = (
        sum(CachedTokens(cache, group).stored_bytes for group in groups)
        for groups in ([probes], [[one] for one in probes])
    )
    print(f"{len(probes)} linear     bytes of the store that are read: {read / alone:.2f} times as many")


def compare(what: str, work: Callable[[Any], None], one: Any, other: Any, options: argparse.Namespace) -> None:
    work(one), work(other)  # warm
    pairs = [(seconds(work, one, options), seconds(work, other, options)) for _ in range(options.repeats)]
    ratios = [a / b for a, b in pairs]
    rates = [options.rows / median(column) for column in zip(*pairs, strict=True)]
    print(
        f"{what:45} {median(ratios):.2f} times the time ({min(ratios):.2f} to {max(ratios):.2f}); "
        f"{rates[0]:,.0f} and {rates[1]:,.0f} rows/s"
    )


def fit(cache: SplitTokens, probes: list[ProbeSpec], source: TokenSource, options: argparse.Namespace) -> None:
    """An epoch of a bank of each probe."""
    settings = [Setting(lr=1e-3, weight_decay=1e-4)] * options.probes
    blocks = source.blocks  # type: ignore[attr-defined]
    bank_runs = []
    for named in probes:
        (candidate,) = candidates_of(cache, named)
        reading = Reading(blocks, candidate.blocks, flat=named.head == "linear")
        bank_runs.append(BankRun(bank=make_bank(reading.token_shape, options), reading=reading, settings=settings))
    protocol = replace(PAPER, batch_size=BATCH, epochs=1, min_steps=1)
    fit_banks(bank_runs, source, torch.arange(len(source.targets)), protocol)
    if options.device != "cpu":
        torch.cuda.synchronize()


def make_bank(token_shape: tuple[int, ...], options: argparse.Namespace) -> AttentiveBank | LinearBank:
    if len(token_shape) == 1:
        return LinearBank([LinearProbe(token_shape[0], NUM_CLASSES)] * options.probes, device=options.device)
    probe = AttentiveProbe(token_shape[1], token_shape[0], NUM_CLASSES)
    return AttentiveBank([probe] * options.probes, device=options.device)


def seconds(work: Callable[[Any], None], way: Any, options: argparse.Namespace) -> float:
    clock = time.process_time if options.device == "cpu" else time.perf_counter
    start_s = clock()
    work(way)
    return clock() - start_s


def make_store(path: Path, num_rows: int) -> None:
    noise = np.random.default_rng(0).standard_normal((8192, EMBED_DIM)).astype(np.float16)

    def tokens_of(array: ArraySpec, start: int, stop: int) -> NDArray[np.float16]:
        return noise[(np.arange(start, stop) + 97 * ARRAYS.index(array)) % len(noise)]

    write_rows(path, range(num_rows), ARRAYS, tokens_of)


if __name__ == "__main__":
    main()
