"""The tokens of one level and kind, in one store or in several: rows by position, checked before they are read."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import SpecError
from .mapping import DONT_NEED, WILL_NEED, Rows


class TokenArray:
    """The tokens of one level and kind, ``[N, D]`` or ``[N, T, D]``.

    Args:
        name: for error messages.
        rows: access to the rows.
        logical_dtype: the dtype of the values; ``bfloat16`` is stored as uint16.

    Attributes:
        shape, dtype: of the array on disk; over several stores, ``shape[0]`` counts positions, see `mapping`.
        contiguous: all rows as one ndarray over the files, or None where this system or layout has none. Writing to it changes no
            file, but the holes between stores cannot be written.
    """

    def __init__(self, name: str, rows: Rows, logical_dtype: str) -> None:
        self.name = name
        self.logical_dtype = logical_dtype
        self.shape = rows.shape
        self.dtype = rows.dtype
        self.contiguous = rows.contiguous
        self._rows = rows

    def take(self, rows: NDArray[np.int64], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Gather rows in the order given; repeats are allowed.

        Args:
            rows: ``[n]`` integers within ``[0, N)``.
            out: ``[n, *row_shape]`` to fill; a new array for each batch can cost three times as much.

        Returns:
            `out`, or a new array.

        Raises:
            SpecError: rows out of range, or an `out` of another shape or dtype.
        """
        rows = np.asarray(rows, dtype=np.int64)
        shape = (len(rows), *self.shape[1:])
        if out is None:
            out = np.empty(shape, dtype=self.dtype)
        elif out.shape != shape or out.dtype != self.dtype:
            raise SpecError(
                "cache.wrong_buffer",
                array=self.name,
                expected=f"{self.dtype} {shape}",
                got=f"{out.dtype} {out.shape}",
            )
        if len(rows):
            self._check_range(int(rows.min()), int(rows.max()) + 1)
            self._rows.gather(rows, out)
        return out

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows start to stop; a view if the array is contiguous.

        Raises:
            SpecError: not within ``0 <= start <= stop <= N``.
        """
        self._check_range(start, stop)
        return self._rows.read(start, stop)

    def will_need(self, start: int, stop: int) -> None:
        """Ask the system to read rows start to stop ahead, without waiting for them."""
        self._rows.advise(start, stop, WILL_NEED)

    def release(self, start: int, stop: int) -> None:
        """Free the memory of rows start to stop, for stores larger than memory; they can be read again."""
        self._rows.advise(start, stop, DONT_NEED)

    def _check_range(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.shape[0]:
            raise SpecError("cache.rows_out_of_range", array=self.name, num_rows=self.shape[0], start=start, stop=stop)
