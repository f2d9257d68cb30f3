"""Accuracy of probes streamed from a store sorted by class, against the same probes from memory.

    python tests/benchmarks/fair_streaming.py [--rows N] [--seeds N] [--classes 10 1000] [--buffers 256 2048 8192]

Synthetic tokens, a class mean and noise each, sorted by class and in random order, train a linear probe on 90 % of the rows: in the
order of memory, in that of streaming (`choose_stretches`), and in long stretches from anywhere, for comparison. Streaming changes
no bit of a row, so tokens stay in memory and the order alone makes the difference. The table has the balanced accuracy of the other
rows in %, mean and standard deviation over seeds.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import mean, stdev

import torch
from machine import describe_machine

from layerbank.probes import ArraySource, l2_normalize
from layerbank.probing.tokens.stretches import STRETCH_ROWS, STRETCHES, Stretches, choose_stretches

sys.path.append(str(Path(__file__).parent.parent))
from ordered_tokens import OrderedTokens, accuracy

WIDTH = 64
NOISE = {10: 6.0, 1000: 4.0}
BATCH, EPOCHS = 2048, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 1000])
    parser.add_argument("--buffers", type=int, nargs="+", default=[256, 2048, 8192])
    options = parser.parse_args()
    print(f"{describe_machine()}, {options.rows:,} rows, {options.seeds} seeds")
    print("| classes | order | buffer | from memory | long stretches | chosen | stretch |")
    print("|---|---|---|---|---|---|---|")
    for num_classes in options.classes:
        for in_order in ("sorted", "random"):
            compare(num_classes, in_order, options)


def compare(num_classes: int, in_order: str, options: argparse.Namespace) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(options.rows) * num_classes // options.rows
    if in_order == "random":
        labels = labels[torch.randperm(len(labels), generator=generator)]
    centres = torch.randn(num_classes, WIDTH, generator=generator)
    noise = NOISE.get(num_classes, 4.0) * torch.randn(len(labels), WIDTH, generator=generator)
    tokens = l2_normalize(centres[labels] + noise)
    tested = torch.arange(len(labels)) % 10 == 9
    train, test = (tokens[~tested], labels[~tested]), ArraySource(tokens[tested], labels[tested], num_classes)

    def text_of(source: ArraySource) -> str:
        accuracies = [
            100 * accuracy(source, test, seed, epochs=EPOCHS, batch_size=BATCH) for seed in range(options.seeds)
        ]
        return f"{mean(accuracies):.2f} ± {stdev(accuracies):.2f}"

    resident = text_of(ArraySource(*train, num_classes))
    for buffer_rows in options.buffers:
        chosen = choose_stretches(train[1], torch.arange(len(train[1])), buffer_rows)
        length = min(STRETCH_ROWS, buffer_rows // STRETCHES)
        long = Stretches(rows=length, in_buffer=buffer_rows // length)
        texts = [text_of(OrderedTokens(*train, num_classes, one)) for one in (long, chosen)]
        what = f"{chosen.rows} rows, {'spread' if chosen.spread else 'from anywhere'}"
        print("|", " | ".join([str(num_classes), in_order, str(buffer_rows), resident, *texts, what]), "|", flush=True)


if __name__ == "__main__":
    main()
