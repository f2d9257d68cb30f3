"""Rows a second of streamed tokens against resident ones: the same store, the same order, the same bank, in turns.

    python tests/benchmarks/streaming.py [--rows N] [--repeats N] [--device cuda] [--folder DIR]

A store of 12 levels of cls and ap tokens, D 384, float16: 18 KB a row. Resident: read once into float32, gathered a
batch at a time. Streamed: from the map through the reading thread, a buffer of 64 MiB, in the order of `chunk_shuffle`,
which the resident source is given too. `read` is reading alone; `train` is an epoch of `--probes` alf probes or linear
ones. One measurement of each in turns (A B A B), medians of the ratios; the store lies in the page cache.
pipeline/README.md says what to expect.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from machine import describe_machine

sys.path.insert(0, str(Path(__file__).parent.parent.parent))
from cache import ArraySpec, CacheSpec, CacheWriter, TokenCache
from pipeline.probe_names import resolve_probe
from pipeline.streaming import StreamedTokens
from pipeline.token_source import CachedTokens
from probes import PAPER, ArraySource, AttentiveBank, AttentiveProbe, LinearBank, LinearProbe, TokenSource, fit_bank
from probes.protocol import Setting
from probes.sources import read_batches

DEPTH, EMBED_DIM, NUM_CLASSES, BATCH = 12, 384, 47, 1024
BUFFER_BYTES = 64 << 20


class InOrder(ArraySource):
    """Resident tokens in the order of the streamed ones."""

    def __init__(self, tokens: torch.Tensor, streamed: StreamedTokens) -> None:
        super().__init__(tokens, streamed.labels, streamed.num_classes)
        self.order = streamed.order


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each; the median counts")
    parser.add_argument("--probes", type=int, default=7, help="of the bank")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, help="where the store is made and kept")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        path = (options.folder or Path(temporary)) / f"{options.rows}.zarr"
        if not path.exists():
            make_store(path, options.rows)
        cache = TokenCache.open(path)
        print(f"{describe_machine()}, {options.rows:,} rows, {options.device}, medians of {options.repeats}")
        for name in ("linear-all", "alf"):
            compare(CachedTokens(cache, resolve_probe(name, DEPTH)), name, options)


def compare(tokens: CachedTokens, name: str, options: argparse.Namespace) -> None:
    streamed = StreamedTokens(tokens, buffer_bytes=BUFFER_BYTES, pin=options.device != "cpu")
    resident = InOrder(tokens.in_memory().tokens, streamed)
    all_rows = torch.arange(len(tokens.labels))
    settings = [Setting(lr=1e-3, weight_decay=1e-4)] * options.probes

    def read(source: StreamedTokens | InOrder) -> None:
        for _, batch in read_batches(source, source.order(all_rows, 0, 0).split(BATCH)):
            batch.to(options.device)

    def train(source: TokenSource) -> None:
        protocol = replace(PAPER, batch_size=BATCH, epochs=1, min_steps=1)
        fit_bank(make_bank(tokens.token_shape, options), source, all_rows, settings, protocol)
        if options.device != "cpu":
            torch.cuda.synchronize()

    works: dict[str, Callable[..., None]] = {"read": read, "train": train}
    for work, run in works.items():
        run(streamed), run(resident)  # warm
        seconds = [(timed(run, streamed), timed(run, resident)) for _ in range(options.repeats)]
        slow, fast = (median(column) for column in zip(*seconds, strict=True))
        ratio = median(of_resident / of_streamed for of_streamed, of_resident in seconds)
        rates = [len(all_rows) / one for one in (slow, fast)]
        print(
            f"{name:12} {work:6} streamed {rates[0]:9,.0f} rows/s, resident {rates[1]:9,.0f} rows/s, ratio {ratio:.2f}"
        )


def make_bank(token_shape: tuple[int, ...], options: argparse.Namespace) -> AttentiveBank | LinearBank:
    if len(token_shape) == 1:
        return LinearBank([LinearProbe(token_shape[0], NUM_CLASSES)] * options.probes, device=options.device)
    probe = AttentiveProbe(token_shape[1], token_shape[0], NUM_CLASSES)
    return AttentiveBank([probe] * options.probes, device=options.device)


def timed(run: Callable[..., None], source: object) -> float:
    start_s = time.perf_counter()
    run(source)
    return time.perf_counter() - start_s


def make_store(path: Path, num_rows: int) -> None:
    levels = [*(f"block.{number}" for number in range(DEPTH)), "final"]
    spec = CacheSpec(
        architecture="none",
        weights="0" * 16,
        tap="norm2",
        token_rule="1",
        transform="none",
        compute_dtype="float32",
        storage_dtype="float16",
        manifest="0" * 16,
        num_rows=num_rows,
        backbone="none",
        dataset="noise",
        split="train",
    )
    arrays = [ArraySpec(level=level, kind=kind, row_shape=(EMBED_DIM,)) for level in levels for kind in ("cls", "ap")]
    noise = np.random.default_rng(0).standard_normal((8192, EMBED_DIM)).astype(np.float16)
    writer = CacheWriter.open(
        path,
        spec,
        arrays,
        labels=np.arange(num_rows) * NUM_CLASSES // num_rows,
        sample_ids=[str(row) for row in range(num_rows)],
        batch_size=512,
        attributes={"class_names": [str(number) for number in range(NUM_CLASSES)]},
    )
    with writer:
        for batch in writer.pending():
            rows = np.arange(batch.start, batch.stop)
            tokens = {array.name: noise[(rows + 97 * place) % len(noise)] for place, array in enumerate(batch.arrays)}
            writer.append(batch, tokens, content_hashes=rows.astype(np.uint64))
        writer.complete()


if __name__ == "__main__":
    main()
