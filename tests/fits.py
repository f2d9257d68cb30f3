"""A grid, a source and probes for tests of the trainer."""

from __future__ import annotations

import torch
from torch import nn

from layerbank.probes import ArraySource, AttentiveProbe, LinearProbe, Setting, TrainingProtocol, stack_tokens

PROTOCOL = TrainingProtocol(epochs=10, min_steps=0, batch_size=40)  # 5 batches of 40 of 200 samples: 50 steps
ROWS = torch.arange(200)
GRID = [
    Setting(lr=lr, weight_decay=weight_decay, dropout=dropout)
    for lr in (1e-2, 1e-3)
    for weight_decay, dropout in ((1e-4, 0.0), (1.0, 0.3), (1e-2, 0.1), (1e-6, 0.3))
]


def make_source(kind: str) -> ArraySource:
    """200 samples of 4 classes that can be told apart, but not perfectly."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(4, (200,), generator=generator)
    tokens = torch.randn(200, 5, 24, generator=generator)
    tokens += 0.5 * torch.randn(4, 5, 24, generator=generator)[labels]
    tokens = stack_tokens([tokens])
    return ArraySource(tokens if kind == "attentive" else tokens[:, 0], labels, 4)


def make_probe(kind: str, seed: int) -> AttentiveProbe | LinearProbe:
    return AttentiveProbe(24, 4, 4, seed=seed) if kind == "attentive" else LinearProbe(24, 4, seed=seed)


def largest_difference(one: nn.Module, other: nn.Module) -> float:
    """Of two probes' weights and statistics, relative to the largest entry of each tensor."""
    ours, theirs = one.state_dict(), other.state_dict()
    names = [name for name in ours if name != "bn.num_batches_tracked"]
    return max(
        ((ours[name] - theirs[name]).abs().max() / theirs[name].abs().max().clamp(min=1e-3)).item() for name in names
    )
