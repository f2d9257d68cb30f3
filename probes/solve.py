"""Probes that are solved, not trained: ridge, logistic regression and kNN on the tokens of the linear probes.

The protocol of a sweep applies: the same stratified images are held out, each setting is solved on the rest and scored on them by
the task's metric, the best (first of equals) is solved again on all training images, and the test images are opened once, last.
Every class has the same weight (kNN has no weights). There is no jitter, batch or step; a solution depends on the seed through the
split alone. Several candidates are one head on several sets of tokens, whose settings form one grid. The features of one candidate
at a time are held in memory, 4 N F bytes beside what the solver takes (`HeadType.solver_bytes`); where that is more than may be
used, they are read again each time, with the same bits. CPU only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import astuple

import torch
from torch import Tensor

from .banks.budget import too_little_memory
from .data.features import SourceFeatures
from .data.split import split_rows
from .data.token_source import TokenSource, read_batches, row_weights, training_rows
from .errors import SettingError
from .evaluate import check_test, measure
from .events import OnEvent, Reporter
from .heads import HEADS, Head, HeadModule, check_task
from .outcome import SettingScore, SweepResult, choose, timed
from .protocol import Setting, SolvedSetting, TrainingProtocol
from .tasks import Task

BATCH = 1024


def run_solver(
    head: Head,
    train: TokenSource,
    open_test: Callable[[], TokenSource],
    protocol: TrainingProtocol,
    *,
    memory_bytes: int | None = None,
    on_event: OnEvent | None = None,
) -> SweepResult:
    """`run_solvers` with one candidate, the images of `train`; `open_test` is called once, after everything else."""
    return run_solvers(
        head, [lambda: train], lambda candidate: open_test(), protocol, memory_bytes=memory_bytes, on_event=on_event
    )


@torch.no_grad()
def run_solvers(
    head: Head,
    candidates: Sequence[Callable[[], TokenSource]],
    open_test: Callable[[int], TokenSource],
    protocol: TrainingProtocol,
    *,
    memory_bytes: int | None = None,
    on_event: OnEvent | None = None,
) -> SweepResult:
    """Choose a candidate and a setting on held-out training images, solve it on all of them, test it once.

    In the result `selection`, `refit` and `memory` are None, `rungs` is empty, and nothing can diverge.

    Args:
        head: a solved head, such as ridge, logreg or knn.
        candidates: open the training images, each with some of their tokens, in the order in which they win ties.
        open_test: opens the test images with the tokens of a candidate, by number; called once, after everything else.
        protocol: the grid of the head, validation share and seed; the rest does not matter here.
        memory_bytes: what features and solver may take; None is no limit.
        on_event: called with `Progress`.

    Raises:
        SettingError: the head is trained or cannot answer the task, the tokens are not concatenated, or too little memory.
        DataError: too few images to hold some out, tokens that are not finite, or test tokens unlike the training tokens.
    """
    settings = protocol.solved_settings(head)
    seconds: dict[str, float] = {}
    reporter = Reporter(on_event, "select", len(candidates) * len(settings), 1)
    reporter.report(0)
    scores: list[tuple[SettingScore, ...]] = []
    solver = _Solver(head, memory_bytes)
    for open_train in candidates:
        scores.append(_score(solver, open_train, settings, protocol, seconds))
        reporter.report(len(scores) * len(settings))
    best = choose([score for found in scores for score in found])
    assert best is not None and not isinstance(best.setting, Setting)  # noqa: PT018
    candidate = next(number for number, found in enumerate(scores) if any(score is best for score in found))
    with timed(seconds, "refit"):
        train = candidates[candidate]()
        rows = training_rows(train)
        task = train.task.fit(train.targets[rows])
        (probe,) = probes = solver.solve(train, rows, task, [best.setting])
    with timed(seconds, "test"):
        check_test(train, test := open_test(candidate))
        logits = torch.cat([part[0] for part in _logits(probes, test, torch.arange(len(test.targets)))])
    return SweepResult(
        head=head,
        candidate=candidate,
        candidate_scores=tuple(scores),
        scores=scores[candidate],
        chosen=best.setting,
        validation=best.validation,
        diverged=False,
        test=measure(task, logits, test.targets),
        test_logits=logits,
        probe=probe,
        num_parameters=sum(parameter.numel() for parameter in probe.parameters()),
        num_parameters_before_classifier=0,
        seconds=seconds,
    )


def _score(
    solver: _Solver,
    open_train: Callable[[], TokenSource],
    settings: Sequence[SolvedSetting],
    protocol: TrainingProtocol,
    seconds: dict[str, float],
) -> tuple[SettingScore, ...]:
    """Solve every setting of a candidate on the kept images, score it on those held out."""
    with timed(seconds, "select"):
        train = open_train()
        solver.check(train, len(settings))
        kept, held_out = split_rows(train, protocol.validation_fraction, protocol.seed)
        task = train.task.fit(train.targets[kept])
        task.check_scored(train.targets[held_out])
        probes = solver.solve(train, kept, task, settings)
    with timed(seconds, "validate"):
        scored = torch.cat([task.scored(logits) for logits in _logits(probes, train, held_out)], dim=1)  # [P, N, ...]
        found = task.score(scored, train.targets[held_out]).tolist()
    return tuple(
        SettingScore(setting=setting, validation=score, num_steps=0)
        for setting, score in zip(settings, found, strict=True)
    )


class _Solver:
    """The solver of a head, within some memory; None is no limit."""

    def __init__(self, head: Head, memory_bytes: int | None) -> None:
        self._head, self._memory_bytes = head, memory_bytes

    def check(self, source: TokenSource, num_settings: int) -> None:
        """Raise SettingError unless the head can be solved on all rows of a source."""
        check_task(self._head, source.task)
        if len(source.token_shape) != 1:
            raise SettingError("probes.tokens_not_flat", head=self._head.kind, shape=source.token_shape)
        needed_bytes = self._bytes(source, len(source.targets), num_settings)
        if self._memory_bytes is not None and needed_bytes > self._memory_bytes:
            raise too_little_memory(needed_bytes, self._memory_bytes, source.token_shape)

    def solve(
        self, source: TokenSource, rows: Tensor, task: Task, settings: Sequence[SolvedSetting]
    ) -> Sequence[HeadModule]:
        """One probe a setting, solved on some rows."""
        held_bytes = None
        if self._memory_bytes is not None:
            held_bytes = self._memory_bytes - self._bytes(source, len(rows), len(settings))
        features = SourceFeatures(source, rows, held_bytes)
        targets, solver = source.targets[features.rows], HEADS[self._head.kind].solver
        assert solver is not None
        weights = task.sample_weights(targets)
        if (own := row_weights(source)) is not None:
            weights = weights * own[features.rows]
        values = [astuple(setting)[0] for setting in settings]
        probes = solver(features, task.encode(targets), weights / weights.sum(), task, values)
        return [probe.eval() for probe in probes]

    def _bytes(self, source: TokenSource, num_rows: int, num_settings: int) -> int:
        """What solving takes beside the features."""
        sizes = num_rows, source.token_shape[0], source.task.num_outputs, num_settings
        return HEADS[self._head.kind].solver_bytes(*sizes)


def _logits(probes: Sequence[HeadModule], source: TokenSource, rows: Tensor) -> Iterator[Tensor]:
    """[P, b, C] float32 on the CPU for each part of the rows, in order; tokens are read once for all probes."""
    with closing(read_batches(source, torch.split(rows, BATCH))) as stream:
        for _, tokens in stream:
            yield torch.stack(type(probes[0]).forward_each(probes, tokens.cpu()))
