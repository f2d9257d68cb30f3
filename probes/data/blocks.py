"""Rows made of blocks, one a level and kind side by side, of which every head reads its own.

A source that holds what several heads read lets them train in one pass over the batches. Each head copies its blocks out
of the shared rows, so it multiplies no token it does not read, and its arithmetic sees the same memory whoever else
reads: it cannot tell whether it is alone. Nothing here knows where tokens come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..banks.workspace import Workspace
from ..errors import SettingError

if TYPE_CHECKING:
    from .jitter import Jitter


@dataclass(frozen=True, kw_only=True)
class Block:
    """Tokens of one level and kind in a row.

    Attributes:
        name: what jitter and readers know it by, such as `block.3/cls`.
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
    """A row that is not made of blocks, as one block without a name.

    >>> whole_row((4, 16))
    (Block(name='', num_tokens=4, width=16),)
    """
    num_tokens, width = token_shape if len(token_shape) == 2 else (1, *token_shape)
    return (Block(name="", num_tokens=num_tokens, width=width),)


def columns_of(blocks: Sequence[Block]) -> dict[str, slice]:
    """Where each block lies in a row.

    >>> columns_of([Block(name="a", num_tokens=1, width=4), Block(name="b", num_tokens=2, width=3)])
    {'a': slice(0, 4, None), 'b': slice(4, 10, None)}
    """
    stops = list(accumulate(block.size for block in blocks))
    return {block.name: slice(stop - block.size, stop) for block, stop in zip(blocks, stops, strict=True)}


class Reading:
    """What one head reads of a row.

    Args:
        blocks: of the row, in order.
        names: of the blocks that are read, in the order in which they are joined; None for all.
        flat: side by side as they are, for linear heads; else stacked, narrow tokens padded on the right with zeros.

    Attributes:
        token_shape: (F,) flat, (T, D) stacked.
        whole: a row is read as it lies, without a copy.

    Raises:
        SettingError: a block that the row does not have.
    """

    def __init__(self, blocks: Sequence[Block], names: Sequence[str] | None = None, *, flat: bool) -> None:
        by_name, columns = {block.name: block for block in blocks}, columns_of(blocks)
        missing = [name for name in names or () if name not in by_name]
        if missing:
            raise SettingError(
                where="blocks that a head reads",
                expected="some of " + ", ".join(by_name),
                got=", ".join(missing),
                todo="Give the trainer a source that holds them.",
            )
        read = [by_name[name] for name in (by_name if names is None else names)]
        num_tokens, width = sum(block.num_tokens for block in read), max(block.width for block in read)
        self.token_shape: tuple[int, ...] = (sum(block.size for block in read),) if flat else (num_tokens, width)
        self._blocks = [(block, columns[block.name]) for block in read]
        self._padded = not flat and any(block.width < width for block in read)
        self.whole = not self._padded and [block.name for block in read] == list(by_name)

    def read(self, rows: Tensor, workspace: Workspace, jitter: Jitter | None = None) -> Tensor:
        """[B, F of the whole row], jittered already if `jitter` is given -> [B, *token_shape], until the next call.

        Padding is jittered here, by the step's noise: LayerNorm runs over the padded width, and so does the noise.
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
