"""The parts of a training around its sweeps: what is reported, which tokens are opened, what a probe keeps; and solved probes."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from numpy.typing import NDArray

from layerbank.probes import (
    Candidate,
    Progress,
    SweepResult,
    TokenSource,
    TrainingProtocol,
    first_duplicates,
    run_solvers,
)

from ..events import MemoryPlanned, OnEvent, ProbeProgress, ProbeStarted, TrainingStarted
from .probe_groups import ProbeGroup, open_group
from .probe_sizes import head_of
from .probe_spec import ProbeSpec
from .tokens.placement import FEWEST_BUFFER_ROWS, SolverPlacement, place_features
from .tokens.split_tokens import SplitTokens
from .tokens.streaming import StreamedTokens
from .tokens.token_source import CachedTokens

LARGE_BYTES = 1 << 20
LARGEST_THRESHOLD_BYTES = 32 << 20  # glibc raises its own threshold no further on a 64-bit system
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt in malloc.h


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """The result of one probe.

    Attributes:
        named: the probe as it was requested.
        candidate: what was chosen: itself, or one of its family.
        result: the result of its sweep.
        protocol: the protocol that it was trained by.
        memory: where tokens lay and how training fitted beside them: everything that could change the result's bits.
        num_refits: final trainings.
        derived: how a post-hoc probe was made of its base, for its row.
        held_out: what a search chose by, for a file beside it: name -> array.
    """

    named: ProbeSpec
    candidate: ProbeSpec
    result: SweepResult
    protocol: TrainingProtocol
    memory: dict[str, Any]
    num_refits: int = 1
    derived: dict[str, Any] | None = None
    held_out: Mapping[str, NDArray[Any]] = field(default_factory=dict)


def open_training(group: ProbeGroup, on_event: OnEvent) -> tuple[ProbeGroup, TokenSource]:
    """Report what a group trains, and open its tokens; the group has another placement if they fit the memory no longer."""
    _announce(group, on_event)
    planned, (group, source) = group, open_group(group, on_event)
    if group is not planned:
        _announce(group, on_event, again=True)
    on_event(
        TrainingStarted(
            probes=group.names,
            num_settings=sum(_num_trained(group, sweep) for sweep in group.sweeps),
            num_passes=group.placement.plan.num_passes,
        )
    )
    return group, source


def trained_of(group: ProbeGroup, results: Sequence[SweepResult]) -> list[Trained]:
    """The results of a group's sweeps as those of its probes."""
    return [
        Trained(
            named=named,
            candidate=named.family[result.candidate],
            result=result,
            protocol=group.protocol,
            memory=group.describe(sweep[result.candidate]),
        )
        for named, sweep, result in zip(group.probes, group.sweeps, results, strict=True)
    ]


def _num_trained(group: ProbeGroup, sweep: Sequence[Candidate]) -> int:
    """How many settings are trained; several that train to the same bits are one."""
    return sum(len(set(first_duplicates(group.protocol.settings(one.head)))) for one in sweep)


def _announce(group: ProbeGroup, on_event: OnEvent, *, again: bool = False) -> None:
    """Report what each probe of a group trains, and how it uses the memory; `again`, with a new placement, only the latter."""
    placed = group.placement
    for named, sweep in zip(group.probes, group.sweeps, strict=True):
        if not again:
            shapes = {CachedTokens(group.cache, one).token_shape for one in named.family}
            on_event(
                ProbeStarted(
                    probe=named.name,
                    num_settings=_num_trained(group, sweep),
                    num_rows=len(group.tokens.targets),
                    token_shape=shapes.pop() if len(shapes) == 1 else group.tokens.token_shape,
                )
            )
        plan = group.memory_of(sweep[0])
        on_event(
            MemoryPlanned(
                probe=named.name,
                budget_bytes=placed.budget_bytes,
                planned_bytes=placed.planned_bytes,
                tokens=placed.tokens,
                on_gpu=placed.device.type == "cuda",
                tokens_bytes=group.tokens.stored_bytes,
                num_banks=plan.num_banks,
                probes_at_once=plan.probes_at_once,
                group_size=plan.group_size,
                chunk_size=plan.chunk_size,
            )
        )


def open_tokens(test: SplitTokens, group: ProbeGroup) -> StreamedTokens:
    """The test images, with all that the probes of a group read of them."""
    tokens = CachedTokens(test, [one for named in group.probes for one in named.family])
    return StreamedTokens(tokens, buffer_rows=FEWEST_BUFFER_ROWS, device=group.placement.device)


def solve_probe(
    named: ProbeSpec,
    protocol: TrainingProtocol,
    cache: SplitTokens,
    open_test: Callable[[], SplitTokens],
    memory_bytes: int,
    on_event: OnEvent,
) -> Trained:
    """Solve one probe in closed form, by L-BFGS or by its neighbours, or the best of a family, and test it."""
    candidates = [CachedTokens(cache, one) for one in named.family]
    head = head_of(named, candidates[0].token_shape[0])
    num_penalties = len(protocol.solved_settings(head))
    num_settings = len(candidates) * num_penalties
    placed = [place_features(one, head, num_penalties, memory_bytes) for one in candidates]
    largest = max(range(len(placed)), key=lambda number: placed[number].planned_bytes)
    _announce_solved(named, candidates, placed[largest], candidates[largest], num_settings, memory_bytes, on_event)

    def open_train(candidate: int) -> StreamedTokens:
        return StreamedTokens(candidates[candidate], buffer_rows=FEWEST_BUFFER_ROWS)

    def open_alone(candidate: int) -> StreamedTokens:
        return StreamedTokens(CachedTokens(open_test(), named.family[candidate]), buffer_rows=FEWEST_BUFFER_ROWS)

    with large_blocks_returned(memory_bytes - placed[largest].planned_bytes):
        result = run_solvers(
            head,
            [partial(open_train, number) for number in range(len(candidates))],
            open_alone,
            protocol,
            memory_bytes=min(one.solver_bytes for one in placed),
            on_event=relay((named.name,), on_event),
        )
    return Trained(
        named=named,
        candidate=named.family[result.candidate],
        result=result,
        protocol=protocol,
        memory={},
    )


def _announce_solved(
    named: ProbeSpec,
    candidates: Sequence[CachedTokens],
    placed: SolverPlacement,
    largest: CachedTokens,
    num_settings: int,
    memory_bytes: int,
    on_event: OnEvent,
) -> None:
    """Report what a solved probe tries, and how the candidate with the most tokens uses the memory."""
    on_event(
        ProbeStarted(
            probe=named.name,
            num_settings=num_settings,
            num_rows=len(largest.targets),
            token_shape=max(one.token_shape for one in candidates),
        )
    )
    on_event(
        MemoryPlanned(
            probe=named.name,
            budget_bytes=memory_bytes,
            planned_bytes=placed.planned_bytes,
            tokens="resident" if placed.is_held else "streamed",
            on_gpu=False,
            tokens_bytes=largest.stored_bytes,
            num_banks=0,
            probes_at_once=1,
            group_size=0,
            chunk_size=0,
        )
    )
    on_event(TrainingStarted(probes=(named.name,), num_settings=num_settings, num_passes=1))


def relay(names: tuple[str, ...], on_event: OnEvent, metric: str = "balanced_accuracy") -> Callable[[Progress], None]:
    """Progress of a training as events of the probes that train; `metric` is what settings are chosen by."""
    return lambda event: on_event(
        ProbeProgress(
            probes=names,
            phase=event.phase,
            step=event.step,
            num_steps=event.num_steps,
            num_probes=event.num_probes,
            probe_steps_per_s=event.probe_steps_per_s,
            best=event.best,
            metric=metric,
        )
    )


@contextmanager
def large_blocks_returned(spare_bytes: int) -> Iterator[None]:
    """Within, glibc returns dropped memory blocks of a MiB and more to the system at once, if little memory is to spare.

    glibc maps large blocks and returns them at once, but raises its threshold for large to the largest block ever returned, up to
    32 MiB, and keeps up to twice that at the end of each thread's heap: after a few imports a program of 40 MB of tensors, made and
    dropped, takes 60 (`tests/starved.py`). Mapping memory again and again costs page faults, so the threshold is lowered only where
    that much memory is not to spare. Other C libraries are left alone.
    """
    lowered = spare_bytes < 2 * LARGEST_THRESHOLD_BYTES and _set_malloc_thresholds(LARGE_BYTES)
    try:
        yield
    finally:
        if lowered:
            _set_malloc_thresholds(LARGEST_THRESHOLD_BYTES)  # where glibc's own ends up


def _set_malloc_thresholds(size_bytes: int) -> bool:
    """Set glibc's thresholds and return what was kept so far; False where this is another C library."""
    try:
        library = ctypes.CDLL(None)
        trim, set_option = library.malloc_trim, library.mallopt
    except (AttributeError, OSError, TypeError):  # not glibc; no library of that name, on Windows
        return False
    done = bool(set_option(_MMAP_THRESHOLD, size_bytes)) and bool(set_option(_TRIM_THRESHOLD, 2 * size_bytes))
    trim(0)
    return done
