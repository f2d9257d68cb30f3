"""Plan the training of heads on the rows of one source: tokens of each head, memory, and which banks share a pass.

The memory plan is an upper bound, computed from shapes as in `banks/budget.py`. Heads that train together share the rows of a
batch, which count once; weights, scratch memory and the copy of the tokens count for each head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

import torch

from .banks.budget import FLOAT_BYTES, MemoryPlan, Sizes, least_memory, plan_memory, sizes_of, too_little_memory
from .banks.make_bank import make_bank
from .data.rows import Reading
from .data.token_source import TokenSource, blocks_of, has_blocks
from .errors import SettingError
from .fit import BankRun
from .heads import HEADS, Head, HeadModule, check_task, make_probe
from .protocol import Setting, TrainingProtocol


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A head and the tokens that it reads.

    Attributes:
        head: a trained head.
        blocks: names of the blocks of a row that the head reads, in the order in which they are joined; None for the whole row.
    """

    head: Head
    blocks: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainableHead:
    """A candidate on the tokens of a source, with the memory plan of its grid.

    Attributes:
        candidate: the head and the blocks that it reads.
        reading: tokens of a row that the head reads.
        sizes: what decides the memory of its grid, with the task of the data set.
        protocol: grid, seed and matmul precision.
        memory: number and shape of the banks of the grid.
    """

    candidate: Candidate
    reading: Reading
    sizes: Sizes
    protocol: TrainingProtocol
    memory: MemoryPlan

    @cached_property
    def refit_bytes(self) -> int:
        """Upper bound of the memory for training one probe."""
        return min(plan_memory(replace(self.sizes, num_probes=1)).total_bytes, self.memory.total_bytes)

    @cached_property
    def initial(self) -> HeadModule:
        """The probe with the initial weights of every setting."""
        seed = self.protocol.seed
        return make_probe(self.candidate.head, self.reading.token_shape, self.sizes.num_outputs, seed=seed)

    def make_run(
        self,
        settings: Sequence[Setting],
        device: torch.device | str,
        seconds: dict[str, float],
        probe: HeadModule | None = None,
    ) -> BankRun:
        """A bank with one probe for each setting, with the initial weights or those of `probe`; `seconds` receives its time."""
        bank = make_bank(probe or self.initial, settings, self.memory, device=device, compute=self.protocol.compute)
        return BankRun(bank=bank, reading=self.reading, settings=settings, seconds=seconds)


@dataclass(frozen=True, kw_only=True)
class GroupPlan:
    """How some heads train together.

    Attributes:
        heads: the head of each candidate.
        shared_bytes: memory for the rows of a batch, beside the banks of a pass.
        scores_bytes: memory for the outputs of all sweeps on the test images, beside the banks of the final trainings.
        memory_bytes: memory for training and test; None is no limit.
    """

    heads: Mapping[Candidate, TrainableHead]
    shared_bytes: int
    scores_bytes: int = 0
    memory_bytes: int | None = None

    @property
    def banks_bytes(self) -> int | None:
        """Memory for the banks of a pass; None is no limit."""
        return None if self.memory_bytes is None else self.memory_bytes - self.shared_bytes

    @cached_property
    def passes(self) -> list[list[int]]:
        """The sizes of the banks of each pass that trains all banks of all candidates."""
        banks = [head.memory.total_bytes for head in self.heads.values() for _ in range(head.memory.num_banks)]
        return [[banks[bank] for bank in of_pass] for of_pass in plan_passes(banks, self.banks_bytes)]

    def refit_passes(self, heads: Sequence[TrainableHead]) -> list[list[int]]:
        """The indices of the heads of each pass of final trainings, whose banks lie beside the scores while they are tested."""
        left = None if self.banks_bytes is None else self.banks_bytes - self.scores_bytes
        return plan_passes([head.refit_bytes for head in heads], left)

    @property
    def num_passes(self) -> int:
        """Passes over the batches that train all banks of all candidates."""
        return len(self.passes)

    @property
    def total_bytes(self) -> int:
        """Upper bound of the memory for training and test."""
        heads = list(self.heads.values())
        refits = [sum(heads[place].refit_bytes for place in places) for places in self.refit_passes(heads)]
        return self.shared_bytes + max(*map(sum, self.passes), self.scores_bytes + max(refits))

    @property
    def least_bytes(self) -> int:
        """The smallest memory for which there is a plan."""
        return self.shared_bytes + self.scores_bytes + max(least_memory(head.sizes) for head in self.heads.values())

    @property
    def batch_size(self) -> int:
        """Rows of the largest batch."""
        return next(iter(self.heads.values())).sizes.batch_size

    def within(self, memory_bytes: int) -> GroupPlan:
        """The same heads in less memory, in more banks or passes where that is necessary.

        Raises:
            SettingError: the memory is too small for one probe of a head.
        """
        if memory_bytes < self.least_bytes:
            most = max((head.sizes for head in self.heads.values()), key=least_memory)
            raise too_little_memory(self.least_bytes, memory_bytes, most.token_shape)
        limit = memory_bytes - self.shared_bytes
        heads = {}
        for one, head in self.heads.items():
            heads[one] = replace(head, memory=plan_memory(head.sizes, limit))
            if heads[one].refit_bytes + self.scores_bytes > limit:
                heads[one] = replace(head, memory=plan_memory(head.sizes, limit - self.scores_bytes))
        return replace(self, heads=heads, memory_bytes=memory_bytes)


def plan_group(
    candidates: Sequence[Candidate],
    source: TokenSource,
    protocol: TrainingProtocol,
    memory_bytes: int | None,
    *,
    num_tested: int = 0,
    on_gpu: bool = False,
) -> GroupPlan:
    """Plan the memory and the passes of heads that train together.

    Args:
        candidates: each once.
        source: the training images; only shapes and the number of targets matter.
        protocol: grid and batches.
        memory_bytes: memory for training and test; None is no limit.
        num_tested: test images, counted once for each sweep; their outputs are kept.
        on_gpu: whether a GPU trains them.

    Raises:
        SettingError: head and tokens or head and task do not fit each other, or the memory is too small for one probe of a head.
    """
    heads = {}
    for candidate in candidates:
        check_task(candidate.head, source.task)
        reading = reading_of(candidate, source)
        num_rows = len(source.targets)
        sizes = sizes_of(candidate.head, reading.token_shape, source.task, num_rows, protocol, on_gpu=on_gpu)
        heads[candidate] = TrainableHead(
            candidate=candidate, reading=reading, sizes=sizes, protocol=protocol, memory=plan_memory(sizes)
        )
    alone = len(candidates) == 1 and reading.whole
    plan = GroupPlan(
        heads=heads,
        shared_bytes=0 if alone else FLOAT_BYTES * sizes.batch_size * prod(source.token_shape),
        scores_bytes=FLOAT_BYTES * num_tested * source.task.num_outputs,
    )
    return plan if memory_bytes is None else plan.within(memory_bytes)


def plan_passes(sizes: Sequence[int], budget_bytes: int | None) -> list[list[int]]:
    """Distribute banks over passes, in order: as many in a pass as fit into the memory.

    Args:
        sizes: upper bound of the memory for training each bank, in bytes.
        budget_bytes: memory for the banks of a pass; None is no limit. A larger bank has a pass to itself.

    Returns:
        indices of the banks of each pass.

    >>> plan_passes([5, 3, 4, 9, 2, 2], 8)
    [[0, 1], [2], [3], [4, 5]]
    """
    passes: list[list[int]] = []
    left_bytes = -1.0
    for number, size in enumerate(sizes):
        if size > left_bytes:
            passes.append([])
            left_bytes = float("inf") if budget_bytes is None else budget_bytes
        passes[-1].append(number)
        left_bytes -= size
    return passes


def reading_of(candidate: Candidate, source: TokenSource) -> Reading:
    """The tokens that a candidate reads from the rows of a source.

    Raises:
        SettingError: the head needs tokens of another shape, or the source lacks blocks.
    """
    head, shape = candidate.head, source.token_shape
    flat = HEADS[head.kind].flat
    if not has_blocks(source) and len(shape) != (1 if flat else 2):
        if flat:
            raise SettingError("probes.tokens_not_flat", head=head.kind, shape=shape)
        raise SettingError("probes.tokens_not_stacked", head=head.kind, shape=shape)
    return Reading(blocks_of(source), candidate.blocks, flat=flat)
