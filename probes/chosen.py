"""Train given settings of given heads, without a grid and without a choice: the end of a sweep, ensembles, searches.

Each choice is trained as the protocol trains it alone: in a bank of its own, in passes that other banks may share. Choices are
made on the held-out images of the protocol; the test images are opened once, after the last training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .banks.budget import MemoryPlan
from .data.batches import BatchPlan
from .data.split import split_rows
from .data.token_source import TokenSource, training_rows
from .ensemble import Ensemble, mean_of_members
from .evaluate import check_test, collect_logits, compute_all_logits, measure
from .events import OnEvent
from .fit import FitResult, attribute_time, fit_banks
from .heads import HeadModule
from .outcome import LearningCurves, join_curves
from .plan import Candidate, GroupPlan, plan_group, plan_passes
from .protocol import Setting, TrainingProtocol


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A head on its tokens, and one setting."""

    candidate: Candidate
    setting: Setting


@dataclass(frozen=True, kw_only=True, eq=False)
class Refit:
    """A choice, trained on all training images.

    Attributes:
        plan: batch plan of the training.
        curves: [1, K]; [k, K] for an ensemble.
        probe: None if it diverged.
        test_logits: [N, C] float32; None if it diverged.
        test: metrics of the task; None if it diverged.
        seconds: its share of the wall time of refit and test.
    """

    plan: BatchPlan
    curves: LearningCurves
    probe: HeadModule | Ensemble | None
    test_logits: Tensor | None
    test: dict[str, float] | None
    seconds: dict[str, float]


@torch.no_grad()
def score_held_out(
    choices: Sequence[Choice],
    train: TokenSource,
    protocol: TrainingProtocol,
    on_logits: Callable[[int, Tensor, Tensor], None],
    *,
    memory_bytes: int | None = None,
    device: torch.device | str = "cpu",
    on_event: OnEvent | None = None,
) -> list[FitResult]:
    """Train choices on the kept images and compute their class scores of the held-out images, split as the protocol says.

    Args:
        choices: what to train.
        train: the training images.
        protocol: split, batches, schedule, seed; its grid does not matter.
        on_logits: called with the index of a choice, the places [b] int64 of some held-out images among all of them, and its class
            scores [b, C] of these, on the CPU; not called for a choice that diverged in training.
        memory_bytes: memory for training; None is no limit.
        device: of the arithmetic.
        on_event: called with `Progress`.

    Returns:
        the result of each training.

    Raises:
        SettingError: head and tokens do not fit each other, or the memory is too small for one probe.
    """
    plan = _plan(choices, train, protocol, memory_bytes)
    kept, held_out = split_rows(train, protocol.validation_fraction, protocol.seed)
    fitted: dict[int, FitResult] = {}
    heads = [plan.heads[choice.candidate] for choice in choices]
    for places in plan_passes([head.memory.total_bytes for head in heads], plan.banks_bytes):
        runs = {place: heads[place].make_run([choices[place].setting], device, {}) for place in places}
        results = fit_banks(list(runs.values()), train, kept, protocol, phase="select", on_event=on_event)
        fitted |= dict(zip(places, results, strict=True))
        for place in places:
            if fitted[place].diverged[0]:
                del runs[place]
        if runs:
            banks = list(runs.values())
            for scored, parts in compute_all_logits(banks, train, held_out, phase="validate", on_event=on_event):
                for place, logits in zip(runs, parts, strict=True):
                    on_logits(place, scored, logits[0])
        del runs  # before the next banks take their memory
    return [fitted[place] for place in range(len(choices))]


def train_chosen(
    choices: Sequence[Choice],
    train: TokenSource,
    open_test: Callable[[], TokenSource],
    protocol: TrainingProtocol,
    *,
    memory_bytes: int | None = None,
    device: torch.device | str = "cpu",
    on_event: OnEvent | None = None,
) -> list[Refit]:
    """Train choices on all training images, then open the test images, once, and test them: the last step of the protocol.

    Args:
        choices: what to train, each once.
        open_test: not called if every training diverges.
        train, protocol, memory_bytes, device, on_event: as in `score_held_out`.

    Raises:
        SettingError: as there.
        DataError: the test tokens differ from the training tokens in shape or classes.
    """
    plan = _plan(choices, train, protocol, memory_bytes)
    refits = refit(choices, plan, train, open_test, protocol, device, on_event=on_event)
    return [refits[choice] for choice in choices]


def refit(
    choices: Sequence[Choice],
    plan: GroupPlan,
    train: TokenSource,
    open_test: Callable[[], TokenSource],
    protocol: TrainingProtocol,
    device: torch.device | str,
    *,
    best: float | None = None,
    on_event: OnEvent | None,
) -> dict[Choice, Refit]:
    """`train_chosen` by a plan that is there.

    Args:
        plan: the heads, and the memory for the probes of a pass.
        best: highest validation score among the choices, for the progress events.
    """
    heads = plan.heads
    planned = plan.refit_passes([heads[choice.candidate] for choice in choices])
    passes = [[choices[place] for place in places] for places in planned]
    seconds: dict[Choice, dict[str, float]] = {choice: {} for choice in choices}
    fitted: dict[Choice, FitResult] = {}
    probes: dict[Choice, HeadModule] = {}
    for of_pass in passes:
        runs = [heads[one.candidate].make_run([one.setting], device, seconds[one]) for one in of_pass]
        with attribute_time("refit", runs):
            rows = training_rows(train)
            results = fit_banks(runs, train, rows, protocol, phase="refit", best=best, on_event=on_event)
            trained = [run.bank.probe(0) for run in runs]
        del runs  # before the next banks take their memory
        for choice, probe, result in zip(of_pass, trained, results, strict=True):
            assert isinstance(probe, HeadModule)
            fitted[choice] = result
            if not bool(result.diverged[0]) and all(bool(x.isfinite().all()) for x in probe.parameters()):
                probes[choice] = probe
    task = train.task.fit(train.targets[training_rows(train)])
    logits: dict[Choice, Tensor] = {}
    test: TokenSource | None = None
    for of_pass in filter(None, [[one for one in of_pass if one in probes] for of_pass in passes]):
        runs = [heads[one.candidate].make_run([one.setting], device, seconds[one], probes[one]) for one in of_pass]
        with attribute_time("test", runs):
            if test is None:
                test = open_test()
                check_test(train, test)
            scores = collect_logits(runs, test, phase="test", best=best, on_event=on_event)
            logits |= {one: of_bank[0] for one, of_bank in zip(of_pass, scores, strict=True)}
        del runs
    return {
        choice: Refit(
            plan=result.plan,
            curves=result.curves,
            probe=probes.get(choice),
            test_logits=logits.get(choice),
            test=None if test is None or choice not in logits else measure(task, logits[choice], test.targets),
            seconds=seconds[choice],
        )
        for choice, result in fitted.items()
    }


def plan_choice(
    candidate: Candidate, source: TokenSource, protocol: TrainingProtocol, memory_bytes: int | None
) -> MemoryPlan:
    """The memory plan of a choice of this candidate; arguments and errors as in `score_held_out`."""
    return plan_group([candidate], source, _one_setting(protocol), memory_bytes).heads[candidate].memory


def join_members(members: Sequence[Refit], open_test: Callable[[], TokenSource]) -> Refit:
    """The ensemble of trained and tested probes, without those that diverged; its curves are [k, K], of all members.

    Args:
        members: of `train_chosen`, at least one.
        open_test: for the targets of the test images.
    """
    seconds = {phase: sum(one.seconds.get(phase, 0.0) for one in members) for phase in members[0].seconds}
    curves = join_curves((([place], one.curves) for place, one in enumerate(members)), len(members))
    sound = [(one.probe, one.test_logits) for one in members if one.probe is not None and one.test_logits is not None]
    if not sound:
        return replace(members[0], curves=curves, seconds=seconds)
    logits = mean_of_members(torch.stack([logits for _, logits in sound]))
    probe = Ensemble([probe for probe, _ in sound if not isinstance(probe, Ensemble)])
    test = open_test()
    metrics = measure(test.task, logits, test.targets)
    return replace(members[0], curves=curves, probe=probe, test_logits=logits, test=metrics, seconds=seconds)


def _plan(
    choices: Sequence[Choice], train: TokenSource, protocol: TrainingProtocol, memory_bytes: int | None
) -> GroupPlan:
    """Plan the heads of choices, each once, for banks of one probe."""
    candidates = list(dict.fromkeys(choice.candidate for choice in choices))
    return plan_group(candidates, train, _one_setting(protocol), memory_bytes)


def _one_setting(protocol: TrainingProtocol) -> TrainingProtocol:
    return replace(
        protocol, lrs=protocol.lrs[:1], weight_decays=protocol.weight_decays[:1], dropouts=protocol.dropouts[:1]
    )
