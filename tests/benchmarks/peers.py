"""The bank against what every peer does today, and against the best a careful user would write; the same tokens, the same steps.

    python tests/benchmarks/peers.py                                  # the whole table, medians of 5: about ten minutes
    python tests/benchmarks/peers.py --repeats 1 --cases alf-384 linear-cls
    python tests/benchmarks/peers.py --json table.json

peer     one probe at a time; a Dataset that gives one image's tokens, jittered there, a DataLoader with the default collate in this
         process; keys and values projected, heads permuted, as in CAE, AIM or the authors' code; autograd; torch's AdamW
careful  one probe at a time; batches gathered by one index_select and jittered at once, the rest as the peer (`AttentiveProbe`)
bank     21 probes together, as `fit_bank` trains them
grid     the same as a sweep has them: of 21 settings two are the same bits and trained once
         (`first_duplicates`), counted as 21

All do whole training steps of 200 images: batch, jitter, forward, backward, clip, AdamW. They take turns (A B C A
B C ...) on one thread; every lone probe costs the same, so one is timed and counted once a probe. Figures are CPU seconds,
less disturbed by a shared machine; the ratio in wall time stands beside. GFLOP/s counts the multiplications that the
folded form needs, against a square matrix product of the same turn. Before anything is timed the peer's probe is held to
ours: same weights, same scores.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain, islice, repeat
from pathlib import Path
from statistics import median

import torch
from bank import measure_peak, train_plainly
from machine import describe_machine
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from layerbank.probes import (
    PAPER,
    ArraySource,
    AttentiveBank,
    AttentiveProbe,
    Head,
    LinearBank,
    LinearProbe,
    TrainingProtocol,
    first_duplicates,
)
from layerbank.probes.data.token_source import l2_normalize
from layerbank.probes.fit import fit_bank
from layerbank.probes.tasks.multiclass import class_weights

BATCH, NUM_CLASSES = 200, 47
PROTOCOL = TrainingProtocol(dropouts=(0.0,), batch_size=BATCH, epochs=1, min_steps=1000)
SETTINGS = PROTOCOL.settings(Head(kind="linear"))  # 21
DISTINCT = [SETTINGS[index] for index in sorted(set(first_duplicates(SETTINGS)))]  # 20


@dataclass(frozen=True, kw_only=True)
class Case:
    """One line of the table: num_heads 0 is a linear probe on num_tokens tokens side by side."""

    name: str
    num_tokens: int
    embed_dim: int
    num_heads: int
    bank_steps: int  # of one turn: enough that setting up moments is little beside them
    lone_steps: int
    goal: float


CASES = (
    Case(name="alf-768", num_tokens=24, embed_dim=768, num_heads=24, bank_steps=12, lone_steps=4, goal=18),
    Case(name="alf-384", num_tokens=24, embed_dim=384, num_heads=24, bank_steps=24, lone_steps=8, goal=16),
    Case(name="aat-768", num_tokens=197, embed_dim=768, num_heads=8, bank_steps=3, lone_steps=1, goal=90),
    Case(name="linear-cls", num_tokens=1, embed_dim=768, num_heads=0, bank_steps=100, lone_steps=100, goal=14),
    Case(name="linear-all", num_tokens=24, embed_dim=768, num_heads=0, bank_steps=10, lone_steps=20, goal=14),
)


class PeerProbe(nn.Module):
    """Cross-attention as the public attentive probes have it: q, k, v projected, heads permuted, the query a row a sample."""

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, 2 * (embed_dim // num_heads)
        inner_dim = num_heads * self.head_dim
        self.query = nn.Parameter(0.02 * torch.randn(1, embed_dim))
        self.norm_q, self.norm_k, self.norm_v = (nn.LayerNorm(embed_dim) for _ in range(3))
        self.to_q, self.to_k, self.to_v = (nn.Linear(embed_dim, inner_dim, bias=False) for _ in range(3))
        self.proj = nn.Linear(inner_dim, embed_dim)
        self.bn = nn.BatchNorm1d(embed_dim)
        self.classifier = nn.Linear(embed_dim, NUM_CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        query = self.query.expand(len(tokens), 1, -1)
        q = self._split_heads(self.to_q(self.norm_q(query))) * self.head_dim**-0.5  # [B, H, 1, h]
        k = self._split_heads(self.to_k(self.norm_k(tokens)))  # [B, H, T, h]
        v = self._split_heads(self.to_v(self.norm_v(tokens)))
        attention = (q @ k.transpose(-2, -1)).softmax(-1)
        pooled = (attention @ v).transpose(1, 2).flatten(1)  # [B, I]
        logits: Tensor = self.classifier(self.bn(self.proj(pooled)))
        return logits

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.num_heads, self.head_dim).permute(0, 2, 1, 3)


class PeerDataset(Dataset[tuple[Tensor, int]]):
    """One image at a time, with the jitter of the protocol."""

    def __init__(self, source: ArraySource) -> None:
        self._tokens, self._labels = source.tokens, source.targets

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        tokens = self._tokens[index]
        if torch.rand(()) < PAPER.jitter_probability:
            tokens = tokens + PAPER.jitter_std * torch.randn_like(tokens)
        return tokens, int(self._labels[index])


def train_as_peers(probe: nn.Module, source: ArraySource, num_steps: int) -> None:
    probe.train()
    loader = DataLoader(PeerDataset(source), batch_size=BATCH, shuffle=True, num_workers=0)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=1e-3, weight_decay=1e-4)
    loss_of = nn.CrossEntropyLoss(weight=class_weights(source.targets, NUM_CLASSES).float())
    batches: Iterator[tuple[Tensor, Tensor]] = chain.from_iterable(repeat(loader))
    for tokens, labels in islice(batches, num_steps):
        optimizer.zero_grad()
        loss_of(probe(tokens), labels).backward()
        nn.utils.clip_grad_norm_(probe.parameters(), PAPER.clip_norm)
        optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=[case.name for case in CASES])
    parser.add_argument("--repeats", type=int, default=5, help="turns; the median counts")
    parser.add_argument("--json", type=Path, help="write every measurement here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{describe_machine()}, {options.repeats} turns, batch {BATCH}",
        flush=True,
    )
    table = [compare(case, options.repeats) for case in CASES if case.name in options.cases]
    if options.json:
        options.json.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def compare(case: Case, num_turns: int) -> dict[str, object]:
    """Time one case and print its line; CPU and wall seconds of a step and probe, every turn."""
    source = make_source(case)
    probe = make_probe(case)
    bank, grid = make_bank(case, probe, len(SETTINGS)), make_bank(case, probe, len(DISTINCT))
    rows = torch.arange(len(source.targets))
    works: dict[str, tuple[Callable[[int], None], int]] = {
        "peer": (lambda steps: train_as_peers(make_peer(case, probe), source, steps), case.lone_steps),
        "careful": (lambda steps: train_plainly(make_probe(case), source, steps), case.lone_steps),
        "bank": (
            lambda steps: void(fit_bank(bank, source, rows, SETTINGS, PROTOCOL, max_steps=steps)),
            case.bank_steps,
        ),
        "grid": (
            lambda steps: void(fit_bank(grid, source, rows, DISTINCT, PROTOCOL, max_steps=steps)),
            case.bank_steps,
        ),
    }
    cpu: dict[str, list[float]] = {name: [] for name in works}
    wall: dict[str, list[float]] = {name: [] for name in works}
    peaks = []
    for work, _ in works.values():
        work(1)  # buffers, kernels and code paths that only the first step makes
    for _ in range(num_turns):
        peaks.append(measure_peak())
        for name, (work, num_steps) in works.items():
            wall_s, cpu_s = time.perf_counter(), time.process_time()
            work(num_steps)
            probes = len(SETTINGS) if name in ("bank", "grid") else 1
            cpu[name].append((time.process_time() - cpu_s) / num_steps / probes)
            wall[name].append((time.perf_counter() - wall_s) / num_steps / probes)
    ms = {name: 1e3 * median(values) for name, values in cpu.items()}
    flops = 2 * BATCH * count_products(case) / median(cpu["bank"])
    ratio, careful = ms["peer"] / ms["bank"], ms["careful"] / ms["bank"]
    print(
        f"{case.name:10s} T {case.num_tokens} D {case.embed_dim} H {case.num_heads} C {NUM_CLASSES}: "
        f"peer {ms['peer']:.2f}, careful {ms['careful']:.2f}, bank {ms['bank']:.3f} ms a probe and step; "
        f"bank is {ratio:.1f} times as fast as the peer (wall {median(wall['peer']) / median(wall['bank']):.1f}; "
        f"goal {case.goal:g}), {careful:.1f} times the careful; turns {spread(cpu)}; grid {ms['peer'] / ms['grid']:.1f}; "
        f"{flops / 1e9:.0f} GFLOP/s of {median(peaks) / 1e9:.0f}",
        flush=True,
    )
    return {"case": asdict(case), "cpu_s": cpu, "wall_s": wall, "peak_flops": peaks}


def spread(cpu: dict[str, list[float]]) -> str:
    """The lowest and highest ratio of any one turn."""
    ratios = [peer / bank for peer, bank in zip(cpu["peer"], cpu["bank"], strict=True)]
    return f"{min(ratios):.1f} to {max(ratios):.1f}"


def make_source(case: Case) -> ArraySource:
    generator = torch.Generator().manual_seed(0)
    tokens = l2_normalize(torch.randn(5 * BATCH, case.num_tokens, case.embed_dim, generator=generator))
    labels = torch.arange(5 * BATCH) % NUM_CLASSES
    return ArraySource(tokens if case.num_heads else tokens.flatten(1), labels, NUM_CLASSES)


def make_probe(case: Case) -> AttentiveProbe | LinearProbe:
    if case.num_heads:
        return AttentiveProbe(case.embed_dim, case.num_heads, NUM_CLASSES)
    return LinearProbe(case.num_tokens * case.embed_dim, NUM_CLASSES)


def make_peer(case: Case, probe: AttentiveProbe | LinearProbe) -> nn.Module:
    """The peer's module with the weights of ours, which must give the same scores."""
    if not isinstance(probe, AttentiveProbe):
        peer: nn.Module = nn.Linear(probe.num_features, NUM_CLASSES)
        peer.load_state_dict(probe.classifier.state_dict())
        return peer
    peer = PeerProbe(case.embed_dim, case.num_heads)
    peer.load_state_dict(probe.state_dict())
    tokens = torch.randn(2, 3, case.embed_dim, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(peer.eval()(tokens), probe.eval()(tokens))
    return peer


def make_bank(case: Case, probe: AttentiveProbe | LinearProbe, num_probes: int) -> AttentiveBank | LinearBank:
    if isinstance(probe, AttentiveProbe):
        return AttentiveBank([probe] * num_probes)
    return LinearBank([probe] * num_probes)


def count_products(case: Case) -> int:
    """Multiplications a sample and probe. Attentive: 4 of T D H (logits, pooling; dA, du), 6 of D I (values, Wo; each back
    twice), 3 of D C. Linear: 2 of F C (scores, weight gradient)."""
    if not case.num_heads:
        return 2 * case.num_tokens * case.embed_dim * NUM_CLASSES
    inner_dim = case.num_heads * 2 * (case.embed_dim // case.num_heads)
    attention = 4 * case.num_tokens * case.embed_dim * case.num_heads
    return attention + 6 * case.embed_dim * inner_dim + 3 * case.embed_dim * NUM_CLASSES


def void(_: object) -> None:
    """For a callable whose result nobody wants."""


if __name__ == "__main__":
    main()
