"""Choosing: train the grids of some heads on the kept images, together, and score each setting on the held-out ones.

Grids are trained bank by bank; banks that fit the memory share a pass over the batches. What a finished bank scored goes
to a journal, if there is one, and is not trained again by a sweep that goes on after a crash. Settings that are the same
bits by arithmetic (`duplicate_settings.py`) are trained once and scored alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from .curves import LearningCurves, join_curves
from .data.batches import BatchPlan
from .data.token_source import TokenSource
from .duplicate_settings import first_duplicates
from .evaluate import validate
from .events import OnEvent, Progress
from .fit import fit_banks
from .group_plan import Candidate
from .halving import Rung, keep_best, plan_rungs
from .outcome import SettingScore
from .passes import plan_passes
from .protocol import Setting, TrainingProtocol
from .time_attribution import shared_out
from .trainable_heads import TrainableHead


@dataclass(frozen=True, kw_only=True)
class BankKey:
    """Which bank of a sweep: a head on its blocks, the settings trained together, and for how many steps."""

    candidate: Candidate
    settings: tuple[Setting, ...]
    num_steps: int


@dataclass(frozen=True, kw_only=True, eq=False)
class BankScores:
    """What a bank leaves when it has been validated.

    Attributes:
        accuracies: [P] float64, balanced accuracy on the held-out images; NaN where a probe diverged.
        curves: of its training.
    """

    accuracies: Tensor
    curves: LearningCurves


class Journal(Protocol):
    """Where a sweep keeps finished banks, so that it can go on after a crash."""

    def find(self, key: BankKey) -> BankScores | None:
        """What was kept of a bank; None if it was not."""
        ...

    def keep(self, key: BankKey, scores: BankScores) -> None:
        """Keep it before the next bank begins."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Selection:
    """How the settings of one head did.

    Attributes:
        scores: of every setting, in the order of the grid.
        finalists: those of the last rung, from which the choice is made.
        rungs: what was trained: twins count once.
        curves: [P, K], of every setting's last training.
    """

    scores: tuple[SettingScore, ...]
    finalists: tuple[SettingScore, ...]
    rungs: tuple[Rung, ...]
    curves: LearningCurves


def select(
    trainables: Sequence[TrainableHead],
    train: TokenSource,
    rows: tuple[Tensor, Tensor],
    protocol: TrainingProtocol,
    plan: BatchPlan,
    *,
    memory_bytes: int | None,
    device: torch.device | str,
    journal: Journal | None,
    seconds: Sequence[dict[str, float]],
    on_event: OnEvent | None,
) -> list[Selection]:
    """Score every setting of every entrant.

    Args:
        entrants: heads on their tokens.
        train: the training images.
        rows: to train on, and held out.
        protocol: how.
        plan: the batches of the rows to train on.
        memory_bytes: what the banks of a pass may take together; None is no limit.
        device: of the arithmetic.
        journal: of finished banks.
        seconds: of each entrant; its part of the wall time is added here, to select and validate.
        emit: called with `Progress`.
    """
    grids = [_Grid(trainable, protocol, plan) for trainable in trainables]
    seconds_of = dict(zip(grids, seconds, strict=True))
    for number in range(len(grids[0].planned)):
        work: list[tuple[_Grid, BankKey, list[int]]] = []
        for grid in grids:
            for members, key in grid.begin(number):
                known = None if journal is None else journal.find(key)
                if known is None:
                    work.append((grid, key, members))
                else:
                    grid.record(members, key, known)
        passes = plan_passes([grid.trainable.bank_bytes for grid, _, _ in work], memory_bytes)
        for turn, places in enumerate(passes):
            bank_runs = [work[place][0].trainable.group(work[place][1].settings, device) for place in places]
            steps = work[places[0]][1].num_steps
            best = max((grid.best for grid in grids if grid.best is not None), default=None)
            told = _of_pass(on_event, turn, len(passes))
            parties = [
                (seconds_of[work[place][0]], bank_run.watch) for place, bank_run in zip(places, bank_runs, strict=True)
            ]
            with shared_out("select", parties):
                fitted = fit_banks(
                    bank_runs, train, rows[0], protocol, schedule_steps=steps, phase="select", best=best, on_event=told
                )
            with shared_out("validate", parties):
                accuracies = validate(bank_runs, train, rows[1], protocol, best=best, on_event=told)
            del bank_runs  # before the next banks take their memory
            for place, outcome, accuracy in zip(places, fitted, accuracies, strict=True):
                grid, key, members = work[place]
                scores = BankScores(
                    accuracies=accuracy.masked_fill_(outcome.diverged, torch.nan), curves=outcome.curves
                )
                if journal is not None:
                    journal.keep(key, scores)
                grid.record(members, key, scores)
    return [grid.selection() for grid in grids]


class _Grid:
    """The settings of one entrant on their way through the rungs."""

    def __init__(self, trainable: TrainableHead, protocol: TrainingProtocol, plan: BatchPlan) -> None:
        self.trainable = trainable
        self._duplicates = first_duplicates(trainable.settings)
        self._alive = sorted(set(self._duplicates))
        self.planned = plan_rungs(protocol.sweep, len(self._alive), plan.num_steps)
        self._rungs: list[Rung] = []
        self._scores: dict[int, SettingScore] = {}
        self._curves: list[tuple[list[int], LearningCurves]] = []

    @property
    def best(self) -> float | None:
        return max((score.validation for score in self._scores.values() if score.validation is not None), default=None)

    def begin(self, number: int) -> list[tuple[list[int], BankKey]]:
        """The banks of a rung: settings by number, and what they are."""
        rung = self.planned[number]
        if number:
            last = [self._scores[index].validation for index in self._alive]
            self._alive = keep_best(self._alive, last, rung.num_settings)
        if not self._alive:
            return []
        self._rungs.append(replace(rung, num_settings=len(self._alive)))
        # probes of one dropout rate side by side: a bank trains them together
        by_dropout = sorted(self._alive, key=lambda index: self.trainable.settings[index].dropout)
        memory = self.trainable.memory
        banks = [list(range(len(by_dropout)))] if memory is None else memory.banks(len(by_dropout))
        return [self._bank([by_dropout[place] for place in places], rung.num_steps) for places in banks]

    def _bank(self, members: list[int], num_steps: int) -> tuple[list[int], BankKey]:
        settings = tuple(self.trainable.settings[member] for member in members)
        return members, BankKey(candidate=self.trainable.candidate, settings=settings, num_steps=num_steps)

    def record(self, members: list[int], key: BankKey, scores: BankScores) -> None:
        """What a bank scored."""
        self._curves.append((members, scores.curves))
        for member, accuracy in zip(members, scores.accuracies.tolist(), strict=True):
            self._scores[member] = SettingScore(
                setting=self.trainable.settings[member],
                validation=None if accuracy != accuracy else accuracy,
                num_steps=key.num_steps,
            )

    def selection(self) -> Selection:
        """All settings, twins with the scores of the first."""
        scores = tuple(
            replace(self._scores[first], setting=setting)
            for first, setting in zip(self._duplicates, self.trainable.settings, strict=True)
        )
        last_rung = set(self._alive)
        return Selection(
            scores=scores,
            finalists=tuple(score for score, first in zip(scores, self._duplicates, strict=True) if first in last_rung),
            rungs=tuple(self._rungs),
            curves=join_curves(self._curves, len(scores)).rows(self._duplicates),
        )


def _of_pass(on_event: OnEvent | None, number: int, num_passes: int) -> Callable[[Progress], None] | None:
    """Progress of one of several passes as a part of the whole phase."""
    if on_event is None or num_passes == 1:
        return on_event

    def report(event: Progress) -> None:
        done = number * event.num_steps + event.step
        on_event(replace(event, step=done, num_steps=num_passes * event.num_steps))

    return report
