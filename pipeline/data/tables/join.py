"""Joins a table to the images of some sources, by sample id or path: what it says of them can then be predicted, or divide them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import RequestError, advice
from ..image_source import ImageSource
from ..table import Table
from .listed import USUAL_IMAGES
from .text import READERS, read_table

USUAL_IDS = ("id", "sample_id", *USUAL_IMAGES)
PARQUET = ".parquet"
ABSENT = -1
"""The row of an image that the table does not list."""


def open_table(file: Path) -> Table:
    """Read a table: .csv, .tsv, .jsonl or .parquet.

    Raises:
        RequestError: no such file, another extension, or a file that holds no table.
    """
    if file.suffix.lower() == PARQUET:
        from .arrow import table_of
        from .parquet import ParquetFiles

        return table_of(ParquetFiles([file]), str(file))
    if file.suffix.lower() not in READERS:
        extensions = " ".join([*READERS, PARQUET])
        raise RequestError("data.unknown_table", file=file, extensions=extensions, got=file.suffix or "none")
    return read_table(file)


def join_rows(table: Table, sources: Sequence[ImageSource], *, allow_missing: bool = False) -> list[NDArray[np.int64]]:
    """Find the row of each image in a table.

    Args:
        table: with a column of ids, or of paths relative to its own folder.
        sources: the images.
        allow_missing: whether images without a row, and rows without an image, are left out.

    Returns:
        [N] row of the table for each image of each source, `ABSENT` for one that the table does not list.

    Raises:
        RequestError: no column of ids, an empty or repeated id, one that two sources have, or images or rows that are missing,
            which are counted.
    """
    by_lower_case = {name.casefold(): name for name in reversed(list(table.columns))}
    columns = [by_lower_case[name] for name in USUAL_IDS if name in by_lower_case]
    if not columns:
        values = {"usual": ", ".join(USUAL_IDS[:4]), "names": ", ".join(table.columns)}
        raise RequestError("data.no_id_column", table=table.place, **values, advice=advice("id", list(table.columns)))
    found: list[NDArray[np.int64]] = []
    for column in columns:
        keys = [str(value) for value in table.filled_column(column)]
        found = _find(keys, os.path.dirname(table.place), sources)
        if any((rows != ABSENT).any() for rows in found):
            break
    _check_found(table.place, column, keys, sources, found, allow_missing=allow_missing)
    return found


def _find(keys: Sequence[str], folder: str, sources: Sequence[ImageSource]) -> list[NDArray[np.int64]]:
    """The row of each image by its id; by its path if no image has such an id."""
    row_of = {key: row for row, key in enumerate(keys)}
    found = [_rows_of(row_of, source.ids) for source in sources]
    if any((rows != ABSENT).any() for rows in found) or not all(source.has_whole_files for source in sources):
        return found
    row_of = {os.path.abspath(os.path.join(folder, key)): row for key, row in row_of.items()}
    return [
        _rows_of(row_of, [os.path.abspath(source.file_of(row)) for row in range(len(source))]) for source in sources
    ]


def _rows_of(row_of: dict[str, int], names: Sequence[str]) -> NDArray[np.int64]:
    return np.array([row_of.get(name, ABSENT) for name in names], dtype=np.int64)


def _check_found(
    place: str,
    column: str,
    keys: Sequence[str],
    sources: Sequence[ImageSource],
    found: Sequence[NDArray[np.int64]],
    *,
    allow_missing: bool,
) -> None:
    if repeated := [key for key, number in Counter(keys).items() if number > 1]:
        raise RequestError(
            "data.repeated_table_ids", table=place, column=column, count=len(repeated), first=repeated[0]
        )
    counts = np.zeros(len(keys), dtype=np.int64)
    for rows in found:
        counts[rows[rows != ABSENT]] += 1
    if (counts > 1).any():
        shared: dict[str, Any] = {"count": int((counts > 1).sum()), "first": keys[int(counts.argmax())]}
        splits = ", ".join(source.split for source in sources)
        raise RequestError("data.ids_of_two_splits", table=place, column=column, splits=splits, **shared)
    absent = [source.ids[row] for source, rows in zip(sources, found, strict=True) for row in np.flatnonzero(rows < 0)]
    unused = np.flatnonzero(counts == 0)
    if not counts.any() or ((absent or len(unused)) and not allow_missing):
        values = {"absent": len(absent), "images": sum(map(len, sources)), "unused": len(unused), "rows": len(keys)}
        names = {"first": absent[0] if absent else "none", "other": keys[unused[0]] if len(unused) else "none"}
        raise RequestError("data.ids_do_not_match", table=place, column=column, **values, **names)
