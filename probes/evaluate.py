"""Class scores of banks without dropout, and their accuracy on the held-out images and on the test images."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .banks.bank import Bank
from .data.batches import EVALUATION_BATCH
from .data.rows import Reading, draw_jitter, jitter_blocks
from .data.token_source import TokenSource, blocks_of, read_batches
from .errors import DataError
from .events import OnEvent, Reporter
from .fit import BankRun
from .metrics import balanced_accuracy, top_k_accuracy
from .outcome import Metrics
from .protocol import TrainingProtocol
from .workspace import Workspace


def compute_logits(
    bank: Bank, source: TokenSource, rows: Tensor, *, jitter: TrainingProtocol | None = None
) -> Iterator[Tensor]:
    """Class scores [P, b, C] on the CPU of a bank that reads whole rows; arguments as in `compute_all_logits`."""
    run = BankRun(bank=bank, reading=Reading(blocks_of(source), flat=len(source.token_shape) == 1))
    for (logits,) in compute_all_logits([run], source, rows, jitter=jitter):
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
    """Class scores of several banks that read the same rows: [P, b, C] on the CPU for each bank, one batch of rows at a time.

    Args:
        bank_runs: at least one, all on one device.
        source: tokens.
        rows: [N] int64, in the order of the result.
        jitter: jitter the tokens as this protocol says, with draws of their own; None leaves them as they are.
        phase: phase of the progress events.
        best: highest validation score so far, for the progress events.
        on_event: called with `Progress`.
    """
    batches = torch.split(rows, EVALUATION_BATCH)
    device, blocks = bank_runs[0].bank.stacks[0].device, blocks_of(source)
    workspace = Workspace(torch.float32, device)
    reporter = Reporter(on_event, phase, len(batches), sum(run.bank.num_probes for run in bank_runs), best)
    reporter.report(0)
    with contextlib.closing(read_batches(source, batches)) as stream:
        for number, (_, read) in enumerate(stream, 1):
            tokens, noise = read.to(device).flatten(1), None
            if jitter is not None:
                noise = draw_jitter(jitter, number - 1, len(tokens), workspace, purpose="validation jitter")
            if noise is not None:
                jitter_blocks(noise, tokens, blocks)
            logits = []
            for run in bank_runs:
                with run.timed():
                    logits.append(run.bank.logits(run.reading.read(tokens, workspace, noise)).cpu())
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
    """Balanced accuracy [P] float64 of each bank's probes on some rows; NaN for a probe whose scores are not finite."""
    predictions = [torch.empty(run.bank.num_probes, len(rows), dtype=torch.int64) for run in bank_runs]
    finite, done = [torch.ones(run.bank.num_probes, dtype=torch.bool) for run in bank_runs], 0
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


def check_test(train: TokenSource, test: TokenSource) -> None:
    """Raise DataError unless test tokens and training tokens have the same shape and number of classes."""
    if (test.token_shape, test.num_classes) != (train.token_shape, train.num_classes):
        raise DataError(
            "probes.test_tokens_differ",
            train_shape=train.token_shape,
            train_classes=train.num_classes,
            test_shape=test.token_shape,
            test_classes=test.num_classes,
        )


def measure(logits: Tensor, test: TokenSource) -> Metrics:
    """The accuracies of class scores [N, C]."""
    return Metrics(
        balanced_accuracy=balanced_accuracy(logits.argmax(1), test.labels, test.num_classes).item(),
        top1=top_k_accuracy(logits, test.labels, 1).item(),
        top5=top_k_accuracy(logits, test.labels, 5).item(),
    )
