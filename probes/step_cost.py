"""What an optimiser step costs on this machine: a few are timed, on tokens that mean nothing.

The decisions taken here: a step of P probes on B images is taken to last

    step_s + B row_s + P (probe_s + B image_s)

which is what a step does: something once, gathering and jittering a batch, an optimiser step a probe, and arithmetic a probe and
image. Four timed sizes give the four numbers. A first step also makes moments, gradients and scratch memory, whose pages the system
clears; so a step is the difference of two trainings, one a few steps longer than the other.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch

from .banks.bank import GROUP_SIZE
from .data.token_source import ArraySource
from .fit import fit_banks
from .heads import Head
from .plan import Candidate, plan_group
from .protocol import TrainingProtocol

FEW, MANY = 16, 96  # images of a step
SLOW_S = 0.4  # a step of one probe on FEW images from which on smaller sizes have to do
REPEATS, REPEATED_S, STEPS = 3, 0.1, 2  # a size is timed so often, more often if that is quick, so many steps a time


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """Seconds.

    Attributes:
        step_s: of a step, whatever it trains.
        row_s: of each image of it, whatever it trains.
        probe_s: of each probe of it.
        image_s: of each probe and image.
    """

    step_s: float
    row_s: float
    probe_s: float
    image_s: float

    def seconds(self, num_probes: float, num_images: float) -> float:
        """Of one step.

        >>> StepCost(step_s=1.0, row_s=0.5, probe_s=0.5, image_s=0.25).seconds(2, 4)
        6.0
        """
        return self.step_s + num_images * self.row_s + num_probes * (self.probe_s + num_images * self.image_s)


def measure_step(
    head: Head,
    token_shape: tuple[int, ...],
    num_classes: int,
    protocol: TrainingProtocol,
    *,
    device: torch.device | str = "cpu",
) -> StepCost:
    """Time steps of a head: a second or so, more for very many tokens.

    Args:
        head, token_shape, num_classes: of the probes.
        protocol: jitter, clipping and numbers; its grid only says how many probes a bank has at least.
        device: of the arithmetic.

    Raises:
        SettingError: head and tokens do not fit each other.
    """

    def timed(num_probes: int, num_images: int) -> float:
        return _time_steps(head, token_shape, num_classes, protocol, num_probes, num_images, torch.device(device))

    few, more = (FEW, MANY)
    timed(1, few)  # libraries take their workspace once
    alone = timed(1, few)
    if alone > SLOW_S:
        few, more = few // 4, few
        alone = timed(1, few)
    several = 2 if alone > SLOW_S / GROUP_SIZE else GROUP_SIZE
    of_one, together = timed(1, more) - alone, timed(several, few)
    of_several = timed(several, more) - together  # what the further images cost
    image_s = max((of_several - of_one) / ((several - 1) * (more - few)), 0.0)
    row_s = max(of_several / (more - few) - several * image_s, 0.0)
    probe_s = max((together - alone) / (several - 1) - few * image_s, 0.0)
    return StepCost(
        step_s=max(alone - probe_s - few * (row_s + image_s), 0.0), row_s=row_s, probe_s=probe_s, image_s=image_s
    )


def _time_steps(
    head: Head,
    token_shape: tuple[int, ...],
    num_classes: int,
    protocol: TrainingProtocol,
    num_probes: int,
    num_images: int,
    device: torch.device,
) -> float:
    """Seconds of a step after the first."""
    num_rows = 5 * num_images  # five batches of just that size
    generator = torch.Generator().manual_seed(0)
    row = torch.nn.functional.normalize(torch.randn(1, *token_shape, generator=generator), dim=-1).to(device)
    source = ArraySource(
        row.expand(num_rows, *token_shape), torch.arange(num_rows) % num_classes, num_classes
    )  # one row in memory
    small = replace(
        protocol,
        lrs=tuple(1e-3 + 1e-5 * number for number in range(num_probes)),
        weight_decays=(1e-4,),
        dropouts=protocol.dropouts[:1],
        batch_size=num_images,
    )
    candidate = Candidate(head=head)
    trainable = plan_group([candidate], source, small, None).heads[candidate]
    bank_run = trainable.make_run(small.settings(head), device, {})

    def train(num_steps: int) -> float:
        began_s = time.perf_counter()
        fit_banks([bank_run], source, torch.arange(num_rows), small, max_steps=num_steps)
        return time.perf_counter() - began_s

    short_s = long_s = float("inf")
    began_s, repeat = time.perf_counter(), 0
    while repeat < REPEATS or time.perf_counter() - began_s < REPEATED_S:
        short_s, long_s = min(short_s, train(1)), min(long_s, train(1 + STEPS))
        repeat += 1
    # on a machine that others load a longer training may be the quicker one
    return (long_s - short_s) / STEPS if long_s > short_s else long_s / (1 + STEPS)
