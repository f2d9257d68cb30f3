"""Results of training and of sweeps: learning curves, scores of settings, the chosen setting, test metrics."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from .banks.budget import MemoryPlan
from .data.batches import BatchPlan
from .ensemble import Ensemble
from .heads import Head, HeadModule
from .protocol import Setting, SolvedSetting

Probe = HeadModule | Ensemble
NUM_POINTS = 100  # of a learning curve


@dataclass(frozen=True, kw_only=True, eq=False)
class LearningCurves:
    """Training loss and learning rate of P probes at K steps of the schedule.

    Attributes:
        steps: [K] int64, ascending, from 0 to the last step of the schedule.
        losses: [P, K] float32, loss on the batch of the step, before the update; NaN where a probe has no value at this step.
        lrs: [P, K] float32, learning rate of the step; NaN likewise.
    """

    steps: Tensor
    losses: Tensor
    lrs: Tensor

    def rows(self, places: Sequence[int]) -> LearningCurves:
        """The curves of some of the probes, in the given order."""
        index = torch.tensor(places, dtype=torch.int64)
        return LearningCurves(steps=self.steps, losses=self.losses[index], lrs=self.lrs[index])


def sampled_steps(num_steps: int) -> list[int]:
    """The steps of a schedule that a curve keeps: first, last, and evenly spaced between, at most `NUM_POINTS`.

    >>> steps = sampled_steps(1002)
    >>> len(steps), steps[:3], steps[-1]
    (100, [0, 10, 20], 1001)
    >>> sampled_steps(3)
    [0, 1, 2]
    """
    last = num_steps - 1
    return sorted({last * point // (NUM_POINTS - 1) for point in range(NUM_POINTS)})


def join_curves(parts: Iterable[tuple[Sequence[int], LearningCurves]], num_probes: int) -> LearningCurves:
    """Join curves of some probes each. If a probe occurs twice, the later curve replaces the earlier one.

    Args:
        parts: probe numbers and their curves. Schedules of different lengths have different steps: the result has all of them.
        num_probes: P of the result; probes in no part are NaN.
    """
    parts = list(parts)
    steps = torch.tensor(sorted({step for _, curves in parts for step in curves.steps.tolist()}), dtype=torch.int64)
    losses, lrs = torch.full((2, num_probes, len(steps)), torch.nan)
    for members, curves in parts:
        columns = torch.searchsorted(steps, curves.steps)
        for row, member in enumerate(members):
            for whole, part in ((losses, curves.losses), (lrs, curves.lrs)):
                whole[member] = torch.nan
                whole[member, columns] = part[row]
    return LearningCurves(steps=steps, losses=losses, lrs=lrs)


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One round of a sweep: the number of settings, and of optimiser steps for each."""

    num_settings: int
    num_steps: int

    @property
    def probe_steps(self) -> int:
        return self.num_settings * self.num_steps


@dataclass(frozen=True, kw_only=True)
class SettingScore:
    """The score of one setting of the grid.

    Attributes:
        setting: a point of the grid.
        validation: the task's score of the validation images; None if the training diverged.
        num_steps: optimiser steps of its last training: fewer than the schedule if a halving sweep dropped it; 0 if it was solved.
    """

    setting: Setting | SolvedSetting
    validation: float | None
    num_steps: int

    @property
    def diverged(self) -> bool:
        return self.validation is None


@dataclass(frozen=True, kw_only=True, eq=False)
class SweepResult:
    """The result of a sweep.

    Attributes:
        head: head of the chosen candidate.
        scores: one for each setting of the chosen candidate, in the order in which they win ties.
        chosen: the best setting; None if every setting diverged.
        validation: its score on the validation images.
        diverged: every setting diverged, or the final training did.
        test: metrics of the task on the test images, by name; None if diverged.
        test_logits: [N, C] float32 in the order of the test source; None if diverged.
        probe: the probe trained on all training images; None if diverged.
        num_parameters: parameters of the probe.
        num_parameters_before_classifier: the same without weight and bias of the classifier.
        seconds: wall time of the phases select, validate, refit and test; for sweeps that run together, the share of this one.
        selection: batch plan of the training of the grid; None if nothing is trained.
        rungs: rounds of training, of all candidates: one for a full sweep, several for a halving sweep.
        curves: [P, K], last training of every setting; None if nothing is trained.
        refit: batch plan of the final training; None if every setting diverged or nothing is trained.
        refit_curves: [1, K] curves of the final training; [k, K] for an ensemble of k probes.
        memory: number and shape of the banks that trained the grid; None if nothing is trained.
        candidate: index of the chosen candidate; 0 if every setting of all candidates diverged.
        candidate_scores: scores of every setting of every candidate.
    """

    head: Head
    scores: tuple[SettingScore, ...]
    chosen: Setting | SolvedSetting | None
    validation: float | None
    diverged: bool
    test: dict[str, float] | None
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
    """The score with the highest validation score, the first among equals; None if all settings diverged.

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
