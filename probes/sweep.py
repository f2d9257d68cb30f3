"""The protocol: hold out images, train the grid, choose a setting, train it on all images, test once.

Sweeps over the same images can run together: their heads share every pass over the batches, and each result is that of the sweep
alone. A sweep may also choose among several heads: their grids are one grid, and only the best setting is trained again.

The test images come from a callable that is called after the last training, so nothing that is chosen can have seen them. A
probe that diverges is a result, not an error: its setting cannot be chosen, and if all diverge, or the final training does, the
result has no test metrics.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from .chosen import Choice, Refit, refit
from .data.token_source import TokenSource
from .evaluate import validate
from .events import OnEvent
from .fit import attribute_time, fit_banks
from .heads import Head
from .outcome import Rung, SweepResult, choose
from .plan import Candidate, GroupPlan, TrainableHead, plan_group
from .protocol import Setting, TrainingProtocol
from .select import GridSearch, Journal, Selection


def run_sweep(
    head: Head,
    train: TokenSource,
    open_test: Callable[[], TokenSource],
    protocol: TrainingProtocol,
    *,
    memory_bytes: int | None = None,
    device: torch.device | str = "cpu",
    on_event: OnEvent | None = None,
) -> SweepResult:
    """The sweep of one head that reads whole rows, trained in `memory_bytes`; the rest as in `run_sweeps`."""
    candidate = Candidate(head=head)
    plan = plan_group([candidate], train, protocol, memory_bytes, on_gpu=torch.device(device).type == "cuda")
    (result,) = run_sweeps([[candidate]], train, open_test, protocol, plan=plan, device=device, on_event=on_event)
    return result


def run_sweeps(
    sweeps: Sequence[Sequence[Candidate]],
    train: TokenSource,
    open_test: Callable[[], TokenSource],
    protocol: TrainingProtocol,
    *,
    plan: GroupPlan | None = None,
    device: torch.device | str = "cpu",
    journal: Journal | None = None,
    on_event: OnEvent | None = None,
) -> list[SweepResult]:
    """Run several sweeps: choose a candidate and its setting on held-out images, train it on all images, test it once.

    Args:
        sweeps: the candidates of each sweep, in the order in which they win ties; one candidate is a sweep over its settings. A
            candidate of several sweeps is trained once.
        train: the training images; candidates read blocks of its rows.
        open_test: opens the test images; called once, after all training.
        protocol: the grid and how to train.
        plan: of `plan_group`, for all candidates, these images and this protocol. What does not fit at once into its memory is
            trained in several banks and passes, one after the other. None plans without a limit.
        device: of the arithmetic.
        journal: keeps finished banks, so that an interrupted sweep can continue.
        on_event: called with `Progress`, at most four times a second.

    Returns:
        the result of each sweep.

    Raises:
        SettingError: head and tokens do not fit each other.
        DataError: there are too few images to hold some out, or the test tokens differ from the training tokens.
    """
    if plan is None:
        candidates = list(dict.fromkeys(one for sweep in sweeps for one in sweep))
        plan = plan_group(candidates, train, protocol, None, on_gpu=torch.device(device).type == "cuda")
    search = GridSearch(plan, train, protocol, journal)
    for banks, report in search.passes(on_event):
        runs, steps, best = [bank.make_run(device) for bank in banks], banks[0].key.num_steps, search.best
        with attribute_time("select", runs):
            fitted = fit_banks(
                runs, train, search.kept, protocol, schedule_steps=steps, phase="select", best=best, on_event=report
            )
        with attribute_time("validate", runs):
            scores = validate(runs, train, search.held_out, protocol, search.task, best=best, on_event=report)
        del runs  # before the next banks take their memory
        search.record(banks, fitted, scores)
    selections = search.selections()
    chosen = [_choose(sweep, selections) for sweep in sweeps]
    winners = [None if found is None else found[0] for found in chosen]
    choices = list(dict.fromkeys(filter(None, winners)))
    best = max((validation for _, validation in filter(None, chosen)), default=None)
    refits = refit(choices, plan, train, open_test, protocol, device, best=best, on_event=on_event)
    return [
        _result(sweep, plan.heads, selections, found, None if found is None else refits[found[0]], seconds)
        for sweep, found, seconds in zip(sweeps, chosen, _seconds(sweeps, selections, winners, refits), strict=True)
    ]


def _choose(sweep: Sequence[Candidate], selections: Mapping[Candidate, Selection]) -> tuple[Choice, float] | None:
    """The best setting of the last rungs, the first among equals, and its validation score; None if all diverged."""
    finalists = [(candidate, score) for candidate in sweep for score in selections[candidate].finalists]
    best = choose([score for _, score in finalists])
    if best is None:
        return None
    candidate = next(candidate for candidate, score in finalists if score is best)
    assert isinstance(best.setting, Setting)
    assert best.validation is not None
    return Choice(candidate=candidate, setting=best.setting), best.validation


def _seconds(
    sweeps: Sequence[Sequence[Candidate]],
    selections: Mapping[Candidate, Selection],
    winners: Sequence[Choice | None],
    refits: Mapping[Choice, Refit],
) -> list[dict[str, float]]:
    """Wall time of each sweep by phase; work that several sweeps need is divided equally between them."""
    num_sweeps = Counter(candidate for sweep in sweeps for candidate in sweep)
    num_wins = Counter(winners)
    all_seconds = []
    for sweep, winner in zip(sweeps, winners, strict=True):
        seconds = {
            phase: sum(selections[one].seconds[phase] / num_sweeps[one] for one in sweep)
            for phase in ("select", "validate")
        }
        if winner is not None:
            seconds |= {phase: own / num_wins[winner] for phase, own in refits[winner].seconds.items()}
        all_seconds.append(seconds)
    return all_seconds


def _result(
    sweep: Sequence[Candidate],
    heads: Mapping[Candidate, TrainableHead],
    selections: Mapping[Candidate, Selection],
    best: tuple[Choice, float] | None,
    trained: Refit | None,
    seconds: dict[str, float],
) -> SweepResult:
    candidate = sweep[0] if best is None else best[0].candidate
    head, selection = heads[candidate], selections[candidate]
    num_parameters = sum(parameter.numel() for parameter in head.initial.parameters())
    of_classifier = sum(parameter.numel() for parameter in head.initial.classifier.parameters())
    return SweepResult(
        head=candidate.head,
        candidate=sweep.index(candidate),
        candidate_scores=tuple(selections[one].scores for one in sweep),
        scores=selection.scores,
        chosen=None if best is None else best[0].setting,
        validation=None if best is None else best[1],
        diverged=trained is None or trained.probe is None,
        test=None if trained is None else trained.test,
        test_logits=None if trained is None else trained.test_logits,
        probe=None if trained is None else trained.probe,
        num_parameters=num_parameters,
        num_parameters_before_classifier=num_parameters - of_classifier,
        selection=selection.plan,
        rungs=_join_rungs([selections[one].rungs for one in sweep]),
        curves=selection.curves,
        refit=None if trained is None else trained.plan,
        refit_curves=None if trained is None else trained.curves,
        memory=head.memory,
        seconds=seconds,
    )


def _join_rungs(candidates: Sequence[Sequence[Rung]]) -> tuple[Rung, ...]:
    """The rounds of all candidates as those of one sweep: candidates of one protocol have equal steps in each round."""
    most = max(candidates, key=len)  # a candidate all of whose settings diverged has ended early
    return tuple(
        replace(rung, num_settings=sum(one[number].num_settings for one in candidates if len(one) > number))
        for number, rung in enumerate(most)
    )
