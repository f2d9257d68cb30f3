"""One of several writers of one store: its number among them, and which blocks it takes first.

The decision taken here: block b is the share of worker b mod count. Shares are disjoint by arithmetic, and whatever an
interrupted run has left, each share has about the same part of it.

Knows nothing of files: who lives and who has which block is for `crew` to find out.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from .errors import SpecError


@dataclass(frozen=True)
class Worker:
    """One of `count` writers of a store.

    Args:
        index: its number, 0 <= index < count.
        count: how many there are.
        helps: whether it goes on with blocks of the others that nobody has taken, until none is missing.

    Raises:
        SpecError: no such number.
    """

    index: int
    count: int
    helps: bool = True

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.index < self.count:
            raise SpecError(
                where="Worker",
                expected="an index from 0 to count - 1",
                got=f"index {self.index} of {self.count}",
                todo="Number the workers from 0; nothing was written.",
            )

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def owns(self, block: int) -> bool:
        """Whether a block is of its own share."""
        return block % self.count == self.index

    def choose(self, free: Collection[int]) -> list[int]:
        """The blocks to take next among those that are missing and that nobody has.

        One that does not help takes its whole share. One that helps takes half of an even split of what is free, so that
        pieces get smaller and all end at about the same time; its own share first.

        >>> Worker(0, 2).choose(range(16)), Worker(0, 2).choose([3, 5]), Worker(0, 2, helps=False).choose(range(6))
        ([0, 2, 4, 6], [3], [0, 2, 4])
        """
        own = [block for block in sorted(free) if self.owns(block)]
        if not self.helps:
            return own
        ahead = own or sorted(free)
        return ahead[: max(1, len(free) // (2 * self.count))]
