"""How long the probes of a study would train on this machine: steps of each head are timed, the rest is arithmetic.

The decisions taken here: every head and shape of tokens is timed once, at the fewest and the most classes there are, and what lies
between is on a line; trainings are counted as the protocol does them, one after the other, settings that are the same bits once.
Not in it: scoring and testing (a few percent), tokens that do not fit the memory, and what is solved. So it is a forecast: read it
as hours or days, not as minutes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from layerbank.probes import (
    HEADS,
    Head,
    StepCost,
    TrainingProtocol,
    first_duplicates,
    measure_step,
    plan_batches,
    resolve_compute,
)

from ..probing.probe_sizes import RowShape, head_of, token_shape
from ..probing.probe_spec import ProbeSpec, SmallestLevels, TopSettings


class TrainingForecast:
    """Times heads when they are asked for, each once.

    Args:
        num_classes: of the data sets of a study.
        device: where probes would be trained.
    """

    def __init__(self, num_classes: Iterable[int], device: str) -> None:
        known = sorted(set(num_classes)) or [10]
        self._classes = tuple(dict.fromkeys((known[0], known[-1])))
        self._device = torch.device(device)
        self._costs: dict[tuple[Head, tuple[int, ...], int], StepCost] = {}

    def seconds(
        self,
        probes: Sequence[ProbeSpec],
        row_shape: RowShape,
        protocol: TrainingProtocol,
        *,
        num_images: int,
        num_classes: int,
    ) -> float:
        """Of one seed of some probes on one data set.

        Args:
            probes: each once, with what it is made of.
            row_shape: of the backbone.
            protocol: before what a probe changes of it.
            num_images: to train on.
            num_classes: C.
        """
        return sum(
            self._of_probe(named, row_shape, protocol, num_images, num_classes)
            for named in probes
            if not HEADS[named.head].is_solved
        )

    def _of_probe(
        self, named: ProbeSpec, row_shape: RowShape, protocol: TrainingProtocol, num_images: int, num_classes: int
    ) -> float:
        changed = replace(
            protocol,
            **named.protocol,  # type: ignore[arg-type]  # checked by TrainingProtocol
            compute=resolve_compute(protocol.compute, self._device),
        )
        num_kept = max(round((1 - changed.validation_fraction) * num_images), 2)
        kept, everything = (
            plan_batches(count, wish=changed.batch_size, epochs=changed.epochs, min_steps=changed.min_steps)
            for count in (num_kept, max(num_images, 2))
        )

        def train(one: ProbeSpec, num_selected: int, num_refits: int) -> float:
            shape = token_shape(one, row_shape)
            head = head_of(one, shape[0])
            selected, refits = (
                plan.num_steps * self._step_s(head, shape, num_classes, changed, count, plan.batch_size)
                for plan, count in ((kept, num_selected), (everything, num_refits))
            )
            return selected + refits

        def grid(one: ProbeSpec) -> int:
            return num_trained(head_of(one, token_shape(one, row_shape)[0]), changed)

        match named.derived:
            case SmallestLevels():
                # half of the levels on average
                half = replace(
                    named, levels=named.levels[: max(len(named.levels) // 2, 1)], num_heads=_heads(named, row_shape)
                )
                return train(half, len(named.levels) * (len(named.levels) + 1) // 2, 1)
            case TopSettings(num_members=num_members):
                count = min(num_members, grid(named))
                return train(named, count, count)
            case _:
                candidates = [train(one, grid(one), 0) for one in named.family]
                return sum(candidates) + train(named.family[-1], 0, 1)

    def _step_s(
        self,
        head: Head,
        shape: tuple[int, ...],
        num_classes: int,
        protocol: TrainingProtocol,
        num_probes: int,
        num_images: int,
    ) -> float:
        if not num_probes:
            return 0.0
        ends = [self._cost(head, shape, count, protocol).seconds(num_probes, num_images) for count in self._classes]
        if len(ends) == 1:
            return ends[0]
        few, many = self._classes
        return ends[0] + (ends[1] - ends[0]) * (num_classes - few) / (many - few)

    def _cost(self, head: Head, shape: tuple[int, ...], num_classes: int, protocol: TrainingProtocol) -> StepCost:
        key = (head, shape, num_classes)
        if key not in self._costs:
            self._costs[key] = measure_step(head, shape, num_classes, protocol, device=self._device)
        return self._costs[key]


def num_trained(head: Head, protocol: TrainingProtocol) -> int:
    """How many settings of a head's grid are trained: those that are not the same bits as another."""
    return len(set(first_duplicates(protocol.settings(head))))


def _heads(named: ProbeSpec, row_shape: RowShape) -> int | None:
    """As many as the probe on all levels has."""
    return head_of(named, token_shape(named, row_shape)[0]).num_heads or None
