"""Which probes train together: those of one protocol, as many as change nothing for each other.

Probes ride together where the tokens of all of them stay in memory, or all of them are streamed in the same order, and each is
trained in the same banks, groups and chunks as it would be alone; then every one of them comes out as it would alone, to the last
bit on the CPU. A store that is streamed is then read once for all of them. Where memory is so short that company needs more
passes, and so reads more tokens than everybody would alone, they go alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from layerbank.cache import TokenCache
from layerbank.probes import Candidate, MemoryPlan, SettingError, TokenSource, TrainingProtocol, plan_choice

from ..events import OnEvent, UploadFailed
from ..memory import shortage_of
from .probe_sizes import head_of, token_shape
from .probe_spec import ProbeSpec
from .tokens.placement import Placement, place_tokens
from .tokens.token_rows import block_names
from .tokens.token_source import CachedTokens


@dataclass(frozen=True, kw_only=True, eq=False)
class ProbeGroup:
    """Probes that train together.

    Attributes:
        cache: the train store.
        probes: by name.
        protocol: of all of them.
        tokens: of the training split, the blocks of all.
        sweeps: the candidates of each probe, as `layerbank.probes.run_sweeps` wants them.
        placement: where the tokens lie, and how training fits beside them.
    """

    cache: TokenCache
    probes: tuple[ProbeSpec, ...]
    protocol: TrainingProtocol
    tokens: CachedTokens
    sweeps: tuple[tuple[Candidate, ...], ...]
    placement: Placement

    @property
    def read_bytes(self) -> int:
        """Of each image, what is gathered in an epoch of all passes that train the grids."""
        return self.placement.plan.num_passes * self.tokens.stored_row_bytes

    def memory_of(self, candidate: Candidate) -> MemoryPlan:
        """The memory plan of a candidate."""
        return self.placement.plan.heads[candidate].memory

    def describe(self, candidate: Candidate) -> dict[str, Any]:
        """What could change the bits of a candidate: see `Placement.describe`."""
        return self.placement.describe(self.memory_of(candidate))

    def describe_choice(self, candidate: Candidate) -> dict[str, Any]:
        """The same of a head on some of these tokens that is trained by itself, with one setting."""
        memory = plan_choice(candidate, self.tokens, self.protocol, self.placement.training_bytes)
        return self.placement.describe(memory)


def plan_groups(
    cache: TokenCache,
    wanted: Sequence[tuple[ProbeSpec, TrainingProtocol]],
    memory_bytes: int,
    device: torch.device,
    *,
    refuse: Callable[[ProbeSpec, SettingError], None] | None = None,
) -> Iterator[ProbeGroup]:
    """Rides one after the other: each protocol's probes in their own order.

    Args:
        cache: the train store, which holds the levels and kinds of all.
        wanted: probes that are trained, not solved, and the protocol of each.
        memory_bytes: what tokens and, unless there is a GPU, training may take of the host's memory.
        device: where probes are trained.
        refuse: told of a probe that has no ride, and why; None raises the error.

    Raises:
        SettingError: not even one probe at a time fits into the memory.
    """
    for protocol in dict.fromkeys(protocol for _, protocol in wanted):
        group: ProbeGroup | None = None
        for named in (named for named, own in wanted if own == protocol):
            try:
                alone = group_of_one(cache, named, protocol, memory_bytes, device)
            except SettingError as error:
                if refuse is None:
                    raise
                refuse(named, error)
                continue
            larger = None if group is None else _join(cache, group, alone, memory_bytes, device)
            if group is not None and larger is None:
                yield group
            group = alone if larger is None else larger
        if group is not None:
            yield group


def open_group(group: ProbeGroup, on_event: OnEvent) -> tuple[ProbeGroup, TokenSource]:
    """A ride and its tokens; a ride that streams them where the room is gone that was there when it was planned.

    Raises:
        SettingError: beside what others take, not even one probe at a time fits.
    """
    try:
        return group, group.placement.open(group.tokens)
    except (MemoryError, RuntimeError) as error:
        reason = shortage_of(error)
        if reason is None or group.placement.tokens == "streamed":
            raise
    # outside of the handler, whose traceback holds what was there already
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    on_event(
        UploadFailed(
            probes=tuple(named.name for named in group.probes), tokens_bytes=group.tokens.stored_bytes, reason=reason
        )
    )
    before = group.placement
    placement = place_tokens(
        group.tokens, _each_once(group.sweeps), group.protocol, before.memory_bytes, before.device, may_stay=False
    )
    group = replace(group, placement=placement)
    return group, placement.open(group.tokens)


def group_of_one(
    cache: TokenCache, named: ProbeSpec, protocol: TrainingProtocol, memory_bytes: int, device: torch.device
) -> ProbeGroup:
    """A probe without company; arguments and errors as `plan_groups`."""
    return _make_group(cache, [named], protocol, memory_bytes, device)


def candidates_of(cache: TokenCache, named: ProbeSpec) -> tuple[Candidate, ...]:
    """What a probe chooses among: itself, or the family that its name stands for."""

    def row_shape(level: str, kind: str) -> tuple[int, ...]:
        return cache.arrays[level, kind].row_shape

    return tuple(
        Candidate(head=head_of(one, token_shape(one, row_shape)[0]), blocks=block_names(one)) for one in named.family
    )


def _join(
    cache: TokenCache, group: ProbeGroup, alone: ProbeGroup, memory_bytes: int, device: torch.device
) -> ProbeGroup | None:
    """A ride with one probe more; None where company would change something for someone."""
    probes = [*group.probes, *alone.probes]
    try:
        larger = _make_group(
            cache, probes, group.protocol, memory_bytes, device, buffer_rows=group.placement.buffer_rows
        )
    except SettingError:  # beside so many tokens not one probe is trained at a time
        return None
    if larger.placement.host_bytes > memory_bytes or larger.read_bytes > group.read_bytes + alone.read_bytes:
        return None
    unchanged = all(
        larger.describe(candidate) == before.describe(candidate)
        for before in (group, alone)
        for candidate in _each_once(before.sweeps)
    )
    return larger if unchanged else None


def _make_group(
    cache: TokenCache,
    probes: Sequence[ProbeSpec],
    protocol: TrainingProtocol,
    memory_bytes: int,
    device: torch.device,
    *,
    buffer_rows: int | None = None,
) -> ProbeGroup:
    tokens = CachedTokens(cache, [one for named in probes for one in named.family])
    sweeps = tuple(candidates_of(cache, named) for named in probes)
    placement = place_tokens(tokens, _each_once(sweeps), protocol, memory_bytes, device, buffer_rows=buffer_rows)
    return ProbeGroup(
        cache=cache, probes=tuple(probes), protocol=protocol, tokens=tokens, sweeps=sweeps, placement=placement
    )


def _each_once(sweeps: Sequence[Sequence[Candidate]]) -> list[Candidate]:
    return list(dict.fromkeys(one for sweep in sweeps for one in sweep))
