"""The protocol: hold out, train the grid, choose, train the choice on everything, test once.

The test images are reached through a callable that is called in the last step and not before, so nothing that
is chosen can have seen them. A probe that diverges is a result that says so: its setting cannot be chosen,
and if all diverge, or the final training does, the result has no test metrics.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .attentive import AttentiveProbe
from .bank import AttentiveBank, Bank
from .batches import BatchPlan, plan_batches
from .budget import PLANNED_KINDS, MemoryPlan, plan_memory, sizes_of
from .errors import DataError, SettingError
from .events import Emit, Progress
from .fit import compute_logits, fit_bank
from .halving import Rung, keep_best, plan_rungs
from .knn import KnnProbe
from .linear import LinearProbe
from .linear_bank import LinearBank
from .make import make_probe
from .metrics import balanced_accuracy, top_k_accuracy
from .module_bank import ModuleBank
from .protocol import HEAD_KINDS, Head, Setting, SolvedSetting, TrainingProtocol
from .sources import TokenSource
from .split import split_rows
from .zoo import ZooProbe

Probe = AttentiveProbe | LinearProbe | KnnProbe | ZooProbe


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
        scores: of every setting, in the order in which settings win ties.
        chosen: the winner, None if every setting diverged.
        validation: its balanced accuracy on the validation images.
        diverged: every setting did, or the final training did.
        test: metrics on the test images, None if diverged.
        test_logits: [N, C] float32 in the order of the test source, None if diverged.
        probe: trained on all training images, None if diverged.
        num_parameters: of the probe.
        num_parameters_before_classifier: without the classifier's weight and bias.
        selection: batches of the training of the grid; None where nothing is trained.
        rungs: the rounds that were trained: one of all settings, or those of a halving sweep.
        refit: batches of the training of the choice; None if every setting diverged or nothing is trained.
        memory: in how many banks the grid was trained, and how; None where nothing is trained, and for heads that are not planned.
        seconds: phase -> wall time: select, validate, refit, test.
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
    selection: BatchPlan | None
    rungs: tuple[Rung, ...]
    refit: BatchPlan | None
    memory: MemoryPlan | None
    seconds: dict[str, float]


def run_sweep(
    head: Head,
    train: TokenSource,
    open_test: Callable[[], TokenSource],
    protocol: TrainingProtocol,
    *,
    memory_bytes: int | None = None,
    device: torch.device | str = "cpu",
    emit: Emit | None = None,
) -> SweepResult:
    """Choose a setting on held-out training images, train it on all of them, test once.

    Args:
        head: which probe.
        train: the training images.
        open_test: opens the test images; called once, after everything else.
        protocol: the grid and how to train.
        memory_bytes: what training may take of the device's memory beside tokens that a source keeps there; see `budget.py`. A grid
            that does not fit is trained in several banks, one after the other. None is no limit. Heads of the zoo are not planned:
            they train in one bank, whatever it takes.
        device: of the arithmetic.
        emit: called with `Progress`, at most four times a second.

    Returns:
        SweepResult.

    Raises:
        SettingError: head and tokens do not fit each other, or not even one probe fits into the memory.
        DataError: too few images to hold some out, or test tokens unlike the training tokens.
    """
    _check_shape(head, train)
    settings = protocol.settings(head)
    initial = make_probe(head, train.token_shape, train.num_classes, seed=protocol.seed)
    fit_rows, validation_rows = split_rows(train, protocol.validation_fraction, protocol.seed)
    seconds: dict[str, float] = {}
    memory = None
    if head.kind in PLANNED_KINDS:
        sizes = sizes_of(head, train.token_shape, train.num_classes, len(train.labels), protocol)
        memory = plan_memory(sizes, memory_bytes)

    selection = plan_batches(
        len(fit_rows), wish=protocol.batch_size, epochs=protocol.epochs, min_steps=protocol.min_steps
    )
    scores: dict[int, SettingScore] = {}
    candidates, rungs = list(range(len(settings))), list[Rung]()
    for rung in plan_rungs(protocol.sweep, len(settings), selection.num_steps):
        if scores:
            candidates = keep_best(candidates, [scores[index].validation for index in candidates], rung.num_settings)
        if not candidates:
            break
        rungs.append(Rung(num_settings=len(candidates), num_steps=rung.num_steps))
        # probes of one dropout rate side by side: a bank trains them together
        by_dropout = sorted(candidates, key=lambda index: settings[index].dropout)
        banks = [list(range(len(candidates)))] if memory is None else memory.banks(len(candidates))
        for number, places in enumerate(banks):
            members = [by_dropout[place] for place in places]
            alive = [settings[member] for member in members]
            accuracies = _train_bank(
                _make_bank(initial, alive, device, memory, protocol.compute),
                train,
                (fit_rows, validation_rows),
                alive,
                protocol,
                rung.num_steps,
                seconds,
                _of_bank(emit, number, len(banks)),
            )
            for member, accuracy in zip(members, accuracies.tolist(), strict=True):
                validation = None if accuracy != accuracy else accuracy
                scores[member] = SettingScore(setting=settings[member], validation=validation, num_steps=rung.num_steps)
    best = choose(tuple(scores[index] for index in candidates))

    refit, trained, metrics, test_logits = None, None, None, None
    if best is not None:
        assert isinstance(best.setting, Setting)
        bank = _make_bank(initial, [best.setting], device, memory, protocol.compute)
        with timed(seconds, "refit"):
            all_rows = torch.arange(len(train.labels))
            outcome = fit_bank(bank, train, all_rows, [best.setting], protocol, phase="refit", emit=emit)
        refit = outcome.plan
        probe = bank.probe(0)
        assert isinstance(probe, AttentiveProbe | LinearProbe | ZooProbe)
        if not bool(outcome.diverged[0]) and all(bool(value.isfinite().all()) for value in probe.parameters()):
            trained = probe
            with timed(seconds, "test"):
                test = open_test()
                rows = torch.arange(len(test.labels))
                parts = compute_logits(bank, test, rows, phase="test", emit=emit)
                test_logits, metrics = score_test(train, test, lambda: torch.cat([part[0] for part in parts]))
    num_parameters = sum(parameter.numel() for parameter in initial.parameters())
    return SweepResult(
        head=head,
        scores=tuple(scores[index] for index in range(len(settings))),
        chosen=None if best is None else best.setting,
        validation=None if best is None else best.validation,
        diverged=trained is None,
        test=metrics,
        test_logits=test_logits,
        probe=trained,
        num_parameters=num_parameters,
        num_parameters_before_classifier=num_parameters
        - sum(parameter.numel() for parameter in initial.classifier.parameters()),
        selection=selection,
        rungs=tuple(rungs),
        refit=refit,
        memory=memory,
        seconds=seconds,
    )


def _train_bank(
    bank: Bank,
    train: TokenSource,
    rows: tuple[Tensor, Tensor],
    settings: Sequence[Setting],
    protocol: TrainingProtocol,
    num_steps: int,
    seconds: dict[str, float],
    emit: Emit | None,
) -> Tensor:
    """Balanced accuracy [P] on the second rows after training on the first, NaN where it diverged. The bank's memory ends here."""
    with timed(seconds, "select"):
        outcome = fit_bank(
            bank, train, rows[0], settings, protocol, schedule_steps=num_steps, phase="select", emit=emit
        )
    with timed(seconds, "validate"):
        jitter = protocol if protocol.jitter_validation else None
        accuracies = _validate(bank, train, rows[1], jitter, emit)
    return accuracies.masked_fill_(outcome.diverged, torch.nan)


def _of_bank(emit: Emit | None, number: int, num_banks: int) -> Emit | None:
    """Progress of one of several banks as a part of the whole phase."""
    if emit is None or num_banks == 1:
        return emit

    def report(event: Progress) -> None:
        done = number * event.num_steps + event.step
        emit(replace(event, step=done, num_steps=num_banks * event.num_steps))

    return report


def choose(scores: tuple[SettingScore, ...]) -> SettingScore | None:
    """The best on validation, the first of equals; None if all diverged.

    >>> one, two = Setting(lr=0.1, weight_decay=0.0), Setting(lr=0.01, weight_decay=0.0)
    >>> def pick(*accuracies):
    ...     scores = zip((one, two), accuracies, strict=True)
    ...     return choose(tuple(SettingScore(setting=s, validation=v, num_steps=1) for s, v in scores)).setting.lr
    >>> pick(0.5, 0.5), pick(None, 0.2)
    (0.1, 0.01)
    """
    finished = [score for score in scores if not score.diverged]
    return max(finished, key=lambda score: score.validation or 0.0, default=None)


def _check_shape(head: Head, source: TokenSource) -> None:
    flat = HEAD_KINDS[head.kind].flat
    wanted = "(F,)" if flat else "(T, D)"
    if len(source.token_shape) != (1 if flat else 2):
        raise SettingError(
            where=f"tokens of a {head.kind} head",
            expected=f"token_shape {wanted}",
            got=str(source.token_shape),
            todo="Concatenate tokens for linear heads, stack them for all others.",
        )


def _make_bank(
    probe: AttentiveProbe | LinearProbe | ZooProbe,
    settings: Sequence[Setting],
    device: torch.device | str,
    memory: MemoryPlan | None,
    compute: str,
) -> Bank:
    """Every setting starts from the same weights."""
    if isinstance(probe, LinearProbe):
        return LinearBank([probe] * len(settings), device=device, compute=compute)
    dropouts = [setting.dropout for setting in settings]
    if not isinstance(probe, AttentiveProbe):
        return ModuleBank([probe] * len(settings), dropouts, device=device, compute=compute)
    assert memory is not None, "attentive probes are planned"
    return AttentiveBank(
        [probe] * len(settings),
        dropouts,
        device=device,
        compute=compute,
        group_size=memory.group_size,
        chunk_size=memory.chunk_size,
    )


def _validate(
    bank: Bank, source: TokenSource, rows: Tensor, jitter: TrainingProtocol | None, emit: Emit | None
) -> Tensor:
    """Balanced accuracy [P] float64, NaN for a probe whose scores are not finite."""
    predictions = torch.empty(bank.num_probes, len(rows), dtype=torch.int64)
    finite, done = torch.ones(bank.num_probes, dtype=torch.bool), 0
    for logits in compute_logits(bank, source, rows, jitter=jitter, phase="validate", emit=emit):
        predictions[:, done : done + logits.shape[1]] = logits.argmax(2)
        finite &= logits.isfinite().flatten(1).all(1)
        done += logits.shape[1]
    accuracy = balanced_accuracy(predictions, source.labels[rows], source.num_classes)
    return accuracy.masked_fill_(~finite, torch.nan)


def score_test(train: TokenSource, test: TokenSource, compute: Callable[[], Tensor]) -> tuple[Tensor, Metrics]:
    """Class scores of the test images, computed once they are known to fit, and what they are worth.

    Raises:
        DataError: test tokens unlike the training tokens.
    """
    if (test.token_shape, test.num_classes) != (train.token_shape, train.num_classes):
        raise DataError(
            where="test images",
            expected=f"tokens {train.token_shape} and {train.num_classes} classes, as in training",
            got=f"tokens {test.token_shape} and {test.num_classes} classes",
            todo="Extract the test split with the same model, levels and kinds.",
        )
    logits = compute()
    metrics = Metrics(
        balanced_accuracy=balanced_accuracy(logits.argmax(1), test.labels, test.num_classes).item(),
        top1=top_k_accuracy(logits, test.labels, 1).item(),
        top5=top_k_accuracy(logits, test.labels, 5).item(),
    )
    return logits, metrics


@contextmanager
def timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    """Add the wall time of the block to seconds[phase]."""
    start_s = time.perf_counter()
    yield
    seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - start_s
