"""Noise on the tokens of some samples of a batch, while training.

Every level and kind has noise of its own, a function of (seed, step, name), and so has the padding of narrow tokens. So what
a head trains on does not depend on what else its source holds, nor on who trains beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..protocol import TrainingProtocol
from ..seeds import make_generator
from ..workspace import Workspace
from .blocks import Block, columns_of, whole_row
from .token_source import upload


@dataclass(frozen=True, kw_only=True, eq=False)
class Jitter:
    """The noise of one step.

    Attributes:
        chosen: [n] int64, the samples of the batch that are jittered: the same for every block.
        std: standard deviation of the noise.
        seed, purpose, step: with a name, what the noise is a function of.
        workspace: memory for one block's noise.
    """

    chosen: Tensor
    std: float
    seed: int
    purpose: str
    step: int
    workspace: Workspace

    def add_to(self, values: Tensor, name: str) -> None:
        """Add noise in place to every element [B, ...] of the chosen samples."""
        generator = make_generator(self.seed, f"{self.purpose} of {name}", self.step, device=values.device)
        noise = self.workspace.empty("jitter", len(self.chosen), *values.shape[1:]).normal_(generator=generator)
        values.index_add_(0, self.chosen, noise.to(values.dtype), alpha=self.std)


def draw_jitter(
    protocol: TrainingProtocol, step: int, num_samples: int, workspace: Workspace, *, purpose: str = "jitter"
) -> Jitter | None:
    """The jitter of a batch of `num_samples`, where the workspace lies; None where the protocol has none."""
    if protocol.jitter_std == 0 or protocol.jitter_probability == 0:
        return None
    coin = torch.rand(num_samples, generator=make_generator(protocol.seed, f"{purpose} coin", step))
    chosen = upload((coin < protocol.jitter_probability).nonzero().squeeze(1), workspace.device)
    return Jitter(
        chosen=chosen, std=protocol.jitter_std, seed=protocol.seed, purpose=purpose, step=step, workspace=workspace
    )


def jitter_blocks(jitter: Jitter, rows: Tensor, blocks: Sequence[Block]) -> None:
    """Jitter every block of rows [B, F] in place."""
    for name, columns in columns_of(blocks).items():
        jitter.add_to(rows[:, columns], name)


def add_jitter(
    tokens: Tensor,
    protocol: TrainingProtocol,
    step: int,
    blocks: Sequence[Block] | None = None,
    *,
    purpose: str = "jitter",
) -> None:
    """Add Gaussian noise in place to every element of a sample, for samples chosen with jitter_probability.

    Args:
        tokens: [B, F], or [B, *token_shape] where there are no blocks.
        protocol: deviation, probability and seed.
        step: of the schedule.
        blocks: of which a row is made; None for one without a name.
        purpose: with seed, step and the name of a block, what the noise is a function of.
    """
    workspace = Workspace(torch.float32, tokens.device)
    jitter = draw_jitter(protocol, step, len(tokens), workspace, purpose=purpose)
    if jitter is not None:
        jitter_blocks(jitter, tokens.flatten(1), whole_row((tokens[0].numel(),)) if blocks is None else blocks)
