"""A bank of 8 heads of each kind against the same heads trained one at a time, on the same tokens.

    python tests/benchmarks/heads.py                                 # D 384, T 197, batch 200, medians of 3
    python tests/benchmarks/heads.py --kinds map ep --group-size 1   # tuning

One at a time is the same plain module under autograd, with torch's AdamW and clip. So the ratio is what training
together brings, not what the folded attention inside the modules brings. Each kind is measured in a process of its own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median

import torch
from machine import describe_machine

from layerbank.probes import (
    HEADS,
    AlfEmbedProbe,
    ArraySource,
    AttentiveBank,
    CaeProbe,
    HeadModule,
    ModuleBank,
    Setting,
    TrainingProtocol,
    fit_bank,
    stack_tokens,
)
from layerbank.probes.banks.module_bank import GROUP_SIZE
from layerbank.probes.data.rows import add_jitter
from layerbank.probes.tasks.multiclass import class_weights

NUM_CLASSES, BATCH, NUM_PROBES, NUM_LEVELS = 47, 200, 8, 12
NUM_HEADS = {"cae": 8, "alf-embed": 24, "ep": 32, "aim": 12, "vjepa": 12, "map": 12}
PROTOCOL = TrainingProtocol(batch_size=BATCH, epochs=1, min_steps=1000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=[*NUM_HEADS, "abmilp", "simpool", "scalar-mix"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="training steps of one measurement")
    parser.add_argument("--embed-dim", type=int, default=384)
    parser.add_argument("--group-size", type=int, default=GROUP_SIZE)
    parser.add_argument("--by-autograd", action="store_true", help="cae and alf-embed too")
    options = parser.parse_args()
    if len(options.kinds) > 1:
        print(f"{describe_machine()}; one thread is used", flush=True)
        numbers = {name: value for name, value in vars(options).items() if name not in ("kinds", "by_autograd")}
        more = [f"--{name.replace('_', '-')}={value}" for name, value in numbers.items()]
        more += ["--by-autograd"] * options.by_autograd
        for kind in options.kinds:
            subprocess.run([sys.executable, __file__, "--kinds", kind, *more], check=True)
        return
    torch.set_num_threads(1)
    measure(options.kinds[0], options)


def measure(kind: str, options: argparse.Namespace) -> None:
    num_tokens = 2 * NUM_LEVELS if HEADS[kind].has_levels else 197
    heads = {"num_heads": NUM_HEADS[kind]} if HEADS[kind].has_heads else {}
    levels = {"num_levels": NUM_LEVELS, "num_tokens": num_tokens} if HEADS[kind].has_levels else {}
    probe = HEADS[kind].module(embed_dim=options.embed_dim, **heads, **levels, num_classes=NUM_CLASSES)
    generator = torch.Generator().manual_seed(0)
    tokens = stack_tokens([torch.randn(5 * BATCH, num_tokens, options.embed_dim, generator=generator)])
    source = ArraySource(tokens, torch.arange(5 * BATCH) % NUM_CLASSES, NUM_CLASSES)
    rows, settings = torch.arange(5 * BATCH), [Setting(lr=1e-3, weight_decay=1e-4)] * NUM_PROBES
    train_plainly(probe, source, 1)
    bank: AttentiveBank | ModuleBank
    if isinstance(probe, CaeProbe | AlfEmbedProbe) and not options.by_autograd:
        bank = AttentiveBank([probe] * NUM_PROBES)
    else:
        bank = ModuleBank([probe] * NUM_PROBES, group_size=options.group_size)
    fit_bank(bank, source, rows, settings, PROTOCOL, max_steps=1)
    banks, plains = [], []
    for _ in range(options.repeats):
        banks.append(timed(lambda: fit_bank(bank, source, rows, settings, PROTOCOL, max_steps=options.steps)))
        plains.append(timed(lambda: train_plainly(probe, source, options.steps)))
    each, alone = (1e3 * median(times) / options.steps for times in (banks, plains))
    print(
        f"{kind:10} D {options.embed_dim} T {num_tokens:3}: {each / NUM_PROBES:7.1f} ms a probe and step, alone {alone:7.1f}, "
        f"ratio {alone * NUM_PROBES / each:4.1f}",
        flush=True,
    )


def train_plainly(probe: HeadModule, source: ArraySource, num_steps: int) -> None:
    probe.train()
    optimizer = torch.optim.AdamW(probe.parameters(), lr=1e-3, weight_decay=1e-4, fused=True)
    loss_of = torch.nn.CrossEntropyLoss(weight=class_weights(source.targets, NUM_CLASSES).float())
    for step in range(num_steps):
        batch = torch.randperm(len(source.targets))[:BATCH]
        tokens = source.take(batch)
        add_jitter(tokens, PROTOCOL, step)
        optimizer.zero_grad()
        loss_of(probe(tokens), source.targets[batch]).backward()
        torch.nn.utils.clip_grad_norm_(probe.parameters(), PROTOCOL.clip_norm)
        optimizer.step()


def timed(work: Callable[[], object]) -> float:
    """CPU seconds: with one thread, the time it takes on a core of its own."""
    start_s = time.process_time()
    work()
    return time.process_time() - start_s


if __name__ == "__main__":
    main()
