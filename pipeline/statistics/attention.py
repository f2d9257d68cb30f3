"""Attention maps: `attention.csv` in the folder of a row, and a map in a few numbers.

A map holds the attention for each (kind, level), summed over the tokens of the kind and averaged over test images and heads. It
sums to 1.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import entropy

from ..errors import WorkError


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionMap:
    """Shares of attention.

    Attributes:
        levels: L names, shallow to deep.
        kinds: K names.
        shares: [K, L], sums to 1.
    """

    levels: tuple[str, ...]
    kinds: tuple[str, ...]
    shares: NDArray[np.float64]

    @property
    def largest(self) -> tuple[str, float]:
        """The cell with the largest share, as "LEVEL KIND", and that share."""
        kind, level = divmod(int(self.shares.argmax()), len(self.levels))
        return f"{self.levels[level]} {self.kinds[kind]}", float(self.shares.max())


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How widely attention is spread over the K L cells of a map.

    Attributes:
        entropy: in nats; 0 where one cell has everything, ln(K L) where all have the same.
        mass80: the fewest cells that together have 80 % of the attention.
        late_third: share of the deepest third of the levels (rounded up).
    """

    entropy: float
    mass80: int
    late_third: float


def read_attention(folder: Path) -> AttentionMap:
    """Read `attention.csv` in the folder of a row.

    Raises:
        WorkError: the file is missing (the probe does not attend), empty or damaged.
    """
    path = folder / "attention.csv"
    try:
        with path.open(encoding="utf-8", newline="") as file:
            cells = {(row["level"], row["kind"]): float(row["share"]) for row in csv.DictReader(file)}
        levels, kinds = (tuple(dict.fromkeys(key[axis] for key in cells)) for axis in (0, 1))
        shares = np.array([[cells[level, kind] for level in levels] for kind in kinds])
        if not cells:
            raise ValueError("the file has no lines")
    except (OSError, KeyError, ValueError, TypeError) as error:
        reason = str(error) or type(error).__name__
        raise WorkError("statistics.bad_attention_map", path=path, reason=reason) from error
    return AttentionMap(levels=levels, kinds=kinds, shares=shares)


def spread_of(map_: AttentionMap) -> Spread:
    """Entropy, mass-80 and late third of a map.

    >>> spread = spread_of(AttentionMap(levels=("block.1", "final"), kinds=("ap",), shares=np.array([[0.1, 0.9]])))
    >>> spread.mass80, spread.late_third, round(spread.entropy, 3)
    (1, 0.9, 0.325)
    """
    shares = map_.shares
    falling = np.sort(shares.ravel())[::-1]
    late = -(-shares.shape[1] // 3)
    return Spread(
        entropy=float(entropy(shares.ravel())),
        # the CSV has six digits: without the allowance four cells of 0.2 would not be 80 %
        mass80=int(np.searchsorted(falling.cumsum(), 0.8 - 1e-5)) + 1,
        late_third=float(shares[:, -late:].sum()),
    )


def mean_map(maps: Sequence[AttentionMap]) -> AttentionMap:
    """The mean of maps of the same levels and kinds (seeds, say); raises ValueError for others."""
    if len({(one.levels, one.kinds) for one in maps}) != 1:
        raise ValueError("maps of different levels or kinds have no mean")
    shares = np.mean([one.shares for one in maps], axis=0)
    return AttentionMap(levels=maps[0].levels, kinds=maps[0].kinds, shares=shares)
