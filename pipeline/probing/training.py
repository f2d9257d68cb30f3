"""From a ride, or a probe that is solved, to what it found: opens the test store last, and passes on progress."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from numpy.typing import NDArray

from layerbank.cache import TokenCache
from layerbank.probes import Candidate, Journal, Progress, SweepResult, TrainingProtocol, run_solvers, run_sweeps

from ..events import MemoryPlanned, OnEvent, ProbeProgress, ProbeStarted, TrainingStarted
from .probe_groups import ProbeGroup, open_group
from .probe_sizes import head_of
from .probe_spec import ProbeSpec
from .tokens.placement import FEWEST_BUFFER_ROWS
from .tokens.streaming import StreamedTokens
from .tokens.token_source import CachedTokens


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """What was found for one probe.

    Attributes:
        named: as it was asked for.
        candidate: what was chosen: itself, or one of its family.
        result: of the sweep.
        protocol: by which.
        memory: where tokens lay and how training fitted beside them: everything that could change the result's bits.
        together_with: names of the probes that shared the passes.
        num_refits: final trainings.
        derived: how it was made of another probe, for its row.
        held_out: what a search chose by, for a file beside it: name -> array.
    """

    named: ProbeSpec
    candidate: ProbeSpec
    result: SweepResult
    protocol: TrainingProtocol
    memory: dict[str, Any]
    together_with: tuple[str, ...]
    num_refits: int = 1
    derived: dict[str, Any] | None = None
    held_out: Mapping[str, NDArray[Any]] = field(default_factory=dict)


def train_group(
    group: ProbeGroup,
    open_test: Callable[[], TokenCache],
    device: torch.device,
    journal_of: Callable[[ProbeGroup], Journal | None],
    on_event: OnEvent,
) -> list[Trained]:
    """Train the probes of a ride together, and test them.

    Args:
        ride: which probes, on which tokens.
        open_test: opens the test store; called once, after the last training step.
        device: where probes are trained.
        journal_of: of finished banks, of the ride as it is in the end.
        emit: told what happens.
    """
    names = tuple(named.name for named in group.probes)
    num_settings = []
    for named, sweep in zip(group.probes, group.sweeps, strict=True):
        num_settings.append(sum(len(group.protocol.settings(one.head)) for one in sweep))
        shapes = {CachedTokens(group.cache, one).token_shape for one in named.family}
        on_event(
            ProbeStarted(
                probe=named.name,
                num_settings=num_settings[-1],
                num_rows=len(group.tokens.labels),
                token_shape=shapes.pop() if len(shapes) == 1 else group.tokens.token_shape,
            )
        )
        _tell_plan(named, group, sweep[0], on_event)
    planned = group
    group, source = open_group(group, on_event)
    if group is not planned:
        for named, sweep in zip(group.probes, group.sweeps, strict=True):
            _tell_plan(named, group, sweep[0], on_event)
    on_event(TrainingStarted(probes=names, num_settings=sum(num_settings), num_passes=group.placement.plan.num_passes))

    results = run_sweeps(
        group.sweeps,
        source,
        lambda: open_tokens(open_test(), group.probes, device),
        group.protocol,
        memory_bytes=group.placement.training_bytes,
        device=device,
        journal=journal_of(group),
        on_event=relay(names, on_event),
    )
    return [
        Trained(
            named=named,
            candidate=named.family[result.candidate],
            result=result,
            protocol=group.protocol,
            memory=group.describe(sweep[result.candidate]),
            together_with=tuple(other for other in names if other != named.name),
        )
        for named, sweep, result in zip(group.probes, group.sweeps, results, strict=True)
    ]


def open_tokens(test: TokenCache, probes: Sequence[ProbeSpec], device: torch.device) -> StreamedTokens:
    """The test images, with what the probes of a ride read of them."""
    tokens = CachedTokens(test, [one for named in probes for one in named.family])
    return StreamedTokens(tokens, buffer_rows=FEWEST_BUFFER_ROWS, pin=device.type == "cuda")


def solve_probe(
    named: ProbeSpec,
    protocol: TrainingProtocol,
    cache: TokenCache,
    open_test: Callable[[], TokenCache],
    on_event: OnEvent,
) -> Trained:
    """Solve one probe in closed form, by L-BFGS or by its neighbours, or the best of a family, and test it."""
    candidates = [CachedTokens(cache, one) for one in named.family]
    head = head_of(named, candidates[0].token_shape[0])
    num_settings = len(candidates) * len(protocol.solved_settings(head))
    on_event(
        ProbeStarted(
            probe=named.name,
            num_settings=num_settings,
            num_rows=len(candidates[0].labels),
            token_shape=max(one.token_shape for one in candidates),
        )
    )
    on_event(TrainingStarted(probes=(named.name,), num_settings=num_settings, num_passes=1))

    def open_alone(candidate: int) -> StreamedTokens:
        return StreamedTokens(CachedTokens(open_test(), named.family[candidate]), buffer_rows=FEWEST_BUFFER_ROWS)

    result = run_solvers(
        head, [one.in_memory for one in candidates], open_alone, protocol, on_event=relay((named.name,), on_event)
    )
    return Trained(
        named=named,
        candidate=named.family[result.candidate],
        result=result,
        protocol=protocol,
        memory={"tokens": "resident"},
        together_with=(),
    )


def _tell_plan(named: ProbeSpec, group: ProbeGroup, candidate: Candidate, on_event: OnEvent) -> None:
    plan = group.memory_of(candidate)
    on_event(
        MemoryPlanned(
            probe=named.name,
            budget_bytes=group.placement.budget_bytes,
            planned_bytes=group.placement.planned_bytes,
            tokens=group.placement.tokens,
            on_gpu=group.placement.device.type == "cuda",
            tokens_bytes=group.tokens.stored_bytes,
            num_banks=plan.num_banks,
            probes_at_once=plan.probes_at_once,
            group_size=plan.group_size,
            chunk_size=plan.chunk_size,
        )
    )


def relay(names: tuple[str, ...], on_event: OnEvent) -> Callable[[Progress], None]:
    """Progress of a training as events of the probes that train."""

    def show(event: Progress) -> None:
        on_event(
            ProbeProgress(
                probes=names,
                phase=event.phase,
                step=event.step,
                num_steps=event.num_steps,
                num_probes=event.num_probes,
                probe_steps_per_s=event.probe_steps_per_s,
                best=event.best,
            )
        )

    return show
