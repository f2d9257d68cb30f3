"""Where the tokens of probes that train together lie: in memory if they fit the budget beside the training, else streamed.

The buffer of streamed tokens is a power of two and at most 1 GiB, so that the order in which a store is read
does not hang on how much memory happens to be free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from probes import Candidate, MemoryPlan, RidePlan, TokenSource, TrainingProtocol, plan_ride, sizes_of

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
        training_bytes: the part of it that training may take.
        planned_bytes: an upper bound of what is taken of it, training left out where it is not planned.
        plan: of the training.
        pin: whether batches go to a GPU.
    """

    tokens: str
    buffer_bytes: int
    budget_bytes: int
    training_bytes: int
    planned_bytes: int
    plan: RidePlan
    pin: bool

    def open(self, tokens: CachedTokens) -> TokenSource:
        """The tokens as decided; reads all of them if they are to be resident."""
        if self.tokens == "resident":
            return tokens.in_memory()
        return StreamedTokens(tokens, buffer_bytes=self.buffer_bytes, pin=self.pin)

    def describe(self, memory: MemoryPlan | None) -> dict[str, Any]:
        """What a row of results keeps of it and of the memory of its probe: everything that could change the result's bits."""
        described = {"tokens": self.tokens} | {
            name: value for name, value in (asdict(memory) if memory else {}).items() if not name.endswith("_bytes")
        }
        if self.tokens == "streamed":
            described["buffer_bytes"] = self.buffer_bytes  # with the seed, it decides the order
        return described


def place_tokens(
    tokens: CachedTokens,
    candidates: Sequence[Candidate],
    protocol: TrainingProtocol,
    memory_bytes: int,
    device: torch.device,
) -> Placement:
    """Decide, for the training tokens of probes that train together.

    Args:
        tokens: of the training split.
        candidates, protocol: what is trained, each once.
        memory_bytes: what tokens and, unless there is a GPU, training may take of the host's memory.
        device: where probes are trained.

    Raises:
        SettingError: not even one probe at a time fits.
    """
    on_gpu = device.type == "cuda"
    sizes = sizes_of(candidates[0].head, tokens.token_shape, tokens.num_classes, len(tokens.labels), protocol)
    whole_bytes = 0 if on_gpu else plan_ride(candidates, tokens, protocol, None).total_bytes
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
    training_bytes = max(budget_bytes - taken_bytes, 0)
    plan = plan_ride(candidates, tokens, protocol, training_bytes)
    return Placement(
        tokens=where,
        buffer_bytes=buffer_bytes,
        budget_bytes=budget_bytes,
        training_bytes=training_bytes,
        planned_bytes=taken_bytes + plan.total_bytes,
        plan=plan,
        pin=on_gpu,
    )


def _buffer_bytes(wished: int) -> int:
    """The largest power of two that is no more, within limits.

    >>> _buffer_bytes(5 << 20) >> 20, _buffer_bytes(10 << 30) >> 20, _buffer_bytes(-1) >> 20
    (4, 1024, 1)
    """
    return min(max(1 << max(wished, 1).bit_length() - 1, SMALLEST_BUFFER_BYTES), LARGEST_BUFFER_BYTES)
