"""Probes that are solved, not trained: ridge, logistic regression and kNN on the tokens of the linear probes.

The protocol of a sweep applies: the same stratified images are held out, each setting is solved on the rest and scored on them by
the task's metric, the best (first of equals) is solved again on all training images, and the test images are opened once, last.
Every class has the same weight (kNN has no weights). There is no jitter, batch or step; a solution depends on the seed through the
split alone. Several candidates are one head on several sets of tokens, whose settings form one grid. The features of one candidate
at a time are held in memory: 4 N F bytes, beside what the solver takes: about 40 min(N, F)^2 for ridge,
26 N F for logistic regression. CPU only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple

import torch
from torch import Tensor

from .data.split import split_rows
from .data.token_source import TokenSource, training_rows
from .errors import DataError, SettingError
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
    on_event: OnEvent | None = None,
) -> SweepResult:
    """`run_solvers` with one candidate, the images of `train`; `open_test` is called once, after everything else."""
    return run_solvers(head, [lambda: train], lambda candidate: open_test(), protocol, on_event=on_event)


@torch.no_grad()
def run_solvers(
    head: Head,
    candidates: Sequence[Callable[[], TokenSource]],
    open_test: Callable[[int], TokenSource],
    protocol: TrainingProtocol,
    *,
    on_event: OnEvent | None = None,
) -> SweepResult:
    """Choose a candidate and a setting on held-out training images, solve it on all of them, test it once.

    In the result `selection`, `refit` and `memory` are None, `rungs` is empty, and nothing can diverge.

    Args:
        head: a solved head, such as ridge, logreg or knn.
        candidates: open the training images, each with some of their tokens, in the order in which they win ties.
        open_test: opens the test images with the tokens of a candidate, by number; called once, after everything else.
        protocol: the grid of the head, validation share and seed; the rest does not matter here.
        on_event: called with `Progress`.

    Raises:
        SettingError: the head is trained or cannot answer the task, or the tokens are not concatenated.
        DataError: too few images to hold some out, tokens that are not finite, or test tokens unlike the training tokens.
    """
    settings = protocol.solved_settings(head)
    seconds: dict[str, float] = {}
    reporter = Reporter(on_event, "select", len(candidates) * len(settings), 1)
    reporter.report(0)
    scores: list[tuple[SettingScore, ...]] = []
    for open_train in candidates:
        scores.append(_score(head, open_train, settings, protocol, seconds))
        reporter.report(len(scores) * len(settings))
    best = choose([score for found in scores for score in found])
    assert best is not None
    assert not isinstance(best.setting, Setting)
    candidate = next(number for number, found in enumerate(scores) if any(score is best for score in found))
    with timed(seconds, "refit"):
        train = candidates[candidate]()
        rows = training_rows(train)
        task = train.task.fit(train.targets[rows])
        (probe,) = probes = _solve(head, train, rows, task, [best.setting])
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
    head: Head,
    open_train: Callable[[], TokenSource],
    settings: Sequence[SolvedSetting],
    protocol: TrainingProtocol,
    seconds: dict[str, float],
) -> tuple[SettingScore, ...]:
    """Solve every setting of a candidate on the kept images, score it on those held out."""
    with timed(seconds, "select"):
        train = open_train()
        check_task(head, train.task)
        if len(train.token_shape) != 1:
            raise SettingError("probes.tokens_not_flat", head=head.kind, shape=train.token_shape)
        kept, held_out = split_rows(train, protocol.validation_fraction, protocol.seed)
        task = train.task.fit(train.targets[kept])
        probes = _solve(head, train, kept, task, settings)
    with timed(seconds, "validate"):
        predicted = torch.cat([task.predict(logits) for logits in _logits(probes, train, held_out)], dim=1)  # [P, N]
        found = task.score(predicted, train.targets[held_out]).tolist()
    return tuple(
        SettingScore(setting=setting, validation=score, num_steps=0)
        for setting, score in zip(settings, found, strict=True)
    )


def _solve(
    head: Head, source: TokenSource, rows: Tensor, task: Task, settings: Sequence[SolvedSetting]
) -> Sequence[HeadModule]:
    """One probe a setting, solved on some rows."""
    features = torch.cat([source.take(part).cpu().clone() for part in torch.split(rows, BATCH)])
    num_broken = int((~features.isfinite()).any(1).sum())
    if num_broken:
        raise DataError("probes.tokens_not_finite", num_broken=num_broken, num_samples=len(features))
    targets, solver = task.encode(source.targets[rows]), HEADS[head.kind].solver
    assert solver is not None
    weights = task.sample_weights(targets)
    values = [astuple(setting)[0] for setting in settings]
    probes = solver(features, targets, weights / weights.sum(), task, values)
    return [probe.eval() for probe in probes]


def _logits(probes: Sequence[HeadModule], source: TokenSource, rows: Tensor) -> Iterator[Tensor]:
    """[P, b, C] float32 on the CPU for each part of the rows, in order; tokens are read once for all probes."""
    for part in torch.split(rows, BATCH):
        yield torch.stack(type(probes[0]).forward_each(probes, source.take(part).cpu()))
