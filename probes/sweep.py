"""The protocol: hold out, train the grid, choose, train the choice on everything, test once.

The test images are reached through a callable that is called in the last step and not before, so nothing that
is chosen can have seen them. A probe that diverges is a result that says so: its setting cannot be chosen,
and if all diverge, or the final training does, the result has no test metrics.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from .attentive import AttentiveProbe
from .bank import AttentiveBank, Bank
from .batches import BatchPlan
from .errors import DataError, SettingError
from .events import Emit
from .fit import compute_logits, fit_bank
from .linear import LinearProbe
from .linear_bank import LinearBank
from .metrics import balanced_accuracy, top_k_accuracy
from .module_bank import ModuleBank
from .protocol import Head, Setting, TrainingProtocol
from .seeds import make_generator
from .sources import TokenSource
from .zoo import ZOO, ZooProbe

Probe = AttentiveProbe | LinearProbe | ZooProbe


@dataclass(frozen=True, kw_only=True)
class SettingScore:
    """One setting of the grid: its balanced accuracy on the validation images, None where it diverged."""

    setting: Setting
    validation: float | None

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
        selection: batches of the training of the grid.
        refit: batches of the training of the choice; None if every setting diverged.
        seconds: phase -> wall time: select, validate, refit, test.
    """

    head: Head
    scores: tuple[SettingScore, ...]
    chosen: Setting | None
    validation: float | None
    diverged: bool
    test: Metrics | None
    test_logits: Tensor | None
    probe: Probe | None
    num_parameters: int
    num_parameters_before_classifier: int
    selection: BatchPlan
    refit: BatchPlan | None
    seconds: dict[str, float]


def run_sweep(
    head: Head,
    train: TokenSource,
    open_test: Callable[[], TokenSource],
    protocol: TrainingProtocol,
    *,
    device: torch.device | str = "cpu",
    emit: Emit | None = None,
) -> SweepResult:
    """Choose a setting on held-out training images, train it on all of them, test once.

    Args:
        head: which probe.
        train: the training images.
        open_test: opens the test images; called once, after everything else.
        protocol: the grid and how to train.
        device: of the arithmetic.
        emit: called with `Progress`, at most four times a second.

    Returns:
        SweepResult.

    Raises:
        SettingError: head and tokens do not fit each other.
        DataError: too few images to hold some out, or test tokens unlike the training tokens.
    """
    _check_shape(head, train)
    settings = protocol.settings(head)
    initial = _make_probe(head, train, protocol.seed)
    fit_rows, validation_rows = split_stratified(train.labels, protocol.validation_fraction, protocol.seed)
    seconds: dict[str, float] = {}

    bank = _make_bank(initial, settings, device)
    with _timed(seconds, "select"):
        selection = fit_bank(bank, train, fit_rows, settings, protocol, phase="select", emit=emit)
    with _timed(seconds, "validate"):
        accuracies = _validate(bank, train, validation_rows, emit)
    accuracies.masked_fill_(selection.diverged, torch.nan)
    del bank  # the grid's weights and gradients: the refit needs one probe's
    scores = tuple(
        SettingScore(setting=setting, validation=None if accuracy != accuracy else accuracy)
        for setting, accuracy in zip(settings, accuracies.tolist(), strict=True)
    )
    best = choose(scores)

    refit, trained, metrics, test_logits = None, None, None, None
    if best is not None:
        bank = _make_bank(initial, [best.setting], device)
        with _timed(seconds, "refit"):
            all_rows = torch.arange(len(train.labels))
            outcome = fit_bank(bank, train, all_rows, [best.setting], protocol, phase="refit", emit=emit)
        refit = outcome.plan
        probe = bank.probe(0)
        assert isinstance(probe, AttentiveProbe | LinearProbe | ZooProbe)
        if not bool(outcome.diverged[0]) and all(bool(value.isfinite().all()) for value in probe.parameters()):
            trained = probe
            with _timed(seconds, "test"):
                test_logits, metrics = _test(bank, train, open_test(), emit)
    num_parameters = sum(parameter.numel() for parameter in initial.parameters())
    return SweepResult(
        head=head,
        scores=scores,
        chosen=None if best is None else best.setting,
        validation=None if best is None else best.validation,
        diverged=trained is None,
        test=metrics,
        test_logits=test_logits,
        probe=trained,
        num_parameters=num_parameters,
        num_parameters_before_classifier=num_parameters
        - sum(parameter.numel() for parameter in initial.classifier.parameters()),
        selection=selection.plan,
        refit=refit,
        seconds=seconds,
    )


def choose(scores: tuple[SettingScore, ...]) -> SettingScore | None:
    """The best on validation, the first of equals; None if all diverged.

    >>> one, two = Setting(lr=0.1, weight_decay=0.0), Setting(lr=0.01, weight_decay=0.0)
    >>> def pick(*accuracies):
    ...     scores = zip((one, two), accuracies, strict=True)
    ...     return choose(tuple(SettingScore(setting=s, validation=v) for s, v in scores)).setting.lr
    >>> pick(0.5, 0.5), pick(None, 0.2)
    (0.1, 0.01)
    """
    finished = [score for score in scores if not score.diverged]
    return max(finished, key=lambda score: score.validation or 0.0, default=None)


def split_stratified(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Hold out the same share of every class.

    Each class gives round(fraction * n_c) images, at least one if it has two, and keeps at least one.

    Args:
        labels: [N] int64.
        fraction: share to hold out, in (0, 1).
        seed: of the choice.

    Returns:
        rows to train on and rows held out, each sorted, int64.

    Raises:
        DataError: no class has two images.

    >>> kept, held_out = split_stratified(torch.tensor([0, 1, 0, 1, 0, 1, 0, 1, 2]), 0.25, seed=0)
    >>> len(kept), sorted(torch.tensor([0, 1, 0, 1, 0, 1, 0, 1, 2])[held_out].tolist())
    (7, [0, 1])
    """
    shuffled = torch.randperm(len(labels), generator=make_generator(seed, "validation split"))
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in torch.unique(labels):
        rows = shuffled[labels[shuffled] == label]
        count = min(max(1, round(fraction * len(rows))), len(rows) - 1)
        held_out[rows[:count]] = True
    if not bool(held_out.any()):
        raise DataError(
            where="validation split",
            expected="at least two training images of some class",
            got=f"{len(labels)} images of {len(torch.unique(labels))} classes",
            todo="Give more training images.",
        )
    return (~held_out).nonzero().squeeze(1), held_out.nonzero().squeeze(1)


def _check_shape(head: Head, source: TokenSource) -> None:
    wanted = "(F,)" if head.kind == "linear" else "(T, D)"
    if len(source.token_shape) != (1 if head.kind == "linear" else 2):
        raise SettingError(
            where=f"tokens of a {head.kind} head",
            expected=f"token_shape {wanted}",
            got=str(source.token_shape),
            todo="Concatenate tokens for linear heads, stack them for all others.",
        )


def _make_probe(head: Head, source: TokenSource, seed: int) -> Probe:
    width = source.token_shape[-1]
    if head.kind == "linear":
        return LinearProbe(width, source.num_classes, seed=seed)
    if head.kind == "attentive":
        return AttentiveProbe(width, head.num_heads, source.num_classes, seed=seed)
    heads = {"num_heads": head.num_heads} if head.num_heads else {}
    levels = {"num_levels": head.num_levels, "num_tokens": source.token_shape[0]} if head.num_levels else {}
    sizes = {"embed_dim": width, **heads, **levels, "num_classes": source.num_classes}
    return ZOO[head.kind](**sizes, seed=seed)


def _make_bank(probe: Probe, settings: tuple[Setting, ...] | list[Setting], device: torch.device | str) -> Bank:
    """Every setting starts from the same weights."""
    if isinstance(probe, LinearProbe):
        return LinearBank([probe] * len(settings), device=device)
    dropouts = [setting.dropout for setting in settings]
    if isinstance(probe, AttentiveProbe):
        return AttentiveBank([probe] * len(settings), dropouts, device=device)
    return ModuleBank([probe] * len(settings), dropouts, device=device)


def _validate(bank: Bank, source: TokenSource, rows: Tensor, emit: Emit | None) -> Tensor:
    """Balanced accuracy [P] float64, NaN for a probe whose scores are not finite."""
    predictions, finite = [], torch.ones(bank.num_probes, dtype=torch.bool)
    for logits in compute_logits(bank, source, rows, phase="validate", emit=emit):
        predictions.append(logits.argmax(2))
        finite &= logits.isfinite().flatten(1).all(1)
    accuracy = balanced_accuracy(torch.cat(predictions, 1), source.labels[rows], source.num_classes)
    return accuracy.masked_fill_(~finite, torch.nan)


def _test(bank: Bank, train: TokenSource, test: TokenSource, emit: Emit | None) -> tuple[Tensor, Metrics]:
    if (test.token_shape, test.num_classes) != (train.token_shape, train.num_classes):
        raise DataError(
            where="test images",
            expected=f"tokens {train.token_shape} and {train.num_classes} classes, as in training",
            got=f"tokens {test.token_shape} and {test.num_classes} classes",
            todo="Extract the test split with the same model, levels and kinds.",
        )
    rows = torch.arange(len(test.labels))
    logits = torch.cat([part[0] for part in compute_logits(bank, test, rows, phase="test", emit=emit)])
    metrics = Metrics(
        balanced_accuracy=balanced_accuracy(logits.argmax(1), test.labels, test.num_classes).item(),
        top1=top_k_accuracy(logits, test.labels, 1).item(),
        top5=top_k_accuracy(logits, test.labels, 5).item(),
    )
    return logits, metrics


@contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    start_s = time.perf_counter()
    yield
    seconds[phase] = time.perf_counter() - start_s
