"""Rows of blocks, one for each level and kind, side by side: their jitter while training, and the blocks that each head reads.

A source with the blocks of several heads lets them train in one pass over the batches. Each head copies its blocks out of the
shared rows, so its arithmetic is the same whether or not other heads read the rows. Every block has its own noise, a function of
(seed, step, name), and so has the padding of narrow tokens: so the noise of a head does not depend on the other blocks either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from ..errors import SettingError
from ..protocol import TrainingProtocol
from ..seeds import make_generator
from ..workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Block:
    """Tokens of one level and kind in a row.

    Attributes:
        name: such as `block.3/cls`.
        num_tokens: t.
        width: of each token.
    """

    name: str
    num_tokens: int
    width: int

    @property
    def size(self) -> int:
        return self.num_tokens * self.width


def whole_row(token_shape: tuple[int, ...]) -> tuple[Block, ...]:
    """A row without blocks, as a single block without a name.

    >>> whole_row((4, 16))
    (Block(name='', num_tokens=4, width=16),)
    """
    num_tokens, width = token_shape if len(token_shape) == 2 else (1, *token_shape)
    return (Block(name="", num_tokens=num_tokens, width=width),)


def columns_of(blocks: Sequence[Block]) -> dict[str, slice]:
    """The columns of each block in a row.

    >>> columns_of([Block(name="a", num_tokens=1, width=4), Block(name="b", num_tokens=2, width=3)])
    {'a': slice(0, 4, None), 'b': slice(4, 10, None)}
    """
    stops = list(accumulate(block.size for block in blocks))
    return {block.name: slice(stop - block.size, stop) for block, stop in zip(blocks, stops, strict=True)}


class Reading:
    """Reads the blocks of one head from rows.

    Args:
        blocks: all blocks of a row, in order.
        names: blocks to read, in the order in which they are joined; None for all.
        flat: concatenate the blocks, for linear heads; else stack their tokens, narrow ones padded on the right with zeros.

    Attributes:
        token_shape: (F,) flat, (T, D) stacked.
        whole: a row is read in place, without a copy.

    Raises:
        SettingError: the row lacks a block.
    """

    def __init__(self, blocks: Sequence[Block], names: Sequence[str] | None = None, *, flat: bool) -> None:
        by_name, columns = {block.name: block for block in blocks}, columns_of(blocks)
        missing = [name for name in names or () if name not in by_name]
        if missing:
            raise SettingError("probes.missing_blocks", missing=", ".join(missing), blocks=", ".join(by_name))
        read = [by_name[name] for name in (by_name if names is None else names)]
        num_tokens, width = sum(block.num_tokens for block in read), max(block.width for block in read)
        self.token_shape: tuple[int, ...] = (sum(block.size for block in read),) if flat else (num_tokens, width)
        self._blocks = [(block, columns[block.name]) for block in read]
        self._padded = not flat and any(block.width < width for block in read)
        self.whole = not self._padded and [block.name for block in read] == list(by_name)

    def read(self, rows: Tensor, workspace: Workspace, jitter: Jitter | None = None) -> Tensor:
        """Tokens [B, *token_shape] of rows [B, F of the whole row], valid until the next call.

        `jitter` is that of the rows, which are jittered already; padding is jittered here, because LayerNorm runs over the
        padded width.
        """
        shape = (len(rows), *self.token_shape)
        if self.whole:
            return rows.view(shape)
        out = workspace.empty("tokens that a head reads", *shape)
        if not self._padded:
            torch.cat([rows[:, columns] for _, columns in self._blocks], 1, out=out.view(len(rows), -1))
            return out
        start = 0
        for block, columns in self._blocks:
            tokens = out[:, start : start + block.num_tokens]
            tokens[:, :, : block.width] = rows[:, columns].view(len(rows), block.num_tokens, block.width)
            padding = tokens[:, :, block.width :]
            padding.zero_()
            if jitter is not None and padding.shape[2]:
                jitter.add_to(padding, f"padding of {block.name} to {shape[2]}")
            start += block.num_tokens
        return out


@dataclass(frozen=True, kw_only=True, eq=False)
class Jitter:
    """The noise of one step.

    Attributes:
        chosen: [n] int64, the samples of the batch that are jittered, the same for every block.
        std: standard deviation of the noise.
        seed, purpose, step: with the name of a block, they decide the noise.
        workspace: memory for the noise of one block.
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
    """The jitter of a batch, on the device of the workspace; None if the protocol has none."""
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
    """Jitter tokens in place, each sample with jitter_probability.

    Args:
        tokens: [B, F], or [B, *token_shape] where there are no blocks.
        protocol: deviation, probability and seed.
        step: of the schedule.
        blocks: of a row; None for a single block without a name.
        purpose: with seed, step and the name of a block, it decides the noise.
    """
    workspace = Workspace(torch.float32, tokens.device)
    jitter = draw_jitter(protocol, step, len(tokens), workspace, purpose=purpose)
    if jitter is not None:
        jitter_blocks(jitter, tokens.flatten(1), whole_row((tokens[0].numel(),)) if blocks is None else blocks)


def upload(x: Tensor, device: torch.device) -> Tensor:
    """Copy a small tensor of the host to the device without waiting: a copy from page-locked memory is queued like a kernel."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)
