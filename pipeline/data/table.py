"""A table: columns by name, a value for each sample. It knows neither files of tables nor images.

`ImageSource.table` keeps every column of the rows of a split, so that other targets and groups can be taken from it later.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from ..errors import RequestError, advice


@dataclass(frozen=True, eq=False)
class Table:
    """N rows.

    Attributes:
        place: where it lies, for messages.
        columns: name -> N values, as texts, numbers or None; there may be none.
        num_rows: N.
        class_names: name of a column of class numbers -> the names of the classes, where the file gives them.
    """

    place: str
    columns: Mapping[str, Sequence[Any]]
    num_rows: int
    class_names: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.num_rows

    def column(self, name: str) -> Sequence[Any]:
        """The N values of a column.

        Raises:
            RequestError: there is none of this name; names the nearest.
        """
        if name not in self.columns:
            raise no_column(self.place, name, list(self.columns))
        return self.columns[name]

    def filled_column(self, name: str) -> Sequence[Any]:
        """The N values of a column that must have no empty cell.

        Raises:
            RequestError: there is no such column, or it has empty cells, which are counted.
        """
        values = self.column(name)
        empty = [row for row, value in enumerate(values, 1) if is_missing(value)]
        if empty:
            counts = {"empty": len(empty), "count": len(values), "first": empty[0]}
            raise RequestError("data.empty_cells", table=self.place, column=name, **counts)
        return values

    def groups(self, name: str | None) -> NDArray[np.uint64] | None:
        """[N] hashes of the groups of a column, equal in all tables; None of no column. Raises as `filled_column`."""
        if name is None:
            return None
        hashes = [xxh3_64_intdigest(one.encode(errors="surrogatepass")) for one in self.group_names(name)]
        return np.array(hashes, dtype=np.uint64)

    def group_names(self, name: str) -> list[str]:
        """The N groups of a column without empty cells, as text: whatever a cell holds, and equal numbers alike.

        Raises:
            RequestError: as `filled_column`.
        """
        values = self.filled_column(name)
        return [str(int(one) if isinstance(one, float) and one.is_integer() else one) for one in values]

    def usual_column(self, names: Sequence[str]) -> str | None:
        """The first column that has one of these names, whatever its case; None if none has."""
        by_lower_case = {column.casefold(): column for column in reversed(list(self.columns))}
        return next((by_lower_case[name] for name in names if name in by_lower_case), None)

    def take(self, rows: NDArray[np.int64]) -> Table:
        """Some rows, by number."""
        numbers = rows.tolist()
        columns = {name: [values[row] for row in numbers] for name, values in self.columns.items()}
        return Table(self.place, columns, len(numbers), self.class_names)


def no_column(place: str, name: str, names: Sequence[str]) -> RequestError:
    """The error for a name that no column has."""
    values = {"name": repr(name), "names": ", ".join(names), "advice": advice(name, names)}
    return RequestError("data.no_column", table=place, **values)


def is_missing(value: Any) -> bool:
    """Whether a cell is empty: None, NaN or blank text.

    >>> [is_missing(value) for value in (None, "", " ", float("nan"), 0, "0")]
    [True, True, True, True, False, False]
    """
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))
