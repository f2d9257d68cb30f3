"""Where a probe's tokens lie while it is trained: all of them in memory if they fit the budget beside the training, else streamed.

The buffer of streamed tokens is a power of two and at most 1 GiB, so that the order in which a store is read
does not hang on how much memory happens to be free.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from probes import PLANNED_KINDS, Head, MemoryPlan, TokenSource, TrainingProtocol, plan_memory, sizes_of

from .memory import free_device_bytes
from .streaming import StreamedTokens, stream_bytes
from .token_source import CachedTokens

LARGEST_BUFFER_BYTES = 1 << 30
SMALLEST_BUFFER_BYTES = 1 << 20
EVALUATION_ROWS = 256  # rows a batch where nothing is trained


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What was decided.

    Attributes:
        tokens: "resident" or "streamed".
        buffer_bytes: of the store that are shuffled together where tokens are streamed.
        budget_bytes: of the memory that probes are trained in.
        planned_bytes: an upper bound of what is taken of it, training left out where it is not planned.
        plan: of the training; None for heads that are not planned.
        pin: whether batches go to a GPU.
    """

    tokens: str
    buffer_bytes: int
    budget_bytes: int
    planned_bytes: int
    plan: MemoryPlan | None
    pin: bool

    def open(self, tokens: CachedTokens) -> TokenSource:
        """The tokens as decided; reads all of them if they are to be resident."""
        if self.tokens == "resident":
            return tokens.in_memory()
        return StreamedTokens(tokens, buffer_bytes=self.buffer_bytes, pin=self.pin)

    def describe(self) -> dict[str, Any]:
        """What a row of results keeps of it: everything that could change the result's bits."""
        described = {"tokens": self.tokens} | {
            name: value
            for name, value in (asdict(self.plan) if self.plan else {}).items()
            if not name.endswith("_bytes")
        }
        if self.tokens == "streamed":
            described["buffer_bytes"] = self.buffer_bytes  # with the seed, it decides the order
        return described


def place_tokens(
    tokens: CachedTokens, head: Head, protocol: TrainingProtocol, memory_bytes: int, device: torch.device
) -> Placement:
    """Decide, for the training tokens of one probe.

    Args:
        tokens: of the training split.
        head, protocol: what is trained.
        memory_bytes: what tokens and, unless there is a GPU, training may take of the host's memory.
        device: where probes are trained.

    Raises:
        SettingError: not even one probe at a time fits.
    """
    sizes = sizes_of(head, tokens.token_shape, tokens.num_classes, len(tokens.labels), protocol)
    on_gpu = device.type == "cuda"
    is_planned = head.kind in PLANNED_KINDS
    whole_bytes = 0 if on_gpu or not is_planned else plan_memory(sizes).total_bytes
    # the test tokens are streamed in any case: each is read once
    beside_bytes = stream_bytes(tokens, EVALUATION_ROWS, 0)
    resident_bytes = tokens.size_bytes() + beside_bytes
    if resident_bytes + whole_bytes <= memory_bytes or 2 * resident_bytes <= memory_bytes:
        where, host_bytes, buffer_bytes = "resident", resident_bytes, SMALLEST_BUFFER_BYTES
    else:
        fixed_bytes = stream_bytes(tokens, max(sizes.batch_size, EVALUATION_ROWS), 0)
        buffer_bytes = _buffer_bytes((memory_bytes - fixed_bytes) // 8)
        where, host_bytes = "streamed", fixed_bytes + 2 * buffer_bytes
    budget_bytes = free_device_bytes(device) if on_gpu else memory_bytes
    taken_bytes = 0 if on_gpu else host_bytes
    plan = plan_memory(sizes, max(budget_bytes - taken_bytes, 0)) if is_planned else None
    return Placement(
        tokens=where,
        buffer_bytes=buffer_bytes,
        budget_bytes=budget_bytes,
        planned_bytes=taken_bytes + (plan.total_bytes if plan else 0),
        plan=plan,
        pin=on_gpu,
    )


def _buffer_bytes(wished: int) -> int:
    """The largest power of two that is no more, within limits.

    >>> _buffer_bytes(5 << 20) >> 20, _buffer_bytes(10 << 30) >> 20, _buffer_bytes(-1) >> 20
    (4, 1024, 1)
    """
    return min(max(1 << max(wished, 1).bit_length() - 1, SMALLEST_BUFFER_BYTES), LARGEST_BUFFER_BYTES)
