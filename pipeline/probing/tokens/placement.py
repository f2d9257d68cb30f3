"""Where the tokens of probes that train together lie: in the memory they are trained in if they fit, else streamed.

Resident tokens keep their storage dtype (`resident.py`). The buffer of streamed tokens is a power of two of rows, the same for all
probes but those of very large rows: so the order in which a store is read depends neither on a little memory more or less nor on
what is read of a row, and probes of different tokens can share a pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from layerbank.probes import (
    HEADS,
    Candidate,
    GroupPlan,
    Head,
    MemoryPlan,
    SettingError,
    TokenSource,
    TrainingProtocol,
    plan_group,
)
from layerbank.probes.heads.features import PART_ROWS, features_bytes

from ...memory import anonymous_memory_bytes, free_device_bytes
from .resident import ResidentTokens
from .streaming import StreamedTokens, stream_bytes
from .token_source import CachedTokens

FEWEST_BUFFER_ROWS = 1 << 8
MOST_BUFFER_ROWS = 1 << 13  # four of the largest batches; 302 MB of 24 tokens of 768 channels in float16
USUAL_ROW_BYTES = 1 << 16  # smaller rows get the buffer of a row of this size
EVALUATION_ROWS = 256  # rows a batch where nothing is trained


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where tokens lie, and how training fits beside them.

    Attributes:
        tokens: "resident" or "streamed".
        device: where probes are trained, and resident tokens lie.
        buffer_rows: rows of the store that are shuffled together where tokens are streamed; 0 where they are resident.
        host_bytes: an upper bound of what tokens and their buffers take of the host's memory.
        memory_bytes: bytes that they may take of it.
        budget_bytes: bytes of the memory that probes are trained in.
        training_bytes: the part of it that training may take.
        planned_bytes: an upper bound of what is taken of it, training left out where it is not planned.
        plan: the memory plan of the training.
    """

    tokens: str
    device: torch.device
    buffer_rows: int
    host_bytes: int
    memory_bytes: int
    budget_bytes: int
    training_bytes: int
    planned_bytes: int
    plan: GroupPlan

    @property
    def spare_bytes(self) -> int:
        """The part of the budget that nothing is planned to take."""
        return self.budget_bytes - self.planned_bytes

    def open(self, tokens: CachedTokens) -> TokenSource:
        """The tokens as placed; reads all of them if they are to be resident.

        Raises:
            MemoryError, RuntimeError: the memory that was free when this was planned is taken.
        """
        if self.tokens == "resident":
            return ResidentTokens(tokens, self.device)
        return StreamedTokens(tokens, buffer_rows=self.buffer_rows, device=self.device)

    def describe(self, memory: MemoryPlan) -> dict[str, Any]:
        """Return what a row of results keeps of it and of the memory of its probe: all that could change the result's bits."""
        plan = asdict(memory)
        described = {"tokens": self.tokens} | {name: plan[name] for name in plan if not name.endswith("_bytes")}
        # with the seed, the buffer decides the order
        return described | ({"buffer_rows": self.buffer_rows} if self.tokens == "streamed" else {})


def place_tokens(
    tokens: CachedTokens,
    candidates: Sequence[Candidate],
    protocol: TrainingProtocol,
    memory_bytes: int,
    device: torch.device,
    *,
    num_tested: int = 0,
    buffer_rows: int | None = None,
    may_stay: bool = True,
) -> Placement:
    """Place the training tokens of probes that train together.

    Args:
        tokens: tokens of the training split.
        candidates, protocol: what is trained, each once.
        memory_bytes: what tokens and, unless there is a GPU, training may take of the host's memory.
        device: where probes are trained.
        num_tested: test images, counted once for each probe.
        buffer_rows: in which streamed tokens must be shuffled; None takes what the memory allows.
        may_stay: whether tokens that fit become resident.

    Raises:
        SettingError: not even one probe at a time fits.
    """
    on_gpu = device.type == "cuda"
    budget_bytes = free_device_bytes(device) if on_gpu else memory_bytes
    # the outputs on the test images lie in the host's memory
    whole = plan_group(candidates, tokens, protocol, None, num_tested=0 if on_gpu else num_tested, on_gpu=on_gpu)
    # the test tokens are streamed in any case: each is read once
    beside_bytes = stream_bytes(tokens, EVALUATION_ROWS, 0)
    held_bytes = tokens.stored_bytes + (whole.batch_size * tokens.stored_row_bytes if on_gpu else beside_bytes)

    def hold(budget_bytes: int) -> tuple[int, int, int]:
        """Rows of the buffer, 0 for resident tokens, and what tokens take of the host's memory and of a budget."""
        if may_stay and (held_bytes + whole.total_bytes <= budget_bytes or 2 * held_bytes <= budget_bytes):
            return 0, beside_bytes if on_gpu else held_bytes, held_bytes
        of_host = memory_bytes if on_gpu else budget_bytes
        fixed_bytes = stream_bytes(tokens, max(whole.batch_size, EVALUATION_ROWS), 0)
        rows = buffer_rows or _buffer_rows(of_host - fixed_bytes, of_host, tokens.stored_row_bytes)
        host_bytes = fixed_bytes + 2 * rows * tokens.stored_row_bytes
        return rows, host_bytes, 0 if on_gpu else host_bytes

    held_rows, host_bytes, taken_bytes = hold(budget_bytes)
    if (training_bytes := budget_bytes - taken_bytes) < whole.least_bytes:
        if on_gpu:
            raise _refusal_of_gpu(tokens, device, training_bytes, whole.least_bytes)
        raise _refusal(tokens, budget_bytes, whole.least_bytes, lambda budget: hold(budget)[2])
    plan = whole.within(training_bytes)
    return Placement(
        tokens="streamed" if held_rows else "resident",
        device=device,
        buffer_rows=held_rows,
        host_bytes=host_bytes,
        memory_bytes=memory_bytes,
        budget_bytes=budget_bytes,
        training_bytes=training_bytes,
        planned_bytes=taken_bytes + plan.total_bytes,
        plan=plan,
    )


@dataclass(frozen=True, kw_only=True)
class SolverPlacement:
    """Where the tokens of a solved probe lie, and what its solver takes beside them.

    Attributes:
        is_held: whether its features are kept in memory.
        solver_bytes: what features and solver may take.
        planned_bytes: an upper bound of what is taken.
    """

    is_held: bool
    solver_bytes: int
    planned_bytes: int


def place_features(tokens: CachedTokens, head: Head, num_settings: int, memory_bytes: int) -> SolverPlacement:
    """Place the training tokens of a solved probe.

    Args:
        tokens: tokens of the training split.
        head: a solved head.
        num_settings: of its grid.
        memory_bytes: what all may take of the host's memory.

    Raises:
        SettingError: the solver takes more, though it holds no features.
    """
    read_bytes = 2 * stream_bytes(tokens, max(PART_ROWS, EVALUATION_ROWS), 0)  # two parts of the rows are multiplied
    num_rows, num_features = len(tokens.targets), tokens.token_shape[0]
    needed_bytes = HEADS[head.kind].solver_bytes(num_rows, num_features, tokens.task.num_outputs, num_settings)
    if memory_bytes < read_bytes + needed_bytes:
        raise _refusal(tokens, memory_bytes, needed_bytes, lambda budget: read_bytes)
    held_bytes = features_bytes(num_rows, num_features)
    is_held = read_bytes + needed_bytes + held_bytes <= memory_bytes
    return SolverPlacement(
        is_held=is_held,
        solver_bytes=memory_bytes - read_bytes,
        planned_bytes=read_bytes + needed_bytes + is_held * held_bytes,
    )


def _refusal_of_gpu(tokens: CachedTokens, device: torch.device, given_bytes: int, needed_bytes: int) -> SettingError:
    """The error for a GPU whose free memory is too small for one probe at a time."""
    sizes = {"needed": f"{math.ceil(needed_bytes / 1e6):,} MB", "given": f"{given_bytes / 1e6:,.0f} MB"}
    return SettingError("probing.too_little_gpu_memory", **sizes, device=device, token_shape=tokens.token_shape)


def _refusal(
    tokens: CachedTokens, budget_bytes: int, training_bytes: int, taken_of: Callable[[int], int]
) -> SettingError:
    """The error for a budget that is too small, with the one that is enough; both as memory of the whole program.

    Args:
        tokens: tokens of the training split.
        budget_bytes: the budget.
        training_bytes: what training one probe at a time takes.
        taken_of: what tokens take of a budget; a larger one may be given a larger buffer.
    """
    used_bytes = anonymous_memory_bytes()
    enough_bytes = budget_bytes
    while enough_bytes < (needed_bytes := taken_of(enough_bytes) + training_bytes):
        enough_bytes = needed_bytes
    return SettingError(
        "probing.too_little_memory",
        needed=f"{math.ceil((enough_bytes + used_bytes) / 1e6):,} MB",
        given=f"{(budget_bytes + used_bytes) / 1e6:,.0f} MB",
        used=f"{used_bytes / 1e6:,.0f} MB",
        training=f"{training_bytes / 1e6:,.0f} MB",
        token_shape=tokens.token_shape,
    )


def _buffer_rows(left_bytes: int, memory_bytes: int, row_bytes: int) -> int:
    """Rows of a shuffle buffer: the largest power of two, within limits, that both of two budgets allow.

    Rows of USUAL_ROW_BYTES may take a quarter of all memory. These rows may take a quarter of what is left.

    >>> _buffer_rows(5 << 28, 6 << 28, 1500), _buffer_rows(5 << 28, 6 << 28, 36_864), _buffer_rows(5 << 28, 6 << 28, 302_592)
    (4096, 4096, 1024)
    """
    wished = min(memory_bytes // 4 // USUAL_ROW_BYTES, left_bytes // 4 // row_bytes)
    return min(max(1 << max(wished, 1).bit_length() - 1, FEWEST_BUFFER_ROWS), MOST_BUFFER_ROWS)
