"""How heads that train together fit into the memory: a plan for each, and passes of as many as fit at once.

An upper bound as `budget.py` is, and arithmetic like it. Heads in company share the rows of a batch, which are counted once;
each has its own weights, scratch memory and copy of what it reads, which are counted for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from .banks.budget import FLOAT_BYTES, MemoryPlan, plan_memory, sizes_of
from .data.reading import Reading
from .data.token_source import TokenSource, blocks_of, has_blocks
from .errors import SettingError
from .heads import HEADS, Head
from .passes import plan_passes
from .protocol import TrainingProtocol


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A head, and what it reads.

    Attributes:
        head: which probe.
        blocks: names of the blocks of a row that it reads, in the order in which they are joined; None for the whole row.
    """

    head: Head
    blocks: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class GroupPlan:
    """What was chosen, and what it will take.

    Attributes:
        banks_bytes: what the banks of a pass may take together; None is no limit.
        memory: of each candidate, in how many banks its grid is trained, and how; None for heads that are not planned.
        refit_bytes: of each candidate, what training one probe takes at most; None likewise.
        num_passes: over the batches, in which all the banks of all candidates are trained.
        total_bytes: an upper bound of what training takes at its peak, heads that are not planned left out.
    """

    banks_bytes: int | None
    memory: tuple[MemoryPlan | None, ...]
    refit_bytes: tuple[int | None, ...]
    num_passes: int
    total_bytes: int


def plan_group(
    candidates: Sequence[Candidate], source: TokenSource, protocol: TrainingProtocol, memory_bytes: int | None
) -> GroupPlan:
    """Plan the training of some heads on the rows of one source.

    Args:
        candidates: the heads, each once.
        source: of the training images; only its shapes and the number of its labels count.
        protocol: grid and batches.
        memory_bytes: what training may take; None is no limit.

    Raises:
        SettingError: head and tokens do not fit each other, or not even one probe of a head fits into the memory.
    """
    readings = [reading_of(one, source) for one in candidates]
    sizes = [
        sizes_of(one.head, reading.token_shape, source.num_classes, len(source.labels), protocol)
        for one, reading in zip(candidates, readings, strict=True)
    ]
    alone = len(candidates) == 1 and readings[0].whole
    shared_bytes = 0 if alone else FLOAT_BYTES * sizes[0].batch_size * prod(source.token_shape)
    banks_bytes = None if memory_bytes is None else max(memory_bytes - shared_bytes, 0)
    planned = [not HEADS[one.head.kind].is_solved for one in candidates]
    memory = [plan_memory(of_one, banks_bytes) if known else None for of_one, known in zip(sizes, planned, strict=True)]
    refits = [
        plan_memory(replace(of_one, num_probes=1)).total_bytes if known else None
        for of_one, known in zip(sizes, planned, strict=True)
    ]
    banks = [size for plan in memory for size in ([None] if plan is None else [plan.total_bytes] * plan.num_banks)]
    passes = plan_passes(banks, banks_bytes)
    return GroupPlan(
        banks_bytes=banks_bytes,
        memory=tuple(memory),
        refit_bytes=tuple(refits),
        num_passes=len(passes),
        total_bytes=shared_bytes + max(sum(banks[place] or 0 for place in of_pass) for of_pass in passes),
    )


def reading_of(candidate: Candidate, source: TokenSource) -> Reading:
    """What a candidate reads of a source's rows.

    Raises:
        SettingError: the tokens are not as its head wants them.
    """
    head = candidate.head
    flat = HEADS[head.kind].flat
    if not has_blocks(source) and len(source.token_shape) != (1 if flat else 2):
        raise SettingError(
            where=f"tokens of a {head.kind} head",
            expected=f"token_shape {'(F,)' if flat else '(T, D)'}",
            got=str(source.token_shape),
            todo="Concatenate tokens for linear heads, stack them for all others.",
        )
    return Reading(blocks_of(source), candidate.blocks, flat=flat)
