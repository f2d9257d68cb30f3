"""The choices of `selection.py`, trained: one bank for all candidate sets of levels of a round, one for the members of an ensemble.

A set of levels is a token mask: every candidate reads the same tokens, so a round costs little more than reading them once. All
candidates share one setting (the one that the probe on all levels chose) and start from the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.results import Row
from probes import (
    AttentiveBank,
    AttentiveProbe,
    Bank,
    LinearBank,
    LinearProbe,
    Progress,
    Setting,
    TokenSource,
    TrainingProtocol,
    compute_logits,
    fit_bank,
    split_rows,
)

from .selection import Levels, TrainSubsets, Validated

Emit = Callable[[Progress], None]


def setting_of_row(row: Row) -> tuple[Setting, TrainingProtocol]:
    """What a row of results.jsonl was trained with, and by which protocol."""
    values: dict[str, Any] = dict(row["protocol"])
    values |= {name: tuple(value) for name, value in values.items() if isinstance(value, list)}  # JSON has no tuples
    return Setting(**row["chosen"]), TrainingProtocol(**values)


def train_on_levels(
    source: TokenSource,
    levels: Sequence[str],
    num_heads: int,
    setting: Setting,
    protocol: TrainingProtocol,
    *,
    device: torch.device | str = "cpu",
    emit: Emit | None = None,
) -> TrainSubsets:
    """What `smallest_levels` needs: trains attentive probes on sets of levels, and asks them about the validation images.

    The validation images are those of the protocol: the same that chose the setting.

    Args:
        source: training images, tokens [T, D] with those of one level side by side, as many at each, shallow to deep.
        levels: L names in that order; L divides T.
        num_heads: of every candidate.
        setting: of every candidate.
        protocol: schedule, batches, split, seed.
        device: of the arithmetic.
        emit: called with `Progress`.
    """
    num_tokens, embed_dim = source.token_shape
    assert num_tokens % len(levels) == 0, "as many tokens at every level"
    fit_rows, validation_rows = split_rows(source, protocol.validation_fraction, protocol.seed)
    labels = source.labels[validation_rows].numpy()

    def masked(held: Levels) -> AttentiveProbe:
        mask = torch.tensor([level in held for level in levels]).repeat_interleave(num_tokens // len(levels))
        return AttentiveProbe(embed_dim, num_heads, source.num_classes, seed=protocol.seed, token_mask=mask)

    def train(candidates: Sequence[Levels]) -> list[Validated]:
        probes = [masked(held) for held in candidates]
        bank = AttentiveBank(probes, [setting.dropout] * len(probes), device=device)
        result = fit_bank(bank, source, fit_rows, [setting] * len(probes), protocol, phase="levels", emit=emit)
        logits = _logits(bank, source, validation_rows)  # [P, N, C]
        finite = np.isfinite(logits).all((1, 2)) & ~result.diverged.cpu().numpy()
        hits = (logits.argmax(-1) == labels) & finite[:, None]
        return [Validated(levels=held, hits=hit, labels=labels) for held, hit in zip(candidates, hits, strict=True)]

    return train


def train_members(
    probe: AttentiveProbe | LinearProbe,
    train: TokenSource,
    test: TokenSource,
    settings: Sequence[Setting],
    protocol: TrainingProtocol,
    *,
    device: torch.device | str = "cpu",
    emit: Emit | None = None,
) -> NDArray[np.float32]:
    """Train the chosen settings of a bank on all training images, as the protocol does with the one it chooses, and test each.

    Args:
        probe: at its initial weights.
        train, test: the two splits.
        settings: k of them, chosen on validation: `selection.best_members`.
        protocol: schedule, batches, seed.
        device: of the arithmetic.
        emit: called with `Progress`.

    Returns:
        [k, N, C] class scores of the test images, for `selection.ensemble`; those of a diverged member are not finite. Member 0 is
        the probe of the row up to rounding, which training at a learning rate of 0.1 can magnify to half a point.
    """
    bank: Bank
    if isinstance(probe, LinearProbe):
        bank = LinearBank([probe] * len(settings), device=device)
    else:
        bank = AttentiveBank([probe] * len(settings), [one.dropout for one in settings], device=device)
    fit_bank(bank, train, torch.arange(len(train.labels)), settings, protocol, phase="members", emit=emit)
    return _logits(bank, test, torch.arange(len(test.labels)))


def _logits(bank: Bank, source: TokenSource, rows: torch.Tensor) -> NDArray[Any]:
    logits: NDArray[Any] = torch.cat(list(compute_logits(bank, source, rows)), dim=1).numpy()
    return logits
