"""`parquet:FILE`: images in a Parquet file, as paths or as bytes, with labels, splits and groups in other columns.

A row group is unpacked in batches, from the front, so that a file of one large group takes no more memory than one of many.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import RequestError, first_line
from ..image_files import not_a_file
from ..image_source import ImageSource
from ..patterns import SPLIT, data_name, expand_braces, no_such_split, parse_options, splits_of
from ..sources import DataSource
from .arrow import ArrowFiles, open_arrow
from .listed import OPTIONS

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 32


class ParquetFiles(ArrowFiles):
    """Parquet files of one schema.

    Raises:
        RequestError: as `ArrowFiles`, pyarrow is not installed, or a file is missing or damaged.
    """

    has_exact_sizes = False

    def __init__(self, paths: Sequence[Path]) -> None:
        opened = [_open(path) for path in paths]
        super().__init__(paths, [file.schema_arrow for file in opened], [file.metadata.num_rows for file in opened])
        groups = [[file.metadata.row_group(group) for group in range(file.num_row_groups)] for file in opened]
        places = [(file, number, one) for file, of_file in enumerate(groups) for number, one in enumerate(of_file)]
        self._places = [(file, number) for file, number, _ in places]
        self._group_rows = np.array([one.num_rows for *_, one in places], dtype=np.int64)
        self._starts = np.cumsum(self._group_rows) - self._group_rows
        self._group_bytes = [
            {
                one.column(leaf).path_in_schema: one.column(leaf).total_uncompressed_size
                for leaf in range(one.num_columns)
            }
            for *_, one in places
        ]
        self._reader = _Reader()

    def read(self, columns: Sequence[str]) -> pa.Table:
        import pyarrow

        parts = []
        for path in self.paths:
            try:
                parts.append(_open(path).read(columns=list(columns)))
            except (pyarrow.ArrowException, OSError) as error:
                raise RequestError("data.bad_parquet", file=path, reason=first_line(error)) from error
        return pyarrow.concat_tables(parts)

    def cell(self, column: str, row: int) -> Any:
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        file, number = self._places[group]
        return self._reader.cell(self.paths[file], number, column, row - int(self._starts[group]))

    def sizes(self, column: str) -> NDArray[np.int64]:
        leaves = (column, f"{column}.bytes")
        sizes = [sum(of_group.get(leaf, 0) for leaf in leaves) for of_group in self._group_bytes]
        return np.repeat(np.array(sizes, dtype=np.int64) // np.maximum(self._group_rows, 1), self._group_rows)


class _Reader:
    """The batch that was read last, and the ones behind it: rows are mostly asked for in their order."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._group: tuple[Path, int, str] | None = None
        self._batches: Iterator[Any] = iter(())
        self._values: Any = ()
        self._start = 0

    def cell(self, path: Path, group: int, column: str, row: int) -> Any:
        with self._lock:
            is_ahead = self._group == (path, group, column) and row >= self._start
            self._group = None  # after an error no batch is trusted
            if not is_ahead:
                self._start, self._values = 0, ()
                self._batches = _open(path).iter_batches(BATCH_ROWS, row_groups=[group], columns=[column])
            while row >= (stop := self._start + len(self._values)):
                batch = next(self._batches, None)
                if batch is None:
                    raise OSError(f"row group {group} ends before row {row}")
                self._start, self._values = stop, batch.column(0)
            self._group = (path, group, column)
            return self._values[row - self._start].as_py()

    def __reduce__(self) -> tuple[type[_Reader], tuple[()]]:
        return _Reader, ()


def _open(path: Path) -> Any:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise RequestError("data.no_pyarrow", file=path) from None
    if not path.exists():
        raise RequestError("data.no_table", file=path)
    if problem := not_a_file(path):
        raise RequestError("data.bad_parquet", file=path, reason=problem)
    try:
        return parquet.ParquetFile(path, memory_map=True)
    except (ArrowException, OSError) as error:
        raise RequestError("data.bad_parquet", file=path, reason=first_line(error)) from error


def open_parquet(address: str, split: str) -> ImageSource:
    """The images of one split.

    Raises:
        RequestError: as `ParquetFiles` and `open_arrow`, or an unknown option.
    """
    pattern, options = parse_options("parquet", address, OPTIONS)
    data, is_whole = f"parquet:{address}", SPLIT in pattern
    paths = [Path(path) for path in expand_braces(pattern.replace(SPLIT, split))]
    if is_whole and not any(path.exists() for path in paths):
        raise no_such_split(data, split, str(paths[0]), splits_of(pattern))
    name = data_name(pattern) if is_whole or "{" in pattern else Path(pattern).stem
    place = str(paths[0]) if len(paths) == 1 else pattern
    files = ParquetFiles(paths)
    folder = paths[0].parent
    return open_arrow(files, options, split, data=data, place=place, folder=folder, name=name, is_whole=is_whole)


PARQUET = DataSource(
    form="parquet:FILE?image=image&label=label&split=split&group=patient",
    meaning="images in a Parquet file, as paths or bytes; the options are those of csv:",
    example="parquet:cells/{split}.parquet",
    open=open_parquet,
)
