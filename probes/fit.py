"""The trainer of all banks: batches, jitter, dropout noise, clipping, AdamW, cosine.

Banks that read the same rows train in one pass: a batch is gathered and jittered once a step, then every bank reads its
tokens of it. Batches, jitter and noise are functions of (seed, step) alone, so a probe trained with others is the probe
trained alone. This module knows nothing of grids or validation.

On a GPU the host only queues work: no step needs a value back (tests/test_no_waiting.py), except the losses of a progress
report, four times a second.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor

from .banks.bank import Bank
from .banks.stack import AdamW
from .data.batches import BatchPlan, plan_batches
from .data.rows import Jitter, Reading, draw_jitter, jitter_blocks, upload
from .data.token_source import OrderedSource, TokenSource, blocks_of, read_batches, read_whole, row_weights
from .errors import SettingError
from .events import OnEvent, Reporter
from .outcome import LearningCurves, sampled_steps
from .protocol import Setting, TrainingProtocol
from .seeds import make_generator
from .tasks import Task
from .workspace import Workspace


@dataclass(kw_only=True, eq=False)
class BankRun:
    """A bank in a pass over batches that other banks may share, for training or evaluation.

    Attributes:
        bank: P probes.
        reading: tokens of a row that the bank reads.
        settings: [P] learning rate and weight decay of each probe (its dropout rate is in the bank).
        seconds: phase -> wall time, see `attribute_time`.
        own_s: wall time of this bank's own work in the current phase.
    """

    bank: Bank
    reading: Reading
    settings: Sequence[Setting] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    own_s: float = 0.0

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Add the wall time of the block to `own_s`; on a GPU, the time it takes to queue the work."""
        start_s = time.perf_counter()
        yield
        self.own_s += time.perf_counter() - start_s


@contextlib.contextmanager
def attribute_time(phase: str, bank_runs: Sequence[BankRun]) -> Iterator[None]:
    """Add the wall time of the block to seconds[phase] of the banks, in proportion to the own work of each.

    So work that banks share, such as reading rows, is attributed too, and the parts add up to the wall time.
    """
    start_s = time.perf_counter()
    yield
    elapsed_s, own_s = time.perf_counter() - start_s, sum(run.own_s for run in bank_runs)
    for run in bank_runs:
        part_s = elapsed_s * run.own_s / own_s if own_s > 0 else elapsed_s / len(bank_runs)
        run.seconds[phase] = run.seconds.get(phase, 0.0) + part_s
        run.own_s = 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class FitResult:
    """The result of a training, beside the weights in the bank.

    Attributes:
        diverged: [P] bool, probes whose loss was not finite at some step.
        final_loss: [P] loss of the last batch.
        curves: loss and learning rate over the steps.
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
    """Train the probes of one bank, which reads whole rows, in place; arguments and errors as in `fit_banks`."""
    runs = [BankRun(bank=bank, reading=read_whole(source), settings=settings)]
    steps = {"schedule_steps": schedule_steps, "max_steps": max_steps}
    return fit_banks(runs, source, rows, protocol, **steps, phase=phase, on_event=on_event)[0]


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
    """Train the probes of several banks in place, in one pass over the batches.

    Args:
        bank_runs: at least one, all on one device, with banks at their initial weights.
        source: tokens and targets.
        rows: [N] int64, the rows to train on.
        protocol: batches, schedule, jitter, clipping and seed; its grid does not matter.
        schedule_steps: length of the cosine, at most that of the plan; None for that of the plan.
        max_steps: stop after this number of steps; None runs the whole schedule.
        phase: phase of the progress events.
        best: highest validation score so far, for the progress events.
        on_event: called with `Progress`.

    Returns:
        the result of each bank.

    Raises:
        DataError: there are fewer than two rows.
        SettingError: a bank does not have one setting for each probe.
    """
    plan = plan_batches(len(rows), wish=protocol.batch_size, epochs=protocol.epochs, min_steps=protocol.min_steps)
    task = source.task.fit(source.targets[rows])
    schedule_steps = plan.num_steps if schedule_steps is None else min(schedule_steps, plan.num_steps)
    num_steps = schedule_steps if max_steps is None else min(max_steps, schedule_steps)
    device = bank_runs[0].bank.stacks[0].device
    workspace = Workspace(torch.float32, device)
    trainings = [_Training(run, protocol, schedule_steps) for run in bank_runs]
    reporter = Reporter(on_event, phase, num_steps, sum(run.bank.num_probes for run in bank_runs), best)
    reporter.report(0)
    batches = islice(_batches(plan, source, rows, protocol.seed), num_steps)
    with contextlib.closing(_samples(source, batches, task, protocol, workspace)) as stream:
        for step, (samples, jitter, targets, weights) in enumerate(stream):
            for run, training in zip(bank_runs, trainings, strict=True):
                with run.timed():
                    tokens = run.reading.read(samples, workspace, jitter)
                    of_samples = upload(weights.to(training.dtype), device)
                    noise = training.draw_noise(step, len(samples))
                    training.update(step, run.bank.compute_gradients(tokens, targets, of_samples, noise, task))
                    del noise  # before that of the next bank is drawn
            reporter.report(step + 1, [training.losses for training in trainings])
    return [training.result(plan) for training in trainings]


def _samples(
    source: TokenSource, batches: Iterable[Tensor], task: Task, protocol: TrainingProtocol, workspace: Workspace
) -> Generator[tuple[Tensor, Jitter | None, Tensor, Tensor], None, None]:
    """What the banks share of each step.

    Yields:
        jittered rows [B, F] on the device, their jitter, encoded targets on the device, weights [B] on the host, summing to 1.
    """
    device, blocks, own = workspace.device, blocks_of(source), row_weights(source)
    with contextlib.closing(read_batches(source, batches)) as stream:
        for step, (batch, read) in enumerate(stream):
            of_batch = source.targets[batch]
            targets, weights = task.encode(of_batch), task.sample_weights(of_batch)
            if own is not None:
                weights = weights * own[batch]
            rows = read.to(device, non_blocking=True).flatten(1)
            jitter = draw_jitter(protocol, step, len(rows), workspace)
            if jitter is not None:
                jitter_blocks(jitter, rows, blocks)
            yield rows, jitter, upload(targets, device), weights / weights.sum()


class _Training:
    """State of the training of one bank.

    Attributes:
        losses: [P] of the last step.
        dtype: of the arithmetic.
    """

    def __init__(self, run: BankRun, protocol: TrainingProtocol, schedule_steps: int) -> None:
        bank, num_settings = run.bank, len(run.settings)
        if num_settings != bank.num_probes:
            raise SettingError("probes.wrong_num_settings", num_probes=bank.num_probes, num_settings=num_settings)
        self._run, self._protocol, self._schedule_steps = run, protocol, schedule_steps
        self._device, self.dtype = bank.stacks[0].device, bank.stacks[0].dtype
        self._optimizer = AdamW(bank.stacks, run.settings)
        self._peaks = [setting.lr for setting in run.settings]
        self._finite = torch.ones(bank.num_probes, dtype=torch.bool, device=self._device)
        self._points = {step: number for number, step in enumerate(sampled_steps(schedule_steps))}
        self._lrs: list[list[float]] = []
        # curves stay on the device until the training is over, so that the host waits for none of them
        self._curves = torch.full((len(self._points), bank.num_probes), torch.nan, device=self._device)
        self.losses = torch.full((bank.num_probes,), torch.nan, device=self._device)

    def draw_noise(self, step: int, num_samples: int) -> dict[int, Tensor]:
        """Uniform noise [B, T, H] for each number of heads; probes of all dropout rates share one draw."""
        noise, num_tokens = {}, self._run.reading.token_shape[0]
        for num_heads in self._run.bank.noise_heads:
            generator = make_generator(self._protocol.seed, "attention dropout", num_heads, step, device=self._device)
            noise[num_heads] = torch.rand(num_samples, num_tokens, num_heads, generator=generator, device=self._device)
        return noise

    def update(self, step: int, losses: Tensor) -> None:
        """Clip the gradients and change the weights; losses [P] are those of the step."""
        self.losses = losses
        self._finite &= losses.isfinite()
        lrs = {lr: cosine_lr(step, self._schedule_steps, lr, self._protocol.min_lr) for lr in set(self._peaks)}
        if step in self._points:
            self._curves[self._points[step]].copy_(losses)
            self._lrs.append([lrs[lr] for lr in self._peaks])
        for stack in self._run.bank.stacks:
            stack.clip_grads(self._protocol.clip_norm)
        self._optimizer.step(lrs)

    def result(self, plan: BatchPlan) -> FitResult:
        """Copy the result to the host, which waits for the device here."""
        steps = list(self._points)[: len(self._lrs)]
        losses = self._curves[: len(steps)].t().contiguous().cpu()
        curves = LearningCurves(steps=torch.tensor(steps), losses=losses, lrs=torch.tensor(self._lrs).t().contiguous())
        return FitResult(diverged=~self._finite.cpu(), final_loss=self.losses.cpu(), curves=curves, plan=plan)


def cosine_lr(step: int, num_steps: int, peak_lr: float, min_lr: float) -> float:
    """The learning rate of a step: half a cosine from peak_lr towards min_lr.

    >>> [round(cosine_lr(step, 4, 1.0, 0.0), 3) for step in range(5)]
    [1.0, 0.854, 0.5, 0.146, 0.0]
    """
    return min_lr + 0.5 * (1 + math.cos(math.pi * step / num_steps)) * (peak_lr - min_lr)


def _batches(plan: BatchPlan, source: TokenSource, rows: Tensor, seed: int) -> Iterable[Tensor]:
    """The rows of each step, in the order of the source if it has one."""
    if isinstance(source, OrderedSource):
        return plan.cut(lambda epoch: source.order(rows, seed, epoch))
    return (rows[positions] for positions in plan.batches(seed))
