"""One trainer for every bank: batches, jitter, dropout noise, clipping, AdamW, cosine.

Banks that read the same rows train in one pass: a batch is gathered and jittered once a step, then every bank reads its
tokens of it. Batches, jitter and noise are functions of (seed, step) alone: a probe trained with others goes the way it
would have gone by itself. It knows nothing of grids or validation.

On a GPU the host only queues work: nothing in a step needs a value back (tests/test_no_waiting.py), but for the
losses of a report, four times a second.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor

from .banks.adamw import AdamW
from .banks.bank import Bank
from .curves import LearningCurves, sampled_steps
from .data.batches import BatchPlan, plan_batches
from .data.jitter import draw_jitter, jitter_blocks
from .data.reading import Reading
from .data.token_source import OrderedSource, TokenSource, blocks_of, read_batches, upload
from .errors import SettingError
from .events import OnEvent, Reporter
from .protocol import Setting, TrainingProtocol
from .seeds import make_generator
from .time_attribution import Stopwatch
from .workspace import Workspace


@dataclass(frozen=True, kw_only=True, eq=False)
class BankRun:
    """A bank that trains, or is evaluated, in a pass over batches that others may share.

    Attributes:
        bank: P probes.
        reading: which tokens of a row it reads.
        settings: [P] learning rate and weight decay of each probe (its dropout rate is in the bank).
    """

    bank: Bank
    reading: Reading
    settings: Sequence[Setting] = ()
    watch: Stopwatch = field(default_factory=Stopwatch)


@dataclass(frozen=True, kw_only=True, eq=False)
class FitResult:
    """What a training leaves beside the weights in the bank.

    Attributes:
        diverged: [P] bool, probes whose loss was not finite at some step.
        final_loss: [P] the loss of the last batch.
        curves: of the loss over the steps.
        plan: batch size, epochs and steps.
    """

    diverged: Tensor
    final_loss: Tensor
    curves: LearningCurves
    plan: BatchPlan


def fit_bank(
    bank: Bank,
    source: TokenSource,
    rows: Tensor,
    settings: Sequence[Setting],
    protocol: TrainingProtocol,
    *,
    schedule_steps: int | None = None,
    max_steps: int | None = None,
    phase: str = "fit",
    on_event: OnEvent | None = None,
) -> FitResult:
    """Train the probes of one bank, which reads whole rows, in place: `fit_banks` of one rider.

    Args:
        settings: [P] of each probe.
        bank, source, rows, protocol, schedule_steps, max_steps, phase, emit: as there.

    Raises:
        DataError, SettingError: as there.
    """
    bank_run = BankRun(
        bank=bank, reading=Reading(blocks_of(source), flat=len(source.token_shape) == 1), settings=settings
    )
    (result,) = fit_banks(
        [bank_run],
        source,
        rows,
        protocol,
        schedule_steps=schedule_steps,
        max_steps=max_steps,
        phase=phase,
        on_event=on_event,
    )
    return result


@torch.no_grad()
def fit_banks(
    bank_runs: Sequence[BankRun],
    source: TokenSource,
    rows: Tensor,
    protocol: TrainingProtocol,
    *,
    schedule_steps: int | None = None,
    max_steps: int | None = None,
    phase: str = "fit",
    best: float | None = None,
    on_event: OnEvent | None = None,
) -> list[FitResult]:
    """Train the probes of some banks in place, in one pass over the batches.

    Args:
        riders: at least one, all on one device, with banks at their initial weights.
        source: tokens and labels.
        rows: [N] int64, the images to train on.
        protocol: everything but a probe's own setting.
        schedule_steps: length of the schedule, at most the plan's; None for the plan's own. The cosine is that of this length.
        max_steps: stop after as many steps of the schedule; None goes to its end.
        phase: named in the progress.
        best: validation score so far, named in the progress.
        emit: called with `Progress`.

    Returns:
        of each rider.

    Raises:
        DataError: fewer than two images.
        SettingError: not one setting a probe.
    """
    for bank_run in bank_runs:
        if len(bank_run.settings) != bank_run.bank.num_probes:
            raise SettingError(
                where="fit settings",
                expected=f"{bank_run.bank.num_probes}, one a probe",
                got=str(len(bank_run.settings)),
                todo="Give every probe of the bank one setting.",
            )
    plan = plan_batches(len(rows), wish=protocol.batch_size, epochs=protocol.epochs, min_steps=protocol.min_steps)
    weight_of_class = class_weights(source.labels[rows], source.num_classes)
    schedule_steps = plan.num_steps if schedule_steps is None else min(schedule_steps, plan.num_steps)
    num_steps = schedule_steps if max_steps is None else min(max_steps, schedule_steps)
    device, blocks = bank_runs[0].bank.stacks[0].device, blocks_of(source)
    workspace = Workspace(torch.float32, device)
    trainings = [_Training(bank_run, protocol, schedule_steps) for bank_run in bank_runs]
    reporter = Reporter(on_event, phase, num_steps, sum(bank_run.bank.num_probes for bank_run in bank_runs), best)
    reporter.report(0)
    batches = islice(_batches(plan, source, rows, protocol.seed), num_steps)
    with contextlib.closing(read_batches(source, batches)) as stream:
        for step, (batch, read) in enumerate(stream):
            labels = source.labels[batch]
            weights = weight_of_class[labels]
            weights, labels = weights / weights.sum(), upload(labels, device)
            tokens = read.to(device, non_blocking=True).flatten(1)
            jitter = draw_jitter(protocol, step, len(tokens), workspace)
            if jitter is not None:
                jitter_blocks(jitter, tokens, blocks)
            for training in trainings:
                with training.bank_run.watch:
                    read_tokens = training.bank_run.reading.read(tokens, workspace, jitter)
                    training.step(step, read_tokens, labels, weights)
            reporter.report(step + 1, [training.losses for training in trainings])
    return [training.result(plan) for training in trainings]


class _Training:
    """One bank on its way through the schedule."""

    def __init__(self, bank_run: BankRun, protocol: TrainingProtocol, schedule_steps: int) -> None:
        bank = bank_run.bank
        self.bank_run, self._protocol, self._schedule_steps = bank_run, protocol, schedule_steps
        self._device, self._dtype = bank.stacks[0].device, bank.stacks[0].dtype
        self._optimizer = AdamW(bank.stacks, bank_run.settings)
        self._peaks = [setting.lr for setting in bank_run.settings]
        self._finite = torch.ones(bank.num_probes, dtype=torch.bool, device=self._device)
        self._points = {step: number for number, step in enumerate(sampled_steps(schedule_steps))}
        self._lrs: list[list[float]] = []
        self._curves = torch.full((len(self._points), bank.num_probes), torch.nan, device=self._device)
        self.losses = torch.full((bank.num_probes,), torch.nan, device=self._device)

    def step(self, step: int, tokens: Tensor, labels: Tensor, weights: Tensor) -> None:
        """Gradients, clipping, AdamW: tokens [B, *token_shape] and labels [B] on the device, weights [B] on the host."""
        bank = self.bank_run.bank
        noise = _draw_noise(bank, tokens, self._protocol.seed, step)
        self.losses = bank.compute_gradients(tokens, labels, upload(weights.to(self._dtype), self._device), noise)
        self._finite &= self.losses.isfinite()
        lrs = {lr: cosine_lr(step, self._schedule_steps, lr, self._protocol.min_lr) for lr in set(self._peaks)}
        if step in self._points:
            self._curves[self._points[step]].copy_(self.losses)
            self._lrs.append([lrs[lr] for lr in self._peaks])
        for stack in bank.stacks:
            stack.clip_grads(self._protocol.clip_norm)
        self._optimizer.step(lrs)

    def result(self, plan: BatchPlan) -> FitResult:
        """What is kept; here the host waits for the device."""
        steps = list(self._points)[: len(self._lrs)]
        losses = self._curves[: len(steps)].t().contiguous().cpu()
        curves = LearningCurves(steps=torch.tensor(steps), losses=losses, lrs=torch.tensor(self._lrs).t().contiguous())
        return FitResult(diverged=~self._finite.cpu(), final_loss=self.losses.cpu(), curves=curves, plan=plan)


def class_weights(labels: Tensor, num_classes: int) -> Tensor:
    """N / (C n_c), which makes every class weigh the same; 0 for a class that does not occur. [C] float64.

    >>> class_weights(torch.tensor([0, 0, 0, 1]), num_classes=3).tolist()
    [0.4444444444444444, 1.3333333333333333, 0.0]
    """
    counts = torch.bincount(labels, minlength=num_classes).double()
    weights = len(labels) / (num_classes * counts)
    return weights.masked_fill_(counts == 0, 0.0)


def cosine_lr(step: int, num_steps: int, peak_lr: float, min_lr: float) -> float:
    """The learning rate of a step: from peak_lr along half a cosine towards min_lr.

    >>> [round(cosine_lr(step, 4, 1.0, 0.0), 3) for step in range(5)]
    [1.0, 0.854, 0.5, 0.146, 0.0]
    """
    return min_lr + 0.5 * (1 + math.cos(math.pi * step / num_steps)) * (peak_lr - min_lr)


def _batches(plan: BatchPlan, source: TokenSource, rows: Tensor, seed: int) -> Iterable[Tensor]:
    """The rows of each step, in an order of the source's choice if it has one."""
    if isinstance(source, OrderedSource):
        return plan.cut(lambda epoch: source.order(rows, seed, epoch))
    return (rows[positions] for positions in plan.batches(seed))


def _draw_noise(bank: Bank, tokens: Tensor, seed: int, step: int) -> dict[int, Tensor]:
    """Uniform [B, T, H] for each number of heads: one draw that probes of all dropout rates share."""
    noise = {}
    for num_heads in bank.noise_heads:
        generator = make_generator(seed, "attention dropout", num_heads, step, device=tokens.device)
        noise[num_heads] = torch.rand(*tokens.shape[:2], num_heads, generator=generator, device=tokens.device)
    return noise
