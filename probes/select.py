"""The grids of heads that train together: their banks, pass by pass, and the validation score of each setting.

Grids are trained bank by bank (`sweep.py`); banks that fit into the memory share a pass over the batches. The scores of a finished
bank are written to a journal, if there is one, so that a sweep that was interrupted does not train it again. Settings that train to
the same bits (`protocol.first_duplicates`) are trained once and get the same score.

A sweep is full by default, one round of all settings. Successive halving is an option:

    rung 0    all P settings               ceil(S / 9) steps
    rung 1    the best ceil(P / 3)         ceil(S / 3) steps
    rung 2    the best ceil(P / 9)         S steps, the whole schedule

Every rung starts from the same initial weights and runs a whole cosine of its own length, on the first batches, jitter and
noise of the full training. So a rung ranks finished probes, and the settings of the last rung are trained exactly as the full
grid trains them, up to the order of float32 sums. S is the number of steps of the protocol; `min_steps` holds for the last rung.
The setting is chosen among the last rung, then trained on all images. 63 settings cost a third of the full grid, 21 a little
more, 4 a half.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from .data.batches import BatchPlan, plan_batches
from .data.split import split_rows
from .data.token_source import TokenSource
from .events import OnEvent, Progress
from .fit import BankRun, FitResult
from .outcome import LearningCurves, Rung, SettingScore, join_curves
from .plan import Candidate, GroupPlan, TrainableHead, plan_passes
from .protocol import Setting, TrainingProtocol, first_duplicates

SHRINK = 3  # each rung trains a third of the settings for three times the steps, at equal cost
NUM_RUNGS = 3


@dataclass(frozen=True, kw_only=True)
class BankKey:
    """Identifies a bank of a sweep: a head on its blocks, the settings trained together, and the number of steps."""

    candidate: Candidate
    settings: tuple[Setting, ...]
    num_steps: int


@dataclass(frozen=True, kw_only=True, eq=False)
class BankScores:
    """The result of a bank.

    Attributes:
        accuracies: [P] float64, the task's score on the held-out images; NaN for a probe that diverged.
        curves: learning curves of its training.
    """

    accuracies: Tensor
    curves: LearningCurves


class Journal(Protocol):
    """Keeps finished banks, so that a sweep can continue after a crash."""

    def find(self, key: BankKey) -> BankScores | None:
        """The result of a finished bank; None if it is not in the journal."""
        ...

    def keep(self, key: BankKey, scores: BankScores) -> None:
        """Write the result before the next bank begins."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Selection:
    """The scores of one head.

    Attributes:
        scores: of every setting, in the order of the grid.
        finalists: scores of the last rung, from which the setting is chosen.
        rungs: the rounds that were trained; duplicate settings count once.
        curves: [P, K], last training of every setting.
        plan: batches of the kept images.
        seconds: wall time of select and validate.
    """

    scores: tuple[SettingScore, ...]
    finalists: tuple[SettingScore, ...]
    rungs: tuple[Rung, ...]
    curves: LearningCurves
    plan: BatchPlan
    seconds: dict[str, float]


class GridSearch:
    """The grids of some heads on their way through the rungs.

    Args:
        plan: the heads, and the memory for the banks of a pass.
        train: the training images.
        protocol: the grid, the split and how to train.
        journal: finished banks.

    Attributes:
        kept: [n] int64, the rows that train.
        held_out: [m] int64, the rows that score.
        task: fitted to the rows that train.
    """

    def __init__(
        self, plan: GroupPlan, train: TokenSource, protocol: TrainingProtocol, journal: Journal | None
    ) -> None:
        self.kept, self.held_out = split_rows(train, protocol.validation_fraction, protocol.seed)
        self.task = train.task.fit(train.targets[self.kept])
        self.task.check_scored(train.targets[self.held_out])
        batches = plan_batches(
            len(self.kept), wish=protocol.batch_size, epochs=protocol.epochs, min_steps=protocol.min_steps
        )
        self._banks_bytes, self._journal = plan.banks_bytes, journal
        self._grids = [_Grid(head, batches) for head in plan.heads.values()]

    @property
    def best(self) -> float | None:
        """The highest validation score so far."""
        return max((grid.best for grid in self._grids if grid.best is not None), default=None)

    def passes(self, on_event: OnEvent | None) -> Iterator[tuple[list[GridBank], OnEvent | None]]:
        """The banks of each pass that are not in the journal, and a callback for the progress of the pass.

        The scores of a pass have to be recorded before the next one is taken.
        """
        for rung in range(len(self._grids[0].planned)):
            banks = []
            for bank in (bank for grid in self._grids for bank in grid.begin(rung)):
                known = None if self._journal is None else self._journal.find(bank.key)
                if known is None:
                    banks.append(bank)
                else:
                    bank.grid.record(bank, known)
            passes = plan_passes([bank.grid.head.memory.total_bytes for bank in banks], self._banks_bytes)
            for number, places in enumerate(passes):
                yield [banks[place] for place in places], _events_of_pass(on_event, number, len(passes))

    def record(self, banks: Sequence[GridBank], fitted: Sequence[FitResult], accuracies: Sequence[Tensor]) -> None:
        """Keep the scores [P] of the banks of a pass."""
        for bank, outcome, accuracy in zip(banks, fitted, accuracies, strict=True):
            scores = BankScores(accuracies=accuracy.masked_fill(outcome.diverged, torch.nan), curves=outcome.curves)
            if self._journal is not None:
                self._journal.keep(bank.key, scores)
            bank.grid.record(bank, scores)

    def selections(self) -> dict[Candidate, Selection]:
        """The scores of each head, after the last pass."""
        return {grid.head.candidate: grid.selection() for grid in self._grids}


@dataclass(frozen=True, kw_only=True, eq=False)
class GridBank:
    """A bank of a grid, with the indices of its settings in the grid."""

    grid: _Grid
    members: list[int]
    key: BankKey

    def make_run(self, device: torch.device | str) -> BankRun:
        """The bank, with the initial weights."""
        return self.grid.head.make_run(self.key.settings, device, self.grid.seconds)


class _Grid:
    """The settings of one head on their way through the rungs."""

    def __init__(self, head: TrainableHead, plan: BatchPlan) -> None:
        self.head, self._plan, self._settings = head, plan, head.protocol.settings(head.candidate.head)
        self.seconds = {"select": 0.0, "validate": 0.0}
        self._duplicates = first_duplicates(self._settings)
        self._alive = sorted(set(self._duplicates))
        self.planned = plan_rungs(head.protocol.sweep, len(self._alive), plan.num_steps)
        self._rungs: list[Rung] = []
        self._scores: dict[int, SettingScore] = {}
        self._curves: list[tuple[list[int], LearningCurves]] = []

    @property
    def best(self) -> float | None:
        return max((score.validation for score in self._scores.values() if score.validation is not None), default=None)

    def begin(self, number: int) -> list[GridBank]:
        """The banks of a rung."""
        rung, settings = self.planned[number], self._settings
        if number:
            last = [self._scores[index].validation for index in self._alive]
            self._alive = keep_best(self._alive, last, rung.num_settings)
        if not self._alive:
            return []
        self._rungs.append(replace(rung, num_settings=len(self._alive)))
        # probes of one dropout rate side by side: a bank trains them together
        by_dropout = sorted(self._alive, key=lambda index: settings[index].dropout)
        banks = []
        for places in self.head.memory.banks(len(by_dropout)):
            members = [by_dropout[place] for place in places]
            trained = tuple(settings[member] for member in members)
            key = BankKey(candidate=self.head.candidate, settings=trained, num_steps=rung.num_steps)
            banks.append(GridBank(grid=self, members=members, key=key))
        return banks

    def record(self, bank: GridBank, scores: BankScores) -> None:
        self._curves.append((bank.members, scores.curves))
        for member, accuracy in zip(bank.members, scores.accuracies.tolist(), strict=True):
            self._scores[member] = SettingScore(
                setting=self._settings[member],
                validation=None if accuracy != accuracy else accuracy,
                num_steps=bank.key.num_steps,
            )

    def selection(self) -> Selection:
        """All settings; duplicates have the score of the first."""
        scores = tuple(
            replace(self._scores[first], setting=setting)
            for first, setting in zip(self._duplicates, self._settings, strict=True)
        )
        last_rung = set(self._alive)
        return Selection(
            scores=scores,
            finalists=tuple(score for score, first in zip(scores, self._duplicates, strict=True) if first in last_rung),
            rungs=tuple(self._rungs),
            curves=join_curves(self._curves, len(scores)).rows(self._duplicates),
            plan=self._plan,
            seconds=self.seconds,
        )


def plan_rungs(sweep: str, num_settings: int, num_steps: int) -> tuple[Rung, ...]:
    """Plan the rounds of a sweep.

    Args:
        sweep: "full" for one round of all settings, or "halving".
        num_settings: P, size of the grid.
        num_steps: S, length of the full schedule.

    >>> [(rung.num_settings, rung.num_steps) for rung in plan_rungs("halving", 63, 1000)]
    [(63, 112), (21, 334), (7, 1000)]
    >>> plan_rungs("full", 63, 1000)
    (Rung(num_settings=63, num_steps=1000),)
    """
    if sweep == "full":
        return (Rung(num_settings=num_settings, num_steps=num_steps),)
    shares = [SHRINK**rung for rung in range(NUM_RUNGS)]
    return tuple(
        Rung(num_settings=-(-num_settings // share), num_steps=-(-num_steps // rest))
        for share, rest in zip(shares, reversed(shares), strict=True)
    )


def keep_best(candidates: Sequence[int], accuracies: Sequence[float | None], count: int) -> list[int]:
    """Keep the `count` best candidates, in their order and the first among equals; diverged ones (None) are never kept.

    >>> keep_best([4, 5, 6, 7], [0.5, 0.9, None, 0.5], 2)
    [4, 5]
    """
    finished = [
        (accuracy, index) for index, accuracy in zip(candidates, accuracies, strict=True) if accuracy is not None
    ]
    return sorted(index for _, index in sorted(finished, key=lambda pair: -pair[0])[:count])


def _events_of_pass(on_event: OnEvent | None, number: int, num_passes: int) -> OnEvent | None:
    """A callback that reports the progress of one pass as part of the whole phase."""
    if on_event is None or num_passes == 1:
        return on_event

    def report(event: Progress) -> None:
        done = number * event.num_steps + event.step
        on_event(replace(event, step=done, num_steps=num_passes * event.num_steps))

    return report
