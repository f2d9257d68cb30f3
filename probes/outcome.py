"""What a sweep found: scores of every setting, the choice, its test."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from .banks.budget import MemoryPlan
from .curves import LearningCurves
from .data.batches import BatchPlan
from .ensemble import Ensemble
from .halving import Rung
from .heads import Head, HeadModule
from .protocol import Setting, SolvedSetting

Probe = HeadModule | Ensemble


@dataclass(frozen=True, kw_only=True)
class SettingScore:
    """One setting of the grid.

    Attributes:
        setting: where it is in the grid.
        validation: balanced accuracy on the validation images, None where it diverged.
        num_steps: optimiser steps it was last trained for: all of them, or fewer where a halving sweep dropped it; 0 where it was
            solved.
    """

    setting: Setting | SolvedSetting
    validation: float | None
    num_steps: int

    @property
    def diverged(self) -> bool:
        return self.validation is None


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Accuracies in [0, 1]."""

    balanced_accuracy: float
    top1: float
    top5: float


@dataclass(frozen=True, kw_only=True, eq=False)
class SweepResult:
    """What a sweep found.

    Attributes:
        head: of the candidate that was chosen.
        candidate: its number; 0 where there was one, or if every setting of all diverged.
        candidate_scores: of every candidate's every setting.
        scores: of the candidate's settings, in the order in which they win ties.
        chosen: the winner, None if every setting diverged.
        validation: its balanced accuracy on the validation images.
        diverged: every setting did, or the final training did.
        test: metrics on the test images, None if diverged.
        test_logits: [N, C] float32 in the order of the test source, None if diverged.
        probe: trained on all training images, None if diverged.
        num_parameters: of the probe.
        num_parameters_before_classifier: without the classifier's weight and bias.
        selection: batches of the training of the grid; None where nothing is trained.
        rungs: the rounds that were trained, of all candidates: one of all settings, or those of a halving sweep.
        curves: [P, K] of the training of the grid, each setting's last; None where nothing is trained.
        refit: batches of the training of the choice; None if every setting diverged or nothing is trained.
        refit_curves: [1, K] of it; of an ensemble [k, K].
        memory: in how many banks the grid was trained, and how; None where nothing is trained.
        seconds: phase -> wall time: select, validate, refit, test; of sweeps that run together this one's part, see
            `time_attribution.py`.
    """

    head: Head
    scores: tuple[SettingScore, ...]
    chosen: Setting | SolvedSetting | None
    validation: float | None
    diverged: bool
    test: Metrics | None
    test_logits: Tensor | None
    probe: Probe | None
    num_parameters: int
    num_parameters_before_classifier: int
    seconds: dict[str, float]
    selection: BatchPlan | None = None
    rungs: tuple[Rung, ...] = ()
    curves: LearningCurves | None = None
    refit: BatchPlan | None = None
    refit_curves: LearningCurves | None = None
    memory: MemoryPlan | None = None
    candidate: int = 0
    candidate_scores: tuple[tuple[SettingScore, ...], ...] = ()


def choose(scores: Sequence[SettingScore]) -> SettingScore | None:
    """The best on validation, the first of equals; None if all diverged.

    >>> one, two = Setting(lr=0.1, weight_decay=0.0), Setting(lr=0.01, weight_decay=0.0)
    >>> def pick(*accuracies):
    ...     scores = zip((one, two), accuracies, strict=True)
    ...     return choose([SettingScore(setting=s, validation=v, num_steps=1) for s, v in scores]).setting.lr
    >>> pick(0.5, 0.5), pick(None, 0.2)
    (0.1, 0.01)
    """
    finished = [score for score in scores if not score.diverged]
    return max(finished, key=lambda score: score.validation or 0.0, default=None)


@contextmanager
def timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    """Add the wall time of the block to seconds[phase]."""
    start_s = time.perf_counter()
    yield
    seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - start_s
