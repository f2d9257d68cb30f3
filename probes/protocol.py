"""Heads, settings, and the protocol by which probes are trained and chosen.

`PAPER` has the values of arXiv 2601.09322; `QUICK` is a small grid for a demonstration on two CPU cores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

from .errors import SettingError
from .heads import HEADS, Head
from .matmul import COMPUTES

NO_DECAY = 2.0**-25  # half the distance between 1 and the float32 number below it


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One point of the grid: peak learning rate, weight decay of AdamW, rate of the attention dropout."""

    lr: float
    weight_decay: float
    dropout: float = 0.0


@dataclass(frozen=True, kw_only=True)
class PenaltySetting:
    """Ridge and logistic regression: factor of the squared weights, added to a loss whose sample weights sum to 1."""

    penalty: float


@dataclass(frozen=True, kw_only=True)
class NeighborSetting:
    """kNN: number of training images that vote."""

    num_neighbors: int


SolvedSetting = PenaltySetting | NeighborSetting


@dataclass(frozen=True, kw_only=True)
class TrainingProtocol:
    """The grid, and how each of its settings is trained.

    Attributes:
        lrs: peak learning rates, in the order in which they win ties.
        weight_decays: weight decays of AdamW, applied to every parameter.
        dropouts: rates of the attention dropout; heads without dropout use the rate 0 only.
        epochs: passes over the training images; more if they make fewer than `min_steps` optimiser steps.
        min_steps: minimum number of optimiser steps.
        batch_size: wanted batch size; `choose_batch_size` adjusts it to the number of images.
        validation_fraction: fraction of each class held out to choose the setting.
        jitter_std: standard deviation of the Gaussian noise added to every element of a sample's tokens.
        jitter_probability: probability that a sample is jittered.
        jitter_validation: jitter the held-out images too when settings are scored, as the authors' code does; test images never.
        clip_norm: maximum norm of a probe's whole gradient; infinity disables clipping.
        min_lr: learning rate at the end of the cosine.
        penalties: of ridge and logistic regression, in the order in which they win ties; largest first is the fastest.
        num_neighbors: of kNN, in the order in which they win ties.
        sweep: "full" trains every setting to the end, "halving" drops the worse ones on the way, see `select.py`.
        compute: matmul precision, see `matmul.py`; "auto" is the default of the device.
        seed: seed of split, initial weights, order, jitter and dropout.

    Raises:
        SettingError: values are out of range; the message names all of them.
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
            ("lrs", "at least one, all > 0", _all(self.lrs, lambda lr: 0 < lr < math.inf)),
            ("weight_decays", "at least one, all >= 0", _all(self.weight_decays, lambda decay: decay >= 0)),
            ("dropouts", "at least one, all in [0, 1)", _all(self.dropouts, lambda rate: 0 <= rate < 1)),
            ("epochs", "an integer >= 1", _is_integer(self.epochs, 1)),
            ("min_steps", "an integer >= 0", _is_integer(self.min_steps, 0)),
            ("batch_size", "an integer >= 2", _is_integer(self.batch_size, 2)),
            ("validation_fraction", "in (0, 1)", 0 < self.validation_fraction < 1),
            ("jitter_std", ">= 0", self.jitter_std >= 0),
            ("jitter_probability", "in [0, 1]", 0 <= self.jitter_probability <= 1),
            ("jitter_validation", "true or false", isinstance(self.jitter_validation, bool)),
            ("clip_norm", "> 0", self.clip_norm > 0),
            ("min_lr", ">= 0", self.min_lr >= 0),
            ("penalties", "at least one, all > 0", _all(self.penalties, lambda penalty: 0 < penalty < math.inf)),
            (
                "num_neighbors",
                "at least one, all integers >= 1",
                _all(self.num_neighbors, lambda count: _is_integer(count, 1)),
            ),
            ("sweep", "'full' or 'halving'", self.sweep in ("full", "halving")),
            ("compute", "auto, " + ", ".join(COMPUTES), self.compute in ("auto", *COMPUTES)),
            ("seed", "an integer in [0, 2^63)", _is_integer(self.seed, 0)),
        )
        wrong = [(name, rule) for name, rule, holds in ranges if not holds]
        if wrong:
            raise SettingError(
                "probes.wrong_protocol",
                rules="; ".join(f"{name} {rule}" for name, rule in wrong),
                values="; ".join(f"{name} {getattr(self, name)}" for name, _ in wrong),
            )

    def settings(self, head: Head) -> tuple[Setting, ...]:
        """The grid of a trained head, in the order in which settings win ties.

        >>> [len(PAPER.settings(head)) for head in (Head(kind="attentive", num_heads=24), Head(kind="linear"))]
        [63, 21]
        """
        dropouts = self.dropouts if HEADS[head.kind].has_dropout else (0.0,)
        return tuple(
            Setting(lr=lr, weight_decay=weight_decay, dropout=dropout)
            for lr, weight_decay, dropout in product(self.lrs, self.weight_decays, dropouts)
        )

    def solved_settings(self, head: Head) -> tuple[SolvedSetting, ...]:
        """The grid of a solved head, in the order in which settings win ties.

        Raises:
            SettingError: the head is trained.

        >>> [len(PAPER.solved_settings(Head(kind=kind))) for kind in ("ridge", "logreg", "knn")]
        [11, 11, 5]
        """
        if not HEADS[head.kind].is_solved:
            kinds = ", ".join(name for name in HEADS if HEADS[name].is_solved)
            raise SettingError("probes.not_solved", kind=head.kind, kinds=kinds)
        if HEADS[head.kind].grid == "num_neighbors":
            return tuple(NeighborSetting(num_neighbors=count) for count in self.num_neighbors)
        return tuple(PenaltySetting(penalty=penalty) for penalty in self.penalties)


def first_duplicates(settings: Sequence[Setting]) -> list[int]:
    """For each setting, the index of the first one that trains to the same bits, often its own.

    AdamW multiplies weights by 1 - lr * weight_decay. Below `NO_DECAY` this is exactly 1 in float32, at every step since the
    cosine only lowers lr. Such settings are trained once (tests/test_duplicate_settings.py compares them with torch's AdamW).

    >>> settings = PAPER.settings(Head(kind="linear"))
    >>> [index for index, first in enumerate(first_duplicates(settings)) if first != index], settings[15]
    ([15], Setting(lr=0.001, weight_decay=1e-05, dropout=0.0))
    """
    first: dict[tuple[float, float, float], int] = {}
    return [
        first.setdefault(
            (one.lr, 0.0 if one.lr * one.weight_decay < NO_DECAY else one.weight_decay, one.dropout), index
        )
        for index, one in enumerate(settings)
    ]


def _is_integer(value: object, least: int) -> bool:
    """Whether a value is an `int` from `least` to 2^63 - 1; a bool is not accepted."""
    return type(value) is int and least <= value < 2**63


def _all(values: Sequence[float], rule: Callable[[float], bool]) -> bool:
    return bool(values) and all(map(rule, values))


PAPER = TrainingProtocol()
QUICK = TrainingProtocol(lrs=(1e-1, 1e-2), weight_decays=(1e-4, 1.0), dropouts=(0.0,), min_steps=500)
