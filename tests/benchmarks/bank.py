"""A bank of 21 `alf` probes against 21 plain modules trained one at a time, on the same tokens.

    python tests/benchmarks/bank.py                                   # D 384 and 768, medians of 5
    python tests/benchmarks/bank.py --repeats 1 --embed-dims 384      # a quick look
    python tests/benchmarks/bank.py --bank-only --group-size 3 7      # tuning: every cut in turn
    python tests/benchmarks/bank.py --bank-only --batch-size 512 --embed-dims 384 --group-size 7 --chunk-size 512 128 64

The plain module is the best a careful user would write without folding: keys and values projected, autograd, torch's
AdamW, batched indexing, one probe at a time. One measurement is a few training steps of either, taken in turns; every
plain probe costs the same, so one is timed and counted 21 times. Jitter, gather, clip and optimiser are in both.
GFLOP/s counts the multiplications the folded form needs, against a square matrix product of the same run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from statistics import median

import torch
from machine import describe_machine

from layerbank.probes.banks.bank import CHUNK_SIZE, GROUP_SIZE, AttentiveBank
from layerbank.probes.data.rows import add_jitter
from layerbank.probes.data.token_source import ArraySource, stack_tokens
from layerbank.probes.fit import fit_bank
from layerbank.probes.heads.attentive import AttentiveProbe
from layerbank.probes.protocol import PAPER, Head, TrainingProtocol
from layerbank.probes.tasks.multiclass import class_weights

NUM_HEADS, NUM_TOKENS, NUM_CLASSES, BATCH = 24, 24, 47, 200
NUM_BATCHES = 5  # of an epoch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each; the median counts")
    parser.add_argument("--steps", type=int, default=5, help="training steps of one measurement")
    parser.add_argument("--embed-dims", type=int, nargs="+", default=[384, 768])
    parser.add_argument("--num-tokens", type=int, default=NUM_TOKENS)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--batch-size", type=int, default=BATCH)
    parser.add_argument(
        "--group-size", type=int, nargs="+", default=[GROUP_SIZE], help="probes that go through together"
    )
    parser.add_argument(
        "--chunk-size", type=int, nargs="+", default=[CHUNK_SIZE], help="images that go through together"
    )
    parser.add_argument("--bank-only", action="store_true", help="leave the plain module out, for tuning")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(describe_machine())
    for embed_dim in options.embed_dims:
        compare(embed_dim, options)


def compare(embed_dim: int, options: argparse.Namespace) -> None:
    source = make_source(embed_dim, options.num_tokens, options.batch_size)
    protocol = TrainingProtocol(dropouts=(0.0,), batch_size=options.batch_size, epochs=1, min_steps=1000)
    settings = protocol.settings(Head(kind="attentive", num_heads=NUM_HEADS))
    probe = AttentiveProbe(embed_dim, NUM_HEADS, NUM_CLASSES)
    banks = {
        (group_size, chunk_size): AttentiveBank(
            [probe] * len(settings), [options.dropout] * len(settings), group_size=group_size, chunk_size=chunk_size
        )
        for group_size, chunk_size in product(options.group_size, options.chunk_size)
    }
    rows = torch.arange(len(source.targets))

    def train(bank: AttentiveBank, steps: int) -> None:
        fit_bank(bank, source, rows, settings, protocol, max_steps=steps)

    def train_alone() -> None:
        train_plainly(AttentiveProbe(embed_dim, NUM_HEADS, NUM_CLASSES), source, options.steps)

    peaks, alone = [], []
    together: dict[tuple[int, int], list[float]] = {cut: [] for cut in banks}
    for bank in banks.values():
        train(bank, 1)
    for _ in range(options.repeats):
        peaks.append(measure_peak())
        for cut, bank in banks.items():
            together[cut].append(timed(partial(train, bank, options.steps)) / options.steps)
        if not options.bank_only:
            alone.append(timed(train_alone) / options.steps)
    num_flops = 2 * options.batch_size * len(settings) * count_products(embed_dim, options.num_tokens)
    print(
        f"D {embed_dim}, T {options.num_tokens}, H {NUM_HEADS}, C {NUM_CLASSES}, batch {options.batch_size}, "
        f"{len(settings)} probes, dropout {options.dropout}"
    )
    for (group_size, chunk_size), bank in banks.items():
        seconds = median(together[group_size, chunk_size])
        print(
            f"  bank        {1e3 * seconds / len(settings):8.1f} ms a probe and step, "
            f"{num_flops / seconds / 1e9:.0f} GFLOP/s of a GEMM peak of {median(peaks) / 1e9:.0f}; "
            f"scratch {bank.scratch_bytes / 2**20:.0f} MiB; groups of {group_size}, chunks of {chunk_size}"
        )
    if alone:
        fastest = min(median(values) for values in together.values())
        print(
            f"  one by one  {1e3 * median(alone):8.1f} ms a probe and step\n"
            f"  ratio       {len(settings) * median(alone) / fastest:8.1f}"
        )


def make_source(embed_dim: int, num_tokens: int, batch_size: int) -> ArraySource:
    generator = torch.Generator().manual_seed(0)
    tokens = stack_tokens([torch.randn(NUM_BATCHES * batch_size, num_tokens, embed_dim, generator=generator)])
    return ArraySource(tokens, torch.arange(NUM_BATCHES * batch_size) % NUM_CLASSES, NUM_CLASSES)


def train_plainly(probe: AttentiveProbe, source: ArraySource, num_steps: int) -> None:
    probe.train()
    optimizer = torch.optim.AdamW(probe.parameters(), lr=1e-3, weight_decay=1e-4)
    loss_of = torch.nn.CrossEntropyLoss(weight=class_weights(source.targets, NUM_CLASSES).float())
    for step in range(num_steps):
        batch = torch.randperm(len(source.targets))[: len(source.targets) // NUM_BATCHES]
        tokens = source.take(batch)
        add_jitter(tokens, PAPER, step)
        optimizer.zero_grad()
        loss_of(probe(tokens), source.targets[batch]).backward()
        torch.nn.utils.clip_grad_norm_(probe.parameters(), PAPER.clip_norm)
        optimizer.step()


def count_products(embed_dim: int, num_tokens: int) -> int:
    """Multiplications a sample and probe: 4 of T D H (logits, pooling; dA, du), 6 of D I (values, Wo; each back twice)."""
    inner_dim = NUM_HEADS * 2 * (embed_dim // NUM_HEADS)
    return 4 * num_tokens * embed_dim * NUM_HEADS + 6 * embed_dim * inner_dim + 3 * embed_dim * NUM_CLASSES


def measure_peak() -> float:
    """FLOP/s of a 2048^3 matrix product."""
    a = torch.randn(2048, 2048)
    return 2 * 2048**3 / timed(lambda: torch.mm(a, a))


def timed(work: Callable[[], object]) -> float:
    """CPU seconds: with one thread, the time it takes on a core of its own."""
    start_s = time.process_time()
    work()
    return time.process_time() - start_s


if __name__ == "__main__":
    main()
