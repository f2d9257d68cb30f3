"""What a solver reads: the features of N rows, a part at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor

PART_ROWS = 1024


class Features(Protocol):
    """Concatenated tokens of N rows, in parts of PART_ROWS rows.

    Attributes:
        shape: (N, F).
    """

    @property
    def shape(self) -> tuple[int, int]: ...

    def parts(self, stop: int | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Yield the places of some rows, and their features [b, F] float32 on the CPU, which last until the next part.

        Args:
            stop: number of parts; None is all.

        Raises:
            DataError: features that are not finite.
        """
        ...

    def whole(self) -> Tensor:
        """[N, F] float32."""
        ...


def features_bytes(num_rows: int, num_features: int) -> int:
    """Bytes of features in float32."""
    return 4 * num_rows * num_features


def part_bytes(num_features: int) -> int:
    """Bytes of two parts that are multiplied, in float32 and float64."""
    return 2 * PART_ROWS * num_features * 12
