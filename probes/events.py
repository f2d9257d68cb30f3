"""What a long computation tells while it runs. Nobody prints here; whoever called decides what is shown."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a phase of a sweep is.

    Attributes:
        phase: "select" (training the grid), "validate", "refit" (training the chosen setting) or "test".
        step: steps done, from 0 to num_steps.
        num_steps: of the phase.
        num_probes: trained or evaluated together.
        loss: the lowest training loss among the probes at this step; None where nothing is trained.
    """

    phase: str
    step: int
    num_steps: int
    num_probes: int
    loss: float | None = None


Emit = Callable[[Progress], None]

SHORTEST_INTERVAL_S = 0.25


class Reporter:
    """Passes on the first and last report of a phase, and at most four a second between them."""

    def __init__(self, emit: Emit | None, phase: str, num_steps: int, num_probes: int) -> None:
        self._emit, self._phase, self._num_steps, self._num_probes = emit, phase, num_steps, num_probes
        self._last_s = float("-inf")

    def report(self, step: int, losses: Tensor | None = None) -> None:
        """Say that `step` steps are done; the losses [P] are looked at only if this report is passed on."""
        now_s = time.monotonic()
        due = now_s - self._last_s >= SHORTEST_INTERVAL_S or step in (0, self._num_steps)
        if self._emit is None or not due:
            return
        self._last_s = now_s
        self._emit(
            Progress(
                phase=self._phase,
                step=step,
                num_steps=self._num_steps,
                num_probes=self._num_probes,
                loss=None if losses is None else losses.nan_to_num(nan=torch.inf).min().item(),
            )
        )
