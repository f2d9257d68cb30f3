"""`csv:FILE`: images listed by a table in text: .csv, .tsv or .jsonl.

CSV has a line of column names; its separator is a comma, or a semicolon if the line of names has more of those. JSON lines are one
object each; a key that a line lacks is an empty cell.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...errors import RequestError, first_line
from ...quantities import few
from ..image_files import not_a_file
from ..patterns import SPLIT, data_name, no_such_split, parse_options, read_text, splits_of
from ..sources import DataSource
from ..table import Table
from .listed import OPTIONS, ListedImages, open_listed

LONGEST_CELL = 1 << 24  # characters; Python's own limit is 2^17
LINES_AT_A_TIME = 4096
MOST_SHARED = 100_000  # different cells of a column


def read_table(path: Path) -> Table:
    """Read a table in text.

    Raises:
        RequestError: no such file, another extension, or no table with a name for each column and a cell for each name.
    """
    extension = path.suffix.lower()
    if extension not in READERS:
        raise RequestError("data.unknown_table", file=path, extensions=" ".join(READERS), got=extension or "none")
    if not path.exists():
        raise RequestError("data.no_table", file=path)
    if problem := not_a_file(path):
        raise RequestError("data.unreadable_text", file=path, reason=problem)
    columns = READERS[extension](path, read_text(path))
    return Table(str(path), columns, len(next(iter(columns.values()), ())))


def _read_csv(path: Path, text: str) -> dict[str, list[Any]]:
    names = text.partition("\n")[0]
    return _read_cells(path, text, ";" if names.count(";") > names.count(",") else ",")


def _read_tsv(path: Path, text: str) -> dict[str, list[Any]]:
    return _read_cells(path, text, "\t")


def _read_cells(path: Path, text: str, separator: str) -> dict[str, list[Any]]:
    limit = csv.field_size_limit(LONGEST_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    ragged: list[list[str]] = []
    try:
        names = [name.strip() for name in next(reader, [])]
        if not all(names) or len(set(names)) < len(names) or not names:
            raise RequestError("data.bad_column_names", file=path, names=few([repr(name) for name in names], 10))
        columns: list[list[Any]] = [[] for _ in names]
        known: list[dict[str, str]] = [{} for _ in names]
        while lines := list(itertools.islice(filter(None, reader), LINES_AT_A_TIME)):
            ragged += [line for line in lines if len(line) != len(names)]
            for column, texts, cells in zip(columns, known, zip(*lines, strict=False), strict=False):
                column += _shared(texts, cells)
    except csv.Error as error:
        raise RequestError("data.bad_line", file=path, line=reader.line_num, reason=error) from error
    finally:
        csv.field_size_limit(limit)
    if ragged:
        first = separator.join(ragged[0])[:80]
        counts = {"columns": len(names), "ragged": len(ragged), "count": len(columns[0])}
        raise RequestError("data.ragged_lines", file=path, cells=len(ragged[0]), first=repr(first), **counts)
    return dict(zip(names, columns, strict=True))


def _shared(known: dict[str, str], cells: Sequence[str]) -> list[str]:
    """The cells, equal ones as one object: a label of a million rows takes the memory of one. Columns of ids have none to share."""
    if len(known) > MOST_SHARED:
        return [known.get(cell, cell) for cell in cells]
    return [known.setdefault(cell, cell) for cell in cells]


def _read_json_lines(path: Path, text: str) -> dict[str, list[Any]]:
    rows: list[dict[str, Any]] = []
    # splitlines() would cut at characters that JSON may have in texts
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RequestError("data.bad_line", file=path, line=number, reason=first_line(error)) from error
        if not isinstance(row, dict):
            raise RequestError("data.bad_line", file=path, line=number, reason="the line is no object in braces")
        rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


READERS: dict[str, Callable[[Path, str], dict[str, list[Any]]]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_json_lines,
}


def open_csv(address: str, split: str) -> ListedImages:
    """The images of one split.

    Raises:
        RequestError: as `read_table` and `open_listed`, or an unknown option.
    """
    pattern, options = parse_options("csv", address, OPTIONS)
    path, data = Path(pattern.replace(SPLIT, split)), f"csv:{address}"
    is_whole = SPLIT in pattern
    if is_whole and not path.exists():
        raise no_such_split(data, split, str(path), splits_of(pattern))
    name = data_name(pattern) if is_whole else os.path.splitext(path.name)[0]
    return open_listed(read_table(path), options, split, data=data, folder=path.parent, name=name, is_whole=is_whole)


CSV = DataSource(
    form="csv:FILE?image=path&label=label&split=split&group=patient",
    meaning="images listed by a .csv, .tsv or .jsonl file; ?split=0.2 holds a fifth of each class out",
    example="csv:photos/labels.csv?image=path&label=label&split=split",
    open=open_csv,
)
