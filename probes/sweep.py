"""The protocol: hold out, train the grid, choose, train the choice on everything, test once.

Sweeps over the same images can run together: heads share every pass over the batches, and each comes out as it would
alone. A sweep may also choose among several heads: then their grids are one grid, and only the winner is trained again.

The test images are reached through a callable that is called after the last training and not before, so nothing that
is chosen can have seen them. A probe that diverges is a result that says so: its setting cannot be chosen,
and if all diverge, or the final training does, the result has no test metrics.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from .data.batches import BatchPlan, plan_batches
from .data.split import split_rows
from .data.token_source import TokenSource
from .events import OnEvent
from .group_plan import Candidate, plan_group
from .halving import Rung
from .heads import Head
from .outcome import SettingScore, SweepResult, choose
from .protocol import Setting, TrainingProtocol
from .refit import Refit, Winner, refit
from .select import Journal, Selection, select
from .trainable_heads import TrainableHead, prepare


def run_sweep(
    head: Head,
    train: TokenSource,
    open_test: Callable[[], TokenSource],
    protocol: TrainingProtocol,
    *,
    memory_bytes: int | None = None,
    device: torch.device | str = "cpu",
    journal: Journal | None = None,
    on_event: OnEvent | None = None,
) -> SweepResult:
    """The sweep of one head, which reads whole rows: `run_sweeps` of one candidate.

    Args:
        head: which probe.
        train, open_test, protocol, memory_bytes, device, journal, emit: as there.

    Raises:
        SettingError, DataError: as there.
    """
    (result,) = run_sweeps(
        [[Candidate(head=head)]],
        train,
        open_test,
        protocol,
        memory_bytes=memory_bytes,
        device=device,
        journal=journal,
        on_event=on_event,
    )
    return result


def run_sweeps(
    sweeps: Sequence[Sequence[Candidate]],
    train: TokenSource,
    open_test: Callable[[], TokenSource],
    protocol: TrainingProtocol,
    *,
    memory_bytes: int | None = None,
    device: torch.device | str = "cpu",
    journal: Journal | None = None,
    on_event: OnEvent | None = None,
) -> list[SweepResult]:
    """Of each sweep: choose a candidate and its setting on held-out training images, train it on all of them, test once.

    Args:
        sweeps: the candidates of each, in the order in which they win ties. One candidate is a sweep over its settings. A candidate
            of several sweeps is trained once.
        train: the training images; blocks of its rows are what candidates read.
        open_test: opens the test images; called once, after everything else.
        protocol: the grid and how to train.
        memory_bytes: what training may take of the device's memory beside tokens that a source keeps there; see `budget.py`. What
            does not fit at once is trained in several banks and passes, one after the other. None is no limit.
        device: of the arithmetic.
        journal: keeps finished banks, so that a sweep that was killed goes on.
        emit: called with `Progress`, at most four times a second.

    Returns:
        of each sweep.

    Raises:
        SettingError: head and tokens do not fit each other, or not even one probe fits into the memory.
        DataError: too few images to hold some out, or test tokens unlike the training tokens.
    """
    candidates = list(dict.fromkeys(one for sweep in sweeps for one in sweep))
    group = plan_group(candidates, train, protocol, memory_bytes)
    trainables = [
        prepare(one, train, protocol, memory, refit_bytes)
        for one, memory, refit_bytes in zip(candidates, group.memory, group.refit_bytes, strict=True)
    ]
    rows = split_rows(train, protocol.validation_fraction, protocol.seed)
    seconds = [{"select": 0.0, "validate": 0.0} for _ in trainables]
    plan = plan_batches(len(rows[0]), wish=protocol.batch_size, epochs=protocol.epochs, min_steps=protocol.min_steps)
    selections = select(
        trainables,
        train,
        rows,
        protocol,
        plan,
        memory_bytes=group.banks_bytes,
        device=device,
        journal=journal,
        seconds=seconds,
        on_event=on_event,
    )
    fields = [[candidates.index(one) for one in sweep] for sweep in sweeps]
    chosen = [_choose(field, selections) for field in fields]
    winners = list(dict.fromkeys(winner for winner, _ in chosen if winner is not None))
    trained = refit(
        winners,
        trainables,
        train,
        open_test,
        protocol,
        memory_bytes=group.banks_bytes,
        device=device,
        best=max((score.validation for _, score in chosen if score and score.validation is not None), default=None),
        on_event=on_event,
    )
    return [
        _result(field, trainables, selections, winner, best, None if winner is None else trained[winner], plan, own)
        for field, (winner, best), own in zip(
            fields, chosen, _seconds(fields, seconds, [winner for winner, _ in chosen], trained), strict=True
        )
    ]


def _seconds(
    fields: Sequence[Sequence[int]],
    of_trainables: Sequence[dict[str, float]],
    winners: Sequence[Winner | None],
    trained: Mapping[Winner, Refit],
) -> list[dict[str, float]]:
    """Of each sweep, by phase; what several sweeps have in common falls to them in equal parts."""
    in_sweeps = Counter(place for field in fields for place in field)
    chosen_by = Counter(winners)
    all_seconds: list[dict[str, float]] = []
    for field, winner in zip(fields, winners, strict=True):
        seconds = {
            phase: sum(of_trainables[place][phase] / in_sweeps[place] for place in field) for phase in of_trainables[0]
        }
        if winner is not None:
            seconds |= {phase: own / chosen_by[winner] for phase, own in trained[winner].seconds.items()}
        all_seconds.append(seconds)
    return all_seconds


def _choose(field: Sequence[int], selections: Sequence[Selection]) -> tuple[Winner | None, SettingScore | None]:
    """The best of the last rungs of some entrants, the first of equals."""
    finalists = [(place, score) for place in field for score in selections[place].finalists]
    best = choose([score for _, score in finalists])
    if best is None:
        return None, None
    place = next(place for place, score in finalists if score is best)
    assert isinstance(best.setting, Setting)
    return Winner(trainable=place, setting=best.setting), best


def _result(
    field: Sequence[int],
    trainables: Sequence[TrainableHead],
    selections: Sequence[Selection],
    winner: Winner | None,
    best: SettingScore | None,
    trained: Refit | None,
    plan: BatchPlan,
    seconds: dict[str, float],
) -> SweepResult:
    place = field[0] if winner is None else winner.trainable
    trainable, selection = trainables[place], selections[place]
    num_parameters = sum(parameter.numel() for parameter in trainable.initial.parameters())
    of_classifier = sum(parameter.numel() for parameter in trainable.initial.classifier.parameters())
    return SweepResult(
        head=trainable.candidate.head,
        candidate=field.index(place),
        candidate_scores=tuple(selections[one].scores for one in field),
        scores=selection.scores,
        chosen=None if winner is None else winner.setting,
        validation=None if best is None else best.validation,
        diverged=trained is None or trained.probe is None,
        test=None if trained is None else trained.test,
        test_logits=None if trained is None else trained.test_logits,
        probe=None if trained is None else trained.probe,
        num_parameters=num_parameters,
        num_parameters_before_classifier=num_parameters - of_classifier,
        selection=plan,
        rungs=_rungs_of([selections[one].rungs for one in field]),
        curves=selection.curves,
        refit=None if trained is None else trained.plan,
        refit_curves=None if trained is None else trained.curves,
        memory=trainable.memory,
        seconds=seconds,
    )


def _rungs_of(candidates: Sequence[Sequence[Rung]]) -> tuple[Rung, ...]:
    """The rounds of all candidates as one sweep's: candidates of one protocol go the same number of steps in each."""
    most = max(candidates, key=len)  # a candidate all of whose settings diverged has ended early
    return tuple(
        replace(rung, num_settings=sum(one[number].num_settings for one in candidates if len(one) > number))
        for number, rung in enumerate(most)
    )
