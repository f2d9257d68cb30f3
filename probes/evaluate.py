"""Scores without dropout, and what they are worth: on the images held out, and on the test images."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from .banks.bank import Bank
from .data.batches import EVALUATION_BATCH
from .data.jitter import draw_jitter, jitter_blocks
from .data.reading import Reading
from .data.token_source import TokenSource, blocks_of, read_batches
from .errors import DataError
from .events import OnEvent, Reporter
from .fit import BankRun
from .metrics import balanced_accuracy, top_k_accuracy
from .outcome import Metrics
from .protocol import TrainingProtocol
from .workspace import Workspace


@torch.no_grad()
def compute_logits(
    bank: Bank,
    source: TokenSource,
    rows: Tensor,
    *,
    jitter: TrainingProtocol | None = None,
    phase: str = "predict",
    on_event: OnEvent | None = None,
) -> Iterator[Tensor]:
    """Class scores of a bank that reads whole rows: [P, b, C] on the CPU for one stretch of rows after the other.

    Args:
        bank: P probes.
        source: tokens.
        rows: [N] int64, the images, in the order of the result.
        jitter: jitter the tokens as this protocol says, by draws of their own; None leaves them as they are.
        phase: named in the progress.
        emit: called with `Progress`.
    """
    bank_run = BankRun(bank=bank, reading=Reading(blocks_of(source), flat=len(source.token_shape) == 1))
    for (logits,) in compute_all_logits([bank_run], source, rows, jitter=jitter, phase=phase, on_event=on_event):
        yield logits


@torch.no_grad()
def compute_all_logits(
    bank_runs: Sequence[BankRun],
    source: TokenSource,
    rows: Tensor,
    *,
    jitter: TrainingProtocol | None = None,
    phase: str = "predict",
    best: float | None = None,
    on_event: OnEvent | None = None,
) -> Iterator[list[Tensor]]:
    """Class scores of several banks that read the same rows: of each rider [P, b, C] on the CPU, stretch by stretch."""
    stretches = torch.split(rows, EVALUATION_BATCH)
    device, blocks = bank_runs[0].bank.stacks[0].device, blocks_of(source)
    workspace = Workspace(torch.float32, device)
    reporter = Reporter(on_event, phase, len(stretches), sum(bank_run.bank.num_probes for bank_run in bank_runs), best)
    reporter.report(0)
    with contextlib.closing(read_batches(source, stretches)) as stream:
        for number, (_, read) in enumerate(stream, 1):
            tokens, noise = read.to(device).flatten(1), None
            if jitter is not None:
                noise = draw_jitter(jitter, number - 1, len(tokens), workspace, purpose="validation jitter")
            if noise is not None:
                jitter_blocks(noise, tokens, blocks)
            logits = []
            for bank_run in bank_runs:
                with bank_run.watch:
                    logits.append(bank_run.bank.logits(bank_run.reading.read(tokens, workspace, noise)).cpu())
            yield logits
            reporter.report(number)


def validate(
    bank_runs: Sequence[BankRun],
    source: TokenSource,
    rows: Tensor,
    protocol: TrainingProtocol,
    *,
    best: float | None = None,
    on_event: OnEvent | None = None,
) -> list[Tensor]:
    """Balanced accuracy [P] float64 of each rider's probes on some rows, NaN for a probe whose scores are not finite."""
    predictions = [torch.empty(bank_run.bank.num_probes, len(rows), dtype=torch.int64) for bank_run in bank_runs]
    finite, done = [torch.ones(bank_run.bank.num_probes, dtype=torch.bool) for bank_run in bank_runs], 0
    jitter = protocol if protocol.jitter_validation else None
    for parts in compute_all_logits(
        bank_runs, source, rows, jitter=jitter, phase="validate", best=best, on_event=on_event
    ):
        for number, logits in enumerate(parts):
            predictions[number][:, done : done + logits.shape[1]] = logits.argmax(2)
            finite[number] &= logits.isfinite().flatten(1).all(1)
        done += parts[0].shape[1]
    labels = source.labels[rows]
    return [
        balanced_accuracy(predicted, labels, source.num_classes).masked_fill_(~good, torch.nan)
        for predicted, good in zip(predictions, finite, strict=True)
    ]


def score_test(train: TokenSource, test: TokenSource, compute: Callable[[], Tensor]) -> tuple[Tensor, Metrics]:
    """Class scores of the test images, computed once they are known to fit, and what they are worth.

    Raises:
        DataError: test tokens unlike the training tokens.
    """
    check_test(train, test)
    logits = compute()
    return logits, measure(logits, test)


def check_test(train: TokenSource, test: TokenSource) -> None:
    """Raise DataError unless the test tokens are like the training tokens."""
    if (test.token_shape, test.num_classes) != (train.token_shape, train.num_classes):
        raise DataError(
            where="test images",
            expected=f"tokens {train.token_shape} and {train.num_classes} classes, as in training",
            got=f"tokens {test.token_shape} and {test.num_classes} classes",
            todo="Extract the test split with the same model, levels and kinds.",
        )


def measure(logits: Tensor, test: TokenSource) -> Metrics:
    """The accuracies of class scores [N, C]."""
    return Metrics(
        balanced_accuracy=balanced_accuracy(logits.argmax(1), test.labels, test.num_classes).item(),
        top1=top_k_accuracy(logits, test.labels, 1).item(),
        top5=top_k_accuracy(logits, test.labels, 5).item(),
    )
