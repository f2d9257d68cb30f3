"""Images and labels in Arrow columns: what Parquet files and data sets of Hugging Face have in common.

An image is a path, encoded bytes, or both in one cell (`{bytes, path}`). Paths make the images of `listed`. Bytes are read from
the file of the table, row by row; their ids are the paths in their cells if all are different, else file and row. Names of classes
are taken from the metadata that Hugging Face writes. A column of lists or of bytes is not kept in the table of other columns.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import RequestError
from ...quantities import few
from ..image_source import ImageSource, Stored
from ..pixels import parse_range
from ..table import Table, no_column
from .class_column import text_of
from .listed import USUAL_IMAGES, choose_rows, labels_of, open_listed

if TYPE_CHECKING:
    import pyarrow as pa

USUAL_COLUMNS = (*USUAL_IMAGES, "img", "jpg", "png")
NOT_LABELLED = -1  # of a class number, in data sets of Hugging Face


class ArrowFiles(ABC):
    """N rows of one schema in several files; picklable.

    Args:
        paths: F files.
        schemas: the names and types of the columns of each.
        counts: rows of each.

    Raises:
        RequestError: a file has other columns or types, or other names of its classes, or two columns of one name.

    Attributes:
        paths: F files.
        counts: [F] rows of each.
        schema: names and types of the columns.
        has_exact_sizes: whether `sizes` are those of each value, not means.
    """

    paths: Sequence[Path]
    counts: NDArray[np.int64]
    schema: pa.Schema
    has_exact_sizes: bool

    def __init__(self, paths: Sequence[Path], schemas: Sequence[pa.Schema], counts: Sequence[int]) -> None:
        self.paths, self.schema = paths, schemas[0]
        self.counts = np.array(counts, dtype=np.int64)
        for path, schema in zip(paths, schemas, strict=True):
            if not schema.equals(self.schema) or class_names_of(schema) != class_names_of(self.schema):
                raise RequestError("data.other_columns", file=path, first=paths[0])
        names = self.schema.names
        if len(set(names)) < len(names):
            raise RequestError("data.bad_column_names", file=paths[0], names=few([repr(name) for name in names], 10))

    @abstractmethod
    def read(self, columns: Sequence[str]) -> pa.Table:
        """All rows of some columns; `image.path` is a part of a column."""

    @abstractmethod
    def cell(self, column: str, row: int) -> Any:
        """One value, as Python has it."""

    @abstractmethod
    def sizes(self, column: str) -> NDArray[np.int64]:
        """[N] bytes of each value of a column of images."""


class EmbeddedImages(ImageSource):
    """The images of some rows, as bytes in a column.

    Args:
        files: where they lie.
        column: their column.
        rows: [N] rows of the split.
        table: the other columns of these rows.
        ids, labels, class_names, name, split: as of `ImageSource`.
    """

    keeps_order = True

    def __init__(self, files: ArrowFiles, column: str, rows: NDArray[np.int64], table: Table, **names: Any) -> None:
        self._files, self._column, self._rows, self.table = files, column, rows, table
        self._file_of = np.repeat(np.arange(len(files.paths)), files.counts)[rows]
        self.is_encoded = files.has_exact_sizes
        super().__init__(sizes=files.sizes(column)[rows], **names)

    def read(self, row: int) -> bytes:
        value = self._files.cell(self._column, int(self._rows[row]))
        encoded = value["bytes"] if isinstance(value, dict) else value
        if encoded is None:
            raise OSError("no bytes in this row")
        return bytes(encoded)

    def read_each(self, rows: NDArray[np.int64]) -> Iterator[Stored | None]:
        for row in rows.tolist():
            yield self._read_or_none(row)

    def files(self) -> tuple[Sequence[Path], NDArray[np.int64]]:
        return [path.absolute() for path in self._files.paths], self._file_of

    def file_of(self, row: int) -> str:
        return f"{self._files.paths[self._file_of[row]]}, column {self._column}"

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "table": None}  # processes that decode need no other columns


def open_arrow(
    files: ArrowFiles,
    options: Mapping[str, str],
    split: str,
    *,
    data: str,
    place: str,
    folder: Path,
    name: str,
    is_whole: bool = False,
) -> ImageSource:
    """The images of one split of some files; the arguments are those of `open_listed`.

    Raises:
        RequestError: as `open_listed`, or a column of images that holds neither paths nor bytes.
    """
    table = table_of(files, place)
    image = options.get("image") or _image_column(files.schema, table)
    if image in table.columns:
        return open_listed(
            table, {**options, "image": image}, split, data=data, folder=folder, name=name, is_whole=is_whole
        )
    if image not in files.schema.names:
        raise no_column(place, image, files.schema.names)
    if not _holds_bytes(kind := files.schema.field(image).type):
        raise RequestError("data.no_images_in_column", table=place, column=image, type=kind)
    if not files.counts.sum():
        raise RequestError("data.empty_table", table=place)
    ids = _ids_of(files, image)
    rows = choose_rows(table, options, split, ids=ids, data=data, is_whole=is_whole)
    part, chosen = table.take(rows), [ids[row] for row in rows.tolist()]
    labels, class_names = labels_of(part, options, chosen)
    names = {"ids": chosen, "labels": labels, "class_names": class_names}
    source = EmbeddedImages(files, image, rows, part, name=name, split=split, **names)
    source.groups = part.groups(options.get("group"))
    source.value_range = parse_range(data, options)
    return source


def table_of(files: ArrowFiles, place: str) -> Table:
    """The columns of plain values: texts, numbers, truth values and times. One that Python cannot hold is left out."""
    import pyarrow.types as types

    plain = [field.name for field in files.schema if not (types.is_nested(field.type) or _is_bytes(field.type))]
    read = files.read(plain)
    columns = {}
    for name in plain:
        with suppress(ValueError, OverflowError):  # times that Python does not know
            columns[name] = _values(read.column(name))
    class_names = {name: names for name, names in class_names_of(files.schema).items() if name in columns}
    for name in class_names:
        columns[name] = [None if value == NOT_LABELLED else value for value in columns[name]]
    return Table(place, columns, int(files.counts.sum()), class_names)


def _values(column: pa.ChunkedArray) -> list[Any]:
    """A column as Python has it. Arrow does not check that texts are UTF-8."""
    import pyarrow

    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        kind = column.type
        texts = column.cast(kind.value_type) if pyarrow.types.is_dictionary(kind) else column
        values = [None if one is None else text_of(one) for one in texts.cast(pyarrow.large_binary()).to_pylist()]
    return values


def class_names_of(schema: pa.Schema) -> dict[str, list[str]]:
    """Names of classes by column, from the metadata of Hugging Face."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: one["names"] for name, one in features.items() if one.get("_type") == "ClassLabel"}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _image_column(schema: pa.Schema, table: Table) -> str:
    """The column of images: one with a usual name, or the only one that holds bytes."""
    with_bytes = {field.name.casefold(): field.name for field in schema if _holds_bytes(field.type)}
    usual = next((with_bytes[name] for name in USUAL_COLUMNS if name in with_bytes), None)
    column = usual or (next(iter(with_bytes.values())) if len(with_bytes) == 1 else None)
    column = column or table.usual_column(USUAL_IMAGES)
    if column is None:
        raise RequestError("data.no_image_column", table=table.place, names=", ".join(schema.names))
    return column


def _ids_of(files: ArrowFiles, image: str) -> list[str]:
    """The paths in the cells if all rows have different ones, else file and row."""
    from pyarrow import compute

    kind = files.schema.field(image).type
    if not _is_bytes(kind) and kind.get_field_index("path") >= 0:
        paths: list[str | None] = compute.struct_field(files.read([f"{image}.path"]).column(image), "path").to_pylist()
        if None not in paths and len(set(paths)) == len(paths):
            return [str(path) for path in paths]
    counts = zip(files.paths, files.counts.tolist(), strict=True)
    above = os.path.commonpath([path.parent for path in files.paths])
    return [f"{os.path.relpath(path, above)}[{row}]" for path, count in counts for row in range(count)]


def _holds_bytes(kind: pa.DataType) -> bool:
    import pyarrow.types as types

    return _is_bytes(kind) or (types.is_struct(kind) and kind.get_field_index("bytes") >= 0)


def _is_bytes(kind: pa.DataType) -> bool:
    import pyarrow.types as types

    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind))
