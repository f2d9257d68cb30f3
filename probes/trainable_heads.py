"""From a candidate to what trains it: which tokens it reads, its initial weights, its grid, its share of the memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .banks.bank import Bank
from .banks.budget import MemoryPlan
from .banks.make_bank import make_bank
from .data.reading import Reading
from .data.token_source import TokenSource
from .fit import BankRun
from .group_plan import Candidate, reading_of
from .heads import HeadModule, make_probe
from .protocol import Setting, TrainingProtocol


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainableHead:
    """A candidate on the tokens of a source.

    Attributes:
        candidate: which head on which blocks.
        reading: of a row.
        initial: the weights from which every setting starts.
        settings: the grid, in the order in which settings win ties.
        memory: in how many banks the grid is trained, and how; None for heads that are not planned.
        refit_bytes: what training one probe takes at most; None likewise.
        compute: numbers of the matrix products.
    """

    candidate: Candidate
    reading: Reading
    initial: HeadModule
    settings: tuple[Setting, ...]
    memory: MemoryPlan | None
    refit_bytes: int | None
    compute: str

    @property
    def bank_bytes(self) -> int | None:
        """What training its largest bank takes at most; None where nobody knows."""
        return None if self.memory is None else self.memory.total_bytes

    def group(self, settings: Sequence[Setting], device: torch.device | str) -> BankRun:
        """A fresh bank, a probe a setting."""
        return BankRun(bank=self._bank(self.initial, settings, device), reading=self.reading, settings=settings)

    def run_again(self, probe: HeadModule, device: torch.device | str) -> BankRun:
        """A trained probe, to be evaluated."""
        return BankRun(bank=self._bank(probe, [Setting(lr=0.0, weight_decay=0.0)], device), reading=self.reading)

    def _bank(
        self,
        probe: HeadModule,
        settings: Sequence[Setting],
        device: torch.device | str,
    ) -> Bank:
        assert self.memory is not None, "every head that is trained is planned"
        return make_bank(probe, settings, self.memory, device=device, compute=self.compute)


def prepare(
    candidate: Candidate,
    source: TokenSource,
    protocol: TrainingProtocol,
    memory: MemoryPlan | None,
    refit_bytes: int | None,
) -> TrainableHead:
    """A candidate made ready, with what `plan_group` says of its memory.

    Raises:
        SettingError: head and tokens do not fit each other.
    """
    reading = reading_of(candidate, source)
    return TrainableHead(
        candidate=candidate,
        reading=reading,
        initial=make_probe(candidate.head, reading.token_shape, source.num_classes, seed=protocol.seed),
        settings=protocol.settings(candidate.head),
        memory=memory,
        refit_bytes=refit_bytes,
        compute=protocol.compute,
    )
