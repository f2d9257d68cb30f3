"""How probes are trained and chosen: the grid, and every number that goes with it.

The values of `PAPER` are those of arXiv 2601.09322; `QUICK` is a small grid for a demonstration on two CPU
cores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from .errors import SettingError
from .heads import HEADS, Head
from .matmul import COMPUTES


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One point of the grid: peak learning rate, AdamW's weight decay, rate of the attention dropout."""

    lr: float
    weight_decay: float
    dropout: float = 0.0


@dataclass(frozen=True, kw_only=True)
class PenaltySetting:
    """Of ridge and logistic regression: the factor of the squared weights, beside a loss whose sample weights sum to 1."""

    penalty: float


@dataclass(frozen=True, kw_only=True)
class NeighborSetting:
    """Of kNN: how many training images vote."""

    num_neighbors: int


SolvedSetting = PenaltySetting | NeighborSetting


@dataclass(frozen=True, kw_only=True)
class TrainingProtocol:
    """The grid and how each of its settings is trained.

    Attributes:
        lrs: peak learning rates, in the order in which they win ties.
        weight_decays: of AdamW, on every parameter.
        dropouts: rates of the attention dropout; a head without it has one rate, 0.
        epochs: passes over the training images, more where they make fewer than min_steps optimiser steps.
        min_steps: optimiser steps at least.
        batch_size: the wish; `choose_batch_size` adjusts it to the number of images.
        validation_fraction: share of each class held out to choose the setting.
        jitter_std: of the Gaussian noise added to every element of a sample's tokens.
        jitter_probability: of a sample to be jittered.
        jitter_validation: jitter the held-out images too when settings are scored, as the authors' code does; test images never.
        clip_norm: largest length of a probe's whole gradient; infinity for no clipping.
        min_lr: where the cosine ends.
        penalties: of ridge and logistic regression, in the order in which they win ties; the largest first is also the fastest.
        num_neighbors: of kNN, likewise.
        sweep: "full" trains every setting to the end; "halving" drops the worse ones on the way, see `halving.py`.
        compute: numbers of the matrix products, see `matmul.py`; "auto" is the device's own default.
        seed: of the split, the initial weights, order, jitter and dropout.

    Raises:
        SettingError: a value is out of its range, and which.
    """

    lrs: tuple[float, ...] = (1e-1, 1e-2, 1e-3)
    weight_decays: tuple[float, ...] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    dropouts: tuple[float, ...] = (0.0, 0.1, 0.3)
    epochs: int = 40
    min_steps: int = 1000
    batch_size: int = 2048
    validation_fraction: float = 0.2
    jitter_std: float = 0.05
    jitter_probability: float = 0.5
    jitter_validation: bool = False
    clip_norm: float = 5.0
    min_lr: float = 1e-6
    penalties: tuple[float, ...] = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10)
    num_neighbors: tuple[int, ...] = (10, 20, 50, 100, 200)
    sweep: str = "full"
    compute: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        ranges: Sequence[tuple[str, str, bool]] = (
            ("lrs", "at least one, all > 0", bool(self.lrs) and all(0 < lr < math.inf for lr in self.lrs)),
            (
                "weight_decays",
                "at least one, all >= 0",
                bool(self.weight_decays) and min(self.weight_decays) >= 0,
            ),
            (
                "dropouts",
                "at least one, all in [0, 1)",
                bool(self.dropouts) and all(0 <= p < 1 for p in self.dropouts),
            ),
            ("epochs", ">= 1", self.epochs >= 1),
            ("min_steps", ">= 0", self.min_steps >= 0),
            ("batch_size", ">= 2", self.batch_size >= 2),
            ("validation_fraction", "in (0, 1)", 0 < self.validation_fraction < 1),
            ("jitter_std", ">= 0", self.jitter_std >= 0),
            ("jitter_probability", "in [0, 1]", 0 <= self.jitter_probability <= 1),
            ("jitter_validation", "true or false", isinstance(self.jitter_validation, bool)),
            ("clip_norm", "> 0", self.clip_norm > 0),
            ("min_lr", ">= 0", self.min_lr >= 0),
            (
                "penalties",
                "at least one, all > 0",
                bool(self.penalties) and all(0 < p < math.inf for p in self.penalties),
            ),
            (
                "num_neighbors",
                "at least one, all whole and >= 1",
                bool(self.num_neighbors) and all(isinstance(k, int) and k >= 1 for k in self.num_neighbors),
            ),
            ("sweep", "'full' or 'halving'", self.sweep in ("full", "halving")),
            ("compute", "auto, " + ", ".join(COMPUTES), self.compute in ("auto", *COMPUTES)),
            ("seed", ">= 0", self.seed >= 0),
        )
        wrong = [(name, rule) for name, rule, holds in ranges if not holds]
        if wrong:
            raise SettingError(
                where="TrainingProtocol",
                expected="; ".join(f"{name} {rule}" for name, rule in wrong),
                got="; ".join(f"{name} {getattr(self, name)}" for name, _ in wrong),
                todo="Correct the protocol.",
            )

    def settings(self, head: Head) -> tuple[Setting, ...]:
        """The grid of a head, in the order in which settings win ties.

        >>> [len(PAPER.settings(head)) for head in (Head(kind="attentive", num_heads=24), Head(kind="linear"))]
        [63, 21]
        """
        dropouts = self.dropouts if HEADS[head.kind].has_dropout else (0.0,)
        return tuple(
            Setting(lr=lr, weight_decay=weight_decay, dropout=dropout)
            for lr, weight_decay, dropout in product(self.lrs, self.weight_decays, dropouts)
        )

    def solved_settings(self, head: Head) -> tuple[SolvedSetting, ...]:
        """The grid of a head that is solved, in the order in which settings win ties.

        Raises:
            SettingError: the head is trained.

        >>> [len(PAPER.solved_settings(Head(kind=kind))) for kind in ("ridge", "logreg", "knn")]
        [11, 11, 5]
        """
        if not HEADS[head.kind].is_solved:
            raise SettingError(
                where="head to solve",
                expected="one of " + ", ".join(name for name in HEADS if HEADS[name].is_solved),
                got=repr(head.kind),
                todo="Train it with run_sweep.",
            )
        if HEADS[head.kind].grid == "num_neighbors":
            return tuple(NeighborSetting(num_neighbors=count) for count in self.num_neighbors)
        return tuple(PenaltySetting(penalty=penalty) for penalty in self.penalties)


PAPER = TrainingProtocol()
QUICK = TrainingProtocol(lrs=(1e-1, 1e-2), weight_decays=(1e-4, 1.0), dropouts=(0.0,), min_steps=500)
