"""Linear probes on tokens in memory that are read in the order of streamed ones: for the test and the benchmark of that order."""

from __future__ import annotations

import torch

from layerbank.probes import (
    ArraySource,
    LinearBank,
    LinearProbe,
    Setting,
    TrainingProtocol,
    balanced_accuracy,
    compute_logits,
    fit_bank,
)
from layerbank.probing.tokens.stretches import Stretches


class OrderedTokens(ArraySource):
    """Tokens in memory, in the order of streamed ones."""

    def __init__(self, tokens: torch.Tensor, labels: torch.Tensor, num_classes: int, stretches: Stretches) -> None:
        super().__init__(tokens, labels, num_classes)
        self._stretches = stretches

    def order(self, rows: torch.Tensor, seed: int, epoch: int) -> torch.Tensor:
        return self._stretches.shuffle(rows, seed, epoch)


def accuracy(train: ArraySource, test: ArraySource, seed: int, *, epochs: int, batch_size: int) -> float:
    """Balanced accuracy in [0, 1] of a linear probe trained with a learning rate of 0.1."""
    protocol = TrainingProtocol(
        lrs=(0.1,),
        weight_decays=(1e-4,),
        dropouts=(0.0,),
        epochs=epochs,
        min_steps=1,
        batch_size=batch_size,
        seed=seed,
    )
    bank = LinearBank([LinearProbe(train.tokens.shape[1], test.task.num_outputs)])
    fit_bank(bank, train, torch.arange(len(train.targets)), [Setting(lr=0.1, weight_decay=1e-4)], protocol)
    logits = torch.cat(list(compute_logits(bank, test, torch.arange(len(test.targets)))), 1)
    return float(balanced_accuracy(logits.argmax(2), test.targets, test.task.num_outputs))
