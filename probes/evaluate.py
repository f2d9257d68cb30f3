"""Outputs of banks without dropout, and their scores on the held-out images and on the test images."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence

import torch
from torch import Tensor

from .banks.bank import Bank
from .data.batches import EVALUATION_BATCH
from .data.rows import draw_jitter, jitter_blocks
from .data.token_source import TokenSource, blocks_of, read_batches, read_whole, reading_places
from .errors import DataError
from .events import OnEvent, Reporter
from .fit import BankRun
from .protocol import TrainingProtocol
from .tasks import Task
from .workspace import Workspace


def compute_logits(
    bank: Bank, source: TokenSource, rows: Tensor, *, jitter: TrainingProtocol | None = None
) -> Iterator[Tensor]:
    """Class scores [P, b, C] on the CPU of a bank that reads whole rows, in the order of `rows`.

    Arguments as in `compute_all_logits`.
    """
    run = BankRun(bank=bank, reading=read_whole(source))
    for (logits,) in _logits_of([run], source, torch.split(rows, EVALUATION_BATCH), jitter=jitter):
        yield logits


def compute_all_logits(
    bank_runs: Sequence[BankRun],
    source: TokenSource,
    rows: Tensor,
    *,
    jitter: TrainingProtocol | None = None,
    phase: str = "predict",
    best: float | None = None,
    on_event: OnEvent | None = None,
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Class scores of several banks that read the same rows, one batch at a time, in the order in which the rows are best read.

    Args:
        bank_runs: at least one, all on one device.
        source: tokens.
        rows: [N] int64.
        jitter: jitter the tokens as this protocol says, with draws of their own; None leaves them as they are.
        phase: phase of the progress events.
        best: highest validation score so far, for the progress events.
        on_event: called with `Progress`.

    Yields:
        the places [b] int64 of the batch in `rows`, and the scores [P, b, C] of each bank on the CPU.
    """
    places = torch.split(reading_places(source, rows), EVALUATION_BATCH)
    batches = [rows[one] for one in places]
    logits = _logits_of(bank_runs, source, batches, jitter=jitter, phase=phase, best=best, on_event=on_event)
    with contextlib.closing(logits):
        yield from zip(places, logits, strict=True)


def collect_logits(
    bank_runs: Sequence[BankRun], source: TokenSource, *, phase: str, best: float | None, on_event: OnEvent | None
) -> list[Tensor]:
    """Class scores [P, N, C] of each bank of all rows of a source, in their order; arguments as in `compute_all_logits`."""
    rows = torch.arange(len(source.targets))
    scores = [torch.empty(run.bank.num_probes, len(rows), source.task.num_outputs) for run in bank_runs]
    for places, parts in compute_all_logits(bank_runs, source, rows, phase=phase, best=best, on_event=on_event):
        for of_bank, part in zip(scores, parts, strict=True):
            of_bank[:, places] = part
    return scores


@torch.no_grad()
def _logits_of(
    bank_runs: Sequence[BankRun],
    source: TokenSource,
    batches: Sequence[Tensor],
    *,
    jitter: TrainingProtocol | None = None,
    phase: str = "predict",
    best: float | None = None,
    on_event: OnEvent | None = None,
) -> Generator[list[Tensor], None, None]:
    """[P, b, C] of each bank for each batch; the other arguments as in `compute_all_logits`."""
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
    task: Task,
    *,
    best: float | None = None,
    on_event: OnEvent | None = None,
) -> list[Tensor]:
    """The task's score [P] float64 of each bank's probes on some rows; NaN for a probe whose outputs are not finite.

    `task` is fitted to the rows that the probes were trained on.
    """
    scored: list[Tensor] = []  # of each bank
    finite = [torch.ones(run.bank.num_probes, dtype=torch.bool) for run in bank_runs]
    jitter = protocol if protocol.jitter_validation else None
    for places, parts in compute_all_logits(
        bank_runs, source, rows, jitter=jitter, phase="validate", best=best, on_event=on_event
    ):
        for number, logits in enumerate(parts):
            part = task.scored(logits)
            if len(scored) == number:
                scored.append(torch.empty(len(part), len(rows), *part.shape[2:], dtype=part.dtype))
            scored[number][:, places] = part
            finite[number] &= logits.isfinite().flatten(1).all(1)
    targets = source.targets[rows]
    return [task.score(one, targets).masked_fill_(~good, torch.nan) for one, good in zip(scored, finite, strict=True)]


def check_test(train: TokenSource, test: TokenSource) -> None:
    """Raise DataError unless there are test tokens, of the same shape and task as the training tokens."""
    if not len(test.targets):
        raise DataError("probes.no_test_images")
    if (test.token_shape, test.task) != (train.token_shape, train.task):
        raise DataError(
            "probes.test_tokens_differ",
            train_shape=train.token_shape,
            train_task=train.task,
            test_shape=test.token_shape,
            test_task=test.task,
        )


def measure(task: Task, outputs: Tensor, targets: Tensor) -> dict[str, float]:
    """All metrics of outputs [N, C] on targets of the data set, by name.

    Raises:
        DataError: outputs that are not finite, which have no metric.
    """
    # in parts: isfinite makes two copies of the outputs
    num_broken = sum(int((~part.isfinite()).any(1).sum()) for part in torch.split(outputs, EVALUATION_BATCH))
    if num_broken:
        raise DataError("probes.scores_not_finite", num_broken=num_broken, num_images=len(outputs))
    return task.measure(outputs, targets)
