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

if TYPE_CHECKING:
    pass


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
