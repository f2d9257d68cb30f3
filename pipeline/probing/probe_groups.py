"""Groups of probes that train together: probes of one protocol that change nothing for each other.

Probes share a group where the tokens of all of them stay in memory, or all of them are streamed in the same order, and each is
trained in the same banks and chunks as it would be alone; then each gives the same bits as alone (on the CPU). A store that is
streamed is then read once for all of them. Where memory is so short that a group would need more passes, and so read more tokens
than its probes would one by one, they train alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch

from layerbank.probes import Candidate, MemoryPlan, SettingError, TokenSource, TrainingProtocol, plan_choice

from ..events import OnEvent, UploadFailed
from ..memory import shortage_of
from .probe_sizes import head_of, token_shape
from .probe_spec import ProbeSpec
from .tokens.placement import Placement, place_tokens
from .tokens.split_tokens import SplitTokens
from .tokens.token_source import CachedTokens, block_names


@dataclass(frozen=True, kw_only=True, eq=False)
class ProbeGroup:
    """Probes that train together.

    Attributes:
        cache: the tokens of the training split.
        probes: by name.
        protocol: the protocol of all of them.
        tokens: tokens of the training split, with the blocks of all.
        sweeps: the candidates of each probe, as `layerbank.probes.run_sweeps` takes them.
        placement: where the tokens lie, and how training fits beside them.
        num_test: test images.
    """

    cache: SplitTokens
    probes: tuple[ProbeSpec, ...]
    protocol: TrainingProtocol
    tokens: CachedTokens
    sweeps: tuple[tuple[Candidate, ...], ...]
    placement: Placement
    num_test: int

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(named.name for named in self.probes)

    @property
    def candidates(self) -> list[Candidate]:
        """The candidates of all sweeps, each once."""
        return list(dict.fromkeys(chain.from_iterable(self.sweeps)))

    @property
    def read_bytes(self) -> int:
        """Bytes an image that one epoch of all passes reads."""
        return self.placement.plan.num_passes * self.tokens.stored_row_bytes

    def memory_of(self, candidate: Candidate) -> MemoryPlan:
        """The memory plan of a candidate."""
        return self.placement.plan.heads[candidate].memory

    def describe(self, candidate: Candidate) -> dict[str, Any]:
        """Return everything that could change the bits of a candidate: see `Placement.describe`."""
        return self.placement.describe(self.memory_of(candidate))

    def describe_choice(self, candidate: Candidate) -> dict[str, Any]:
        """Do the same for a head on some of these tokens that is trained alone, with one setting."""
        memory = plan_choice(candidate, self.tokens, self.protocol, self.placement.training_bytes)
        return self.placement.describe(memory)


def plan_groups(
    cache: SplitTokens,
    wanted: Sequence[tuple[ProbeSpec, TrainingProtocol]],
    memory_bytes: int,
    device: torch.device,
    *,
    num_test: int = 0,
    refuse: Callable[[ProbeSpec, SettingError], None] | None = None,
) -> Iterator[ProbeGroup]:
    """Yield groups one after the other: each protocol's probes in their own order.

    Args:
        cache: the tokens of the training split, with the levels and kinds of all.
        wanted: probes that are trained, not solved, and the protocol of each.
        memory_bytes: what tokens and, unless there is a GPU, training may take of the host's memory.
        device: where probes are trained.
        num_test: test images, whose outputs are kept until the probes of a group are written.
        refuse: called with a probe that fits no group, and the error; None raises the error.

    Raises:
        SettingError: not even one probe at a time fits into the memory.
    """
    for protocol in dict.fromkeys(protocol for _, protocol in wanted):
        group: ProbeGroup | None = None
        for named in (named for named, own in wanted if own == protocol):
            try:
                alone = make_group(cache, [named], protocol, memory_bytes, device, num_test=num_test)
            except SettingError as error:
                if refuse is None:
                    raise
                refuse(named, error)
                continue
            larger = _join(group, alone) if group else None
            if group and not larger:
                yield group
            group = larger or alone
        if group:
            yield group


def make_group(
    cache: SplitTokens,
    probes: Sequence[ProbeSpec],
    protocol: TrainingProtocol,
    memory_bytes: int,
    device: torch.device,
    *,
    num_test: int = 0,
    buffer_rows: int | None = None,
) -> ProbeGroup:
    """Make one group of these probes, whatever that costs; `buffer_rows` as in `place_tokens`, the rest as in `plan_groups`."""
    tokens = CachedTokens(cache, [one for named in probes for one in named.family])
    sweeps = tuple(candidates_of(cache, named) for named in probes)
    each = list(dict.fromkeys(chain.from_iterable(sweeps)))
    num_tested = num_test * len(sweeps)
    placement = place_tokens(
        tokens, each, protocol, memory_bytes, device, num_tested=num_tested, buffer_rows=buffer_rows
    )
    return ProbeGroup(
        cache=cache,
        probes=tuple(probes),
        protocol=protocol,
        tokens=tokens,
        sweeps=sweeps,
        placement=placement,
        num_test=num_test,
    )


def candidates_of(cache: SplitTokens, named: ProbeSpec) -> tuple[Candidate, ...]:
    """Return the candidates of a probe: itself, or the family that its name stands for."""

    def row_shape(level: str, kind: str) -> tuple[int, ...]:
        return cache.arrays[level, kind].row_shape

    return tuple(
        Candidate(head=head_of(one, token_shape(one, row_shape)[0]), blocks=block_names(one)) for one in named.family
    )


def _join(group: ProbeGroup, alone: ProbeGroup) -> ProbeGroup | None:
    """A group with one probe more; None where that would change something for one of them."""
    placed = group.placement
    try:
        larger = make_group(
            group.cache,
            [*group.probes, *alone.probes],
            group.protocol,
            placed.memory_bytes,
            placed.device,
            num_test=group.num_test,
            buffer_rows=placed.buffer_rows,
        )
    except SettingError:  # beside so many tokens not one probe is trained at a time
        return None
    if larger.placement.host_bytes > placed.memory_bytes or larger.read_bytes > group.read_bytes + alone.read_bytes:
        return None
    unchanged = all(
        larger.describe(candidate) == before.describe(candidate)
        for before in (group, alone)
        for candidate in before.candidates
    )
    return larger if unchanged else None


def open_group(group: ProbeGroup, on_event: OnEvent) -> tuple[ProbeGroup, TokenSource]:
    """Open the tokens of a group, and stream them if the memory that was free when it was planned is taken by now.

    Returns:
        The group, with another placement in that case, and its tokens.

    Raises:
        SettingError: in the memory that is left, not even one probe at a time fits.
    """
    try:
        return group, group.placement.open(group.tokens)
    except (MemoryError, RuntimeError) as error:
        reason = shortage_of(error)
        if reason is None or group.placement.tokens == "streamed":
            raise
    # outside of the handler, whose traceback holds the tokens that were read already
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    on_event(UploadFailed(probes=group.names, tokens_bytes=group.tokens.stored_bytes, reason=reason))
    before = group.placement
    placement = place_tokens(
        group.tokens,
        group.candidates,
        group.protocol,
        before.memory_bytes,
        before.device,
        num_tested=group.num_test * len(group.sweeps),
        may_stay=False,
    )
    return replace(group, placement=placement), placement.open(group.tokens)
