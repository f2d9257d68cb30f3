"""One trainer for every bank: batches, jitter, dropout noise, clipping, AdamW, cosine.

Every probe of a bank sees the same batches, jitter and noise, each a function of (seed, step) alone: a probe
trained with others goes the way it would have gone by itself. It knows nothing of grids or validation.

On a GPU the host only queues work: nothing in a step needs a value back (tests/test_no_waiting.py), but for the
losses of a report, four times a second.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from .bank import Bank
from .batches import BatchPlan, plan_batches
from .errors import SettingError
from .events import Emit, Reporter
from .protocol import Setting, TrainingProtocol
from .seeds import make_generator
from .sources import OrderedSource, TokenSource, read_batches, upload

EVALUATION_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """What a training leaves beside the weights in the bank.

    Attributes:
        diverged: [P] bool, probes whose loss was not finite at some step.
        final_loss: [P] the loss of the last batch.
        plan: batch size, epochs and steps.
    """

    diverged: Tensor
    final_loss: Tensor
    plan: BatchPlan


@torch.no_grad()
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
    emit: Emit | None = None,
) -> FitResult:
    """Train the probes of a bank in place.

    Args:
        bank: P probes at their initial weights.
        source: tokens and labels.
        rows: [N] int64, the images to train on.
        settings: [P] learning rate and weight decay of each probe (its dropout rate is in the bank).
        protocol: everything else.
        schedule_steps: length of the schedule, at most the plan's; None for the plan's own. The cosine is that of this length.
        max_steps: stop after as many steps of the schedule; None goes to its end.
        phase: named in the progress.
        emit: called with `Progress`.

    Returns:
        FitResult.

    Raises:
        DataError: fewer than two images.
        SettingError: not one setting a probe.
    """
    if len(settings) != bank.num_probes:
        raise SettingError(
            where="fit settings",
            expected=f"{bank.num_probes}, one a probe",
            got=str(len(settings)),
            todo="Give every probe of the bank one setting.",
        )
    plan = plan_batches(len(rows), wish=protocol.batch_size, epochs=protocol.epochs, min_steps=protocol.min_steps)
    weight_of_class = class_weights(source.labels[rows], source.num_classes)
    schedule_steps = plan.num_steps if schedule_steps is None else min(schedule_steps, plan.num_steps)
    num_steps = schedule_steps if max_steps is None else min(max_steps, schedule_steps)
    device, dtype = bank.stacks[0].device, bank.stacks[0].dtype
    optimizer, peak_lrs = _make_optimizer(bank, settings)
    finite = torch.ones(bank.num_probes, dtype=torch.bool, device=device)
    reporter = Reporter(emit, phase, num_steps, bank.num_probes)
    reporter.report(0)
    batches = islice(_batches(plan, source, rows, protocol.seed), num_steps)
    with contextlib.closing(read_batches(source, batches)) as stream:
        for step, (batch, read) in enumerate(stream):
            labels = source.labels[batch]
            weights = weight_of_class[labels]
            tokens = read.to(device, non_blocking=True)
            add_jitter(tokens, protocol, step)
            losses = bank.compute_gradients(
                tokens,
                upload(labels, device),
                upload((weights / weights.sum()).to(dtype), device),
                _draw_noise(bank, tokens, protocol.seed, step),
            )
            finite &= losses.isfinite()
            for stack in bank.stacks:
                stack.clip_grads(protocol.clip_norm)
            for group, peak_lr in zip(optimizer.param_groups, peak_lrs, strict=True):
                group["lr"] = cosine_lr(step, schedule_steps, peak_lr, protocol.min_lr)
            optimizer.step()
            reporter.report(step + 1, losses)
    return FitResult(diverged=~finite.cpu(), final_loss=losses.cpu(), plan=plan)


@torch.no_grad()
def compute_logits(
    bank: Bank,
    source: TokenSource,
    rows: Tensor,
    *,
    jitter: TrainingProtocol | None = None,
    phase: str = "predict",
    emit: Emit | None = None,
) -> Iterator[Tensor]:
    """Class scores without dropout: [P, b, C] on the CPU for one stretch of rows after the other.

    Args:
        bank: P probes.
        source: tokens.
        rows: [N] int64, the images, in the order of the result.
        jitter: jitter the tokens as this protocol says, by draws of their own; None leaves them as they are.
        phase: named in the progress.
        emit: called with `Progress`.
    """
    stretches = torch.split(rows, EVALUATION_BATCH)
    reporter = Reporter(emit, phase, len(stretches), bank.num_probes)
    reporter.report(0)
    with contextlib.closing(read_batches(source, stretches)) as stream:
        for number, (_, read) in enumerate(stream, 1):
            tokens = read.to(bank.stacks[0].device)
            if jitter is not None:
                add_jitter(tokens, jitter, number - 1, purpose="validation jitter")
            yield bank.logits(tokens).cpu()
            reporter.report(number)


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


def add_jitter(tokens: Tensor, protocol: TrainingProtocol, step: int, *, purpose: str = "jitter") -> None:
    """Add Gaussian noise in place to every element of a sample, for samples chosen with jitter_probability; a function of the seed,
    the purpose and the step."""
    if protocol.jitter_std == 0 or protocol.jitter_probability == 0:
        return
    coin = torch.rand(len(tokens), generator=make_generator(protocol.seed, f"{purpose} coin", step))
    chosen = upload((coin < protocol.jitter_probability).nonzero().squeeze(1), tokens.device)
    generator = make_generator(protocol.seed, purpose, step, device=tokens.device)
    noise = torch.randn(len(chosen), *tokens.shape[1:], generator=generator, device=tokens.device)
    tokens.index_add_(0, chosen, noise.to(tokens.dtype), alpha=protocol.jitter_std)


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


def _make_optimizer(bank: Bank, settings: Sequence[Setting]) -> tuple[torch.optim.AdamW, list[float]]:
    """AdamW with one parameter group a probe, and the peak learning rate of each group."""
    groups, peak_lrs = [], []
    for stack in bank.stacks:
        for row, member in enumerate(stack.members):
            setting = settings[member]
            groups.append({"params": stack.row(row), "lr": setting.lr, "weight_decay": setting.weight_decay})
            peak_lrs.append(setting.lr)
    # fused: one pass over weight, gradient and both moments instead of a dozen
    return torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8, fused=True), peak_lrs
