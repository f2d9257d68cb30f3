"""Progress events of long computations. Nothing is printed here; the caller decides what is shown."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Progress of a phase of a sweep.

    Attributes:
        phase: "select" (training of the grid), "validate", "refit" (training of the chosen setting) or "test".
        step: steps done, from 0 to num_steps.
        num_steps: of the phase.
        num_probes: probes trained or evaluated together.
        probe_steps_per_s: probes times steps per second since the phase began; None before the first step.
        best: highest validation score so far, by the metric of the task; None if nothing has been validated.
        loss: lowest training loss among the probes at this step; None if nothing is trained.
    """

    phase: str
    step: int
    num_steps: int
    num_probes: int
    probe_steps_per_s: float | None = None
    best: float | None = None
    loss: float | None = None


OnEvent = Callable[[Progress], None]

SHORTEST_INTERVAL_S = 0.25


class Reporter:
    """Reports progress to a callback: the first and last step of a phase, and at most four times a second between."""

    def __init__(
        self, on_event: OnEvent | None, phase: str, num_steps: int, num_probes: int, best: float | None = None
    ) -> None:
        self._on_event, self._phase, self._num_steps, self._num_probes = on_event, phase, num_steps, num_probes
        self._best, self._began_s, self._last_s = best, time.monotonic(), float("-inf")

    def report(self, step: int, losses: Sequence[Tensor] = ()) -> None:
        """Report that `step` steps are done; losses, [P] of each bank, are read only if the callback is called."""
        now_s = time.monotonic()
        due = now_s - self._last_s >= SHORTEST_INTERVAL_S or step in (0, self._num_steps)
        if self._on_event is None or not due:
            return
        self._last_s = now_s
        elapsed_s = now_s - self._began_s
        self._on_event(
            Progress(
                phase=self._phase,
                step=step,
                num_steps=self._num_steps,
                num_probes=self._num_probes,
                probe_steps_per_s=self._num_probes * step / elapsed_s if step and elapsed_s else None,
                best=self._best,
                loss=torch.cat(list(losses)).nan_to_num(nan=torch.inf).min().item() if losses else None,
            )
        )
