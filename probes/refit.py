"""After the choice: train the chosen settings on all training images, together, and test them once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .curves import LearningCurves
from .data.batches import BatchPlan
from .data.token_source import TokenSource
from .ensemble import Ensemble
from .evaluate import check_test, compute_all_logits, measure
from .events import OnEvent
from .fit import fit_banks
from .heads import HeadModule
from .outcome import Metrics
from .passes import plan_passes
from .protocol import Setting, TrainingProtocol
from .time_attribution import Stopwatch, shared_out
from .trainable_heads import TrainableHead


@dataclass(frozen=True, kw_only=True)
class Winner:
    """A setting that was chosen, of an entrant by number."""

    trainable: int
    setting: Setting


@dataclass(frozen=True, kw_only=True, eq=False)
class Refit:
    """A chosen setting, trained on everything.

    Attributes:
        plan: the batches.
        curves: [1, K]; of an ensemble [k, K].
        probe: None if it diverged.
        test_logits: [N, C] float32, None likewise.
        test: None likewise.
        seconds: its part of the wall time of refit and test.
    """

    plan: BatchPlan
    curves: LearningCurves
    probe: HeadModule | Ensemble | None
    test_logits: Tensor | None
    test: Metrics | None
    seconds: dict[str, float]


def refit(
    winners: Sequence[Winner],
    trainables: Sequence[TrainableHead],
    train: TokenSource,
    open_test: Callable[[], TokenSource],
    protocol: TrainingProtocol,
    *,
    memory_bytes: int | None,
    device: torch.device | str,
    best: float | None,
    on_event: OnEvent | None,
) -> dict[Winner, Refit]:
    """Train the winners on all rows, then open the test images, once, and score them.

    Args:
        winners: each once.
        entrants: of whom the winners are.
        train: the training images.
        open_test: not called if every final training diverges.
        protocol: how.
        memory_bytes: what the winners that train in one pass may take; None is no limit.
        device: of the arithmetic.
        best: the highest validation score among the winners, named in the progress.
        emit: called with `Progress`.

    Raises:
        DataError: test tokens unlike the training tokens.
    """
    sizes = [trainables[winner.trainable].refit_bytes for winner in winners]
    passes = [[winners[place] for place in places] for places in plan_passes(sizes, memory_bytes)]
    everything = torch.arange(len(train.labels))
    trained: dict[Winner, HeadModule] = {}
    left: dict[Winner, tuple[BatchPlan, LearningCurves]] = {}
    seconds: dict[Winner, dict[str, float]] = {winner: {} for winner in winners}
    for of_pass in passes:
        bank_runs = [trainables[winner.trainable].group([winner.setting], device) for winner in of_pass]
        with shared_out(
            "refit", [(seconds[winner], bank_run.watch) for winner, bank_run in zip(of_pass, bank_runs, strict=True)]
        ):
            fitted = fit_banks(bank_runs, train, everything, protocol, phase="refit", best=best, on_event=on_event)
            probes = [bank_run.bank.probe(0) for bank_run in bank_runs]
        del bank_runs  # before the next ones take their memory
        for winner, probe, outcome in zip(of_pass, probes, fitted, strict=True):
            assert isinstance(probe, HeadModule)
            left[winner] = outcome.plan, outcome.curves
            if not bool(outcome.diverged[0]) and all(bool(x.isfinite().all()) for x in probe.parameters()):
                trained[winner] = probe
    logits: dict[Winner, Tensor] = {}
    metrics: dict[Winner, Metrics] = {}
    if trained:
        parties: list[tuple[dict[str, float], Stopwatch]] = []
        with shared_out("test", parties):
            test = open_test()
            check_test(train, test)
            for of_pass in passes:
                tested = [winner for winner in of_pass if winner in trained]
                if not tested:
                    continue
                bank_runs = [trainables[winner.trainable].run_again(trained[winner], device) for winner in tested]
                parties += [
                    (seconds[winner], bank_run.watch) for winner, bank_run in zip(tested, bank_runs, strict=True)
                ]
                parts = list(
                    compute_all_logits(
                        bank_runs, test, torch.arange(len(test.labels)), phase="test", best=best, on_event=on_event
                    )
                )
                logits |= {winner: torch.cat([part[place][0] for part in parts]) for place, winner in enumerate(tested)}
                del bank_runs
            metrics = {winner: measure(scores, test) for winner, scores in logits.items()}
    return {
        winner: Refit(
            plan=plan,
            curves=curves,
            probe=trained.get(winner),
            test_logits=logits.get(winner),
            test=metrics.get(winner),
            seconds=seconds[winner],
        )
        for winner, (plan, curves) in left.items()
    }
