"""Images that a table lists by their paths, with the label, split and group of each in other columns.

Paths are relative to the file of the table; ids are the paths as they are written. Rows keep the order of the table.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerbank.cache.index import read_whole

from ...errors import RequestError
from ...outputs import kind_of
from ...quantities import few
from ..image_source import NO_LABEL, ImageSource
from ..pixels import parse_range
from ..table import Table, is_missing
from .class_column import classes_of
from .split_column import parse_held_out, rows_held_out, rows_of_split

OPTIONS = ("image", "label", "split", "group", "seed", "range")
USUAL_IMAGES = ("image", "path", "file", "filename", "file_name", "filepath", "file_path", "image_path")
USUAL_LABELS = ("label", "labels", "class", "target")


class ListedImages(ImageSource):
    """The images of some rows of a table, each in a file of its own.

    Args:
        table: the N rows of the split.
        paths: N paths as they are written.
        labels, class_names: [N] class indices, and C names.
        folder: the folder that paths are relative to.
        name, split: names of the data.

    Raises:
        RequestError: files that are missing or no files, which are counted, or two rows of one path.
    """

    has_whole_files = True
    is_encoded = True

    def __init__(
        self,
        table: Table,
        paths: Sequence[str],
        labels: NDArray[Any],
        class_names: Sequence[str],
        *,
        folder: Path,
        name: str,
        split: str,
    ) -> None:
        self.folder, self.table = folder, table
        sizes = _sizes(table.place, folder, paths)
        super().__init__(name=name, split=split, ids=paths, labels=labels, class_names=class_names, sizes=sizes)

    def read(self, row: int) -> bytes:
        return read_whole(self.file_of(row))[0]

    def file_of(self, row: int) -> str:
        return os.path.join(self.folder, self.ids[row])

    def files(self) -> tuple[Sequence[str], NDArray[np.int64]]:
        folder = os.path.abspath(self.folder)
        return [os.path.join(folder, id) for id in self.ids], np.arange(len(self))

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "table": None}  # processes that decode need no other columns


def open_listed(
    table: Table, options: Mapping[str, str], split: str, *, data: str, folder: Path, name: str, is_whole: bool = False
) -> ListedImages:
    """The images of one split of a table.

    Args:
        table: all rows.
        options: values of `OPTIONS`; columns that are not named are found by their usual names.
        split: the split.
        data: URI, for messages.
        folder: the folder that paths are relative to.
        name: name of the data.
        is_whole: whether the table has this split alone.

    Raises:
        RequestError: no such column or split, empty cells, labels that are no classes, missing files, repeated paths, or no range.
    """
    if not len(table):
        raise RequestError("data.empty_table", table=table.place)
    column = options.get("image") or table.usual_column(USUAL_IMAGES)
    if column is None:
        raise RequestError("data.no_image_column", table=table.place, names=", ".join(table.columns))
    paths = [str(path) for path in table.filled_column(column)]
    rows = choose_rows(table, options, split, ids=paths, data=data, is_whole=is_whole)
    part, chosen = table.take(rows), [paths[row] for row in rows.tolist()]
    labels, class_names = labels_of(part, options, chosen)
    source = ListedImages(part, chosen, labels, class_names, folder=folder, name=name, split=split)
    source.groups = part.groups(options.get("group"))
    source.value_range = parse_range(data, options)
    return source


def choose_rows(
    table: Table, options: Mapping[str, str], split: str, *, ids: Sequence[str], data: str, is_whole: bool
) -> NDArray[np.int64]:
    """The rows of a split, by the options `split`, `group` and `seed`; `ids` are those of all rows."""
    group = options.get("group")
    held_out = parse_held_out(options, data, has_splits=is_whole)
    if held_out is None:
        return rows_of_split(table, split, data=data, column=options.get("split"), group=group, is_whole=is_whole)
    label = _label_column(table, options)
    return rows_held_out(
        ids,
        [0] * len(table) if label is None else [str(value) for value in table.column(label)],
        split,
        held_out,
        data=data,
        groups=None if group is None else table.group_names(group),
    )


def labels_of(table: Table, options: Mapping[str, str], ids: Sequence[str]) -> tuple[NDArray[Any], list[str]]:
    """Class indices [N] and C names, or numbers; NO_LABEL and no names where there is no column of labels, or an empty one."""
    column = _label_column(table, options)
    if column is None or all(map(is_missing, table.column(column))):
        return np.full(len(table), NO_LABEL, dtype=np.int64), []
    place = f"{table.place}, column {column}"
    labels, class_names = classes_of(table.column(column), ids, place)
    if (names := table.class_names.get(column)) is None or not class_names:
        return labels, class_names
    are_numbers = isinstance(table.column(column)[0], int)  # of the names of the file, else the names themselves
    number_of = {str(number) if are_numbers else name: number for number, name in enumerate(names)}
    if unknown := [name for name in class_names if name not in number_of]:
        raise RequestError("data.class_without_name", place=place, count=len(names), label=unknown[0])
    return np.array([number_of[name] for name in class_names])[labels], list(names)


def _label_column(table: Table, options: Mapping[str, str]) -> str | None:
    """The column of labels: the one that is named, one with a usual name, or the only one with names of classes."""
    if "label" in options:
        return options["label"]
    named = list(table.class_names)
    return table.usual_column(USUAL_LABELS) or (named[0] if len(named) == 1 else None)


def _sizes(place: str, folder: Path, paths: Sequence[str]) -> NDArray[np.int64]:
    """[N] bytes of each file."""
    sizes = np.zeros(len(paths), dtype=np.int64)
    problems: dict[str, str] = {}
    for row, path in enumerate(paths):
        try:
            status: Any = os.stat(os.path.join(folder, path))
        except (OSError, ValueError) as error:  # a name with a null byte
            problems[path] = getattr(error, "strerror", None) or str(error)
            continue
        if not stat.S_ISREG(status.st_mode):
            problems[path] = kind_of(status.st_mode)
        sizes[row] = status.st_size
    if problems:
        names = few([f"{path} ({problem})" for path, problem in problems.items()], 3)
        raise RequestError(
            "data.missing_files", table=place, folder=folder, missing=len(problems), count=len(paths), names=names
        )
    return sizes
