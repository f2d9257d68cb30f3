"""Linear probes and neighbours that are solved, not trained: ridge, logistic regression, kNN on the same tokens.

The same protocol as a sweep: the same stratified images are held out, each penalty or number of neighbours is solved on
the rest and scored on them by balanced accuracy, the best (first of equals) is solved again on all training images, and
the test images are opened once, last. Every class weighs the same (kNN has no weights, as in DINO). There is no jitter,
no batch and no step: a solution depends on the seed through the split alone. A family is one head on several tokens, one after the
other: their settings are one grid. Features are held in memory, those of one candidate at a time: 4 N F bytes for kNN; for ridge
and logistic regression some 30 N F, float32, float64 and what the solver makes of them. CPU only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..data.split import split_rows
from ..data.token_source import TokenSource, l2_normalize
from ..errors import DataError, SettingError
from ..evaluate import check_test, measure
from ..events import OnEvent, Reporter
from ..fit import class_weights
from ..heads.knn import KnnProbe
from ..heads.linear import LinearProbe
from ..metrics import balanced_accuracy
from ..outcome import SettingScore, SweepResult, choose, timed
from ..protocol import Head, NeighborSetting, PenaltySetting, Setting, SolvedSetting, TrainingProtocol
from .logreg import solve_logreg
from .ridge import solve_ridge

BATCH = 1024


def run_solver(
    head: Head,
    train: TokenSource,
    open_test: Callable[[], TokenSource],
    protocol: TrainingProtocol,
    *,
    on_event: OnEvent | None = None,
) -> SweepResult:
    """Choose a penalty or a number of neighbours: `run_solvers` of one candidate.

    Args:
        train: the training images.
        open_test: opens the test images; called once, after everything else.
        head, protocol, emit: as there.

    Raises:
        SettingError, DataError: as there.
    """
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
    """Choose tokens, and a penalty or a number of neighbours, on held-out training images, solve it on all of them, test once.

    Args:
        head: of kind ridge, logreg or knn.
        candidates: open the training images with some tokens of them, in the order in which they win ties: one at a time, and the
            winner again.
        open_test: opens the test images with the tokens of a candidate, by number; called once, after everything else.
        protocol: penalties, numbers of neighbours, validation share and seed; the rest does not matter here.
        emit: called with `Progress`.

    Returns:
        SweepResult without batches: `selection`, `refit` and `memory` are None, `rungs` is empty, and nothing can diverge.

    Raises:
        SettingError: the head is trained rather than solved, or wants other tokens.
        DataError: too few images to hold some out, tokens that are not finite, or test tokens unlike the training tokens.
    """
    settings = protocol.solved_settings(head)
    seconds: dict[str, float] = {}
    reporter = Reporter(on_event, "select", len(candidates) * len(settings), 1)
    reporter.report(0)
    scores: list[tuple[SettingScore, ...]] = []
    for open_train in candidates:
        of_one: list[SettingScore] = []
        for score in _score(head, open_train, settings, protocol, seconds):
            of_one.append(score)
            reporter.report(len(scores) * len(settings) + len(of_one))
        scores.append(tuple(of_one))
    best = choose([score for of_one in scores for score in of_one])
    assert best is not None
    assert not isinstance(best.setting, Setting)
    candidate = next(number for number, of_one in enumerate(scores) if any(score is best for score in of_one))
    with timed(seconds, "refit"):
        train = candidates[candidate]()
        (probe,) = _solve(head, train, torch.arange(len(train.labels)), [best.setting])
    with timed(seconds, "test"):
        test = open_test(candidate)
        check_test(train, test)
        logits = _logits(probe, test, torch.arange(len(test.labels)))
        metrics = measure(logits, test)
    num_parameters = sum(parameter.numel() for parameter in probe.parameters())
    return SweepResult(
        head=head,
        candidate=candidate,
        candidate_scores=tuple(scores),
        scores=scores[candidate],
        chosen=best.setting,
        validation=best.validation,
        diverged=False,
        test=metrics,
        test_logits=logits,
        probe=probe,
        num_parameters=num_parameters,
        num_parameters_before_classifier=0,
        seconds=seconds,
    )


def _score(
    head: Head,
    open_train: Callable[[], TokenSource],
    settings: Sequence[SolvedSetting],
    protocol: TrainingProtocol,
    seconds: dict[str, float],
) -> Iterator[SettingScore]:
    """Every setting of a candidate, solved on the kept images, on those held out."""
    with timed(seconds, "select"):
        train = open_train()
        if len(train.token_shape) != 1:
            raise SettingError(
                where=f"tokens of a {head.kind} head",
                expected="token_shape (F,)",
                got=str(train.token_shape),
                todo="Concatenate the tokens.",
            )
        kept, held_out = split_rows(train, protocol.validation_fraction, protocol.seed)
        probes = _solve(head, train, kept, settings)
    for setting, probe in zip(settings, probes, strict=True):
        with timed(seconds, "validate"):
            logits = _logits(probe, train, held_out)
            accuracy = balanced_accuracy(logits.argmax(1), train.labels[held_out], train.num_classes).item()
        yield SettingScore(setting=setting, validation=accuracy, num_steps=0)


def _solve(
    head: Head, source: TokenSource, rows: Tensor, settings: Sequence[SolvedSetting]
) -> list[LinearProbe | KnnProbe]:
    """One probe a setting, of the images of some rows."""
    features = torch.cat([source.take(part).cpu().clone() for part in torch.split(rows, BATCH)])
    num_broken = int((~features.isfinite()).any(1).sum())
    if num_broken:
        raise DataError(
            where=f"tokens of a {head.kind} head",
            expected="finite values",
            got=f"others in {num_broken} of {len(features)} images",
            todo="Extract them again with --storage-dtype float32, or leave these images out.",
        )
    labels = source.labels[rows]
    if head.kind == "knn":
        bank = l2_normalize(features)
        return [
            KnnProbe(bank, labels, source.num_classes, num_neighbors=setting.num_neighbors).eval()
            for setting in settings
            if isinstance(setting, NeighborSetting)
        ]
    weights = class_weights(labels, source.num_classes)[labels]
    solve = solve_ridge if head.kind == "ridge" else solve_logreg
    penalties = [setting.penalty for setting in settings if isinstance(setting, PenaltySetting)]
    solutions = solve(features.double(), labels, weights / weights.sum(), source.num_classes, penalties)
    return [_linear_probe(weight, bias) for weight, bias in solutions]


def _linear_probe(weight: Tensor, bias: Tensor) -> LinearProbe:
    """float32, as every saved probe: what is validated and tested is what is saved."""
    probe = LinearProbe(weight.shape[1], weight.shape[0])
    probe.classifier.weight.copy_(weight)
    probe.classifier.bias.copy_(bias)
    return probe.eval()


def _logits(probe: LinearProbe | KnnProbe, source: TokenSource, rows: Tensor) -> Tensor:
    """[N, C] float32 on the CPU, in the order of the rows."""
    return torch.cat([probe(source.take(part).cpu()) for part in torch.split(rows, BATCH)])
