"""`hf:DIR` and `hf:ORG/NAME`: data sets as the libraries of Hugging Face keep them.

A folder is what `save_to_disk` wrote, Parquet files named after their splits, or images beside a `metadata.csv`; it is read with
pyarrow alone. A data set of the hub is opened by the `datasets` library, which downloads it into its cache, and read from there.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import RequestError, first_line
from ...quantities import few
from ..image_files import not_a_file
from ..image_source import ImageSource
from ..patterns import no_such_split, parse_options, read_text
from ..sources import DataSource
from .arrow import ArrowFiles, open_arrow
from .listed import OPTIONS, open_listed
from .parquet import ParquetFiles
from .text import READERS, read_table

if TYPE_CHECKING:
    import pyarrow as pa

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+|[\w.-]+")
HUB_OPTIONS = (*OPTIONS, "config", "revision")


class StreamFiles(ArrowFiles):
    """Arrow streams on the disk, mapped into memory in each process that reads them.

    Raises:
        RequestError: as `ArrowFiles`, pyarrow is not installed, or a file is missing or damaged.
    """

    has_exact_sizes = True

    def __init__(self, paths: Sequence[Path]) -> None:
        self._tables: list[Any] | None = [_open_stream(path) for path in paths]
        super().__init__(paths, [one.schema for one in self._tables], [one.num_rows for one in self._tables])

    def read(self, columns: Sequence[str]) -> pa.Table:
        import pyarrow

        tables = [table.select([name.partition(".")[0] for name in columns]) for table in self._open()]
        return pyarrow.concat_tables(tables)

    def cell(self, column: str, row: int) -> Any:
        stops = np.cumsum(self.counts)
        file = int(np.searchsorted(stops, row, side="right"))
        return self._open()[file].column(column)[row - int(stops[file] - self.counts[file])].as_py()

    def sizes(self, column: str) -> NDArray[np.int64]:
        from pyarrow import compute, types

        images = self.read([column]).column(column)
        if types.is_struct(images.type):
            images = compute.struct_field(images, "bytes")
        lengths: NDArray[np.int64] = compute.fill_null(compute.binary_length(images), 0).to_numpy()
        return lengths.astype(np.int64)

    def _open(self) -> list[Any]:
        if self._tables is None:
            self._tables = [_open_stream(path) for path in self.paths]
        return self._tables

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_tables": None}


def _open_stream(path: Path) -> Any:
    try:
        import pyarrow
    except ImportError:
        raise RequestError("data.no_pyarrow", file=path) from None
    problem = not_a_file(path)
    try:
        if problem:
            raise OSError(problem)
        return pyarrow.ipc.open_stream(pyarrow.memory_map(str(path))).read_all()
    except (pyarrow.ArrowException, OSError) as error:
        raise RequestError("data.bad_arrow", file=path, reason=first_line(error)) from error


def open_hf(address: str, split: str) -> ImageSource:
    """The images of one split.

    Raises:
        RequestError: no such folder or data set, files of another form, or as `open_listed` and `open_arrow`.
    """
    path, options = parse_options("hf", address, HUB_OPTIONS)
    folder = Path(path)
    if folder.is_dir():
        return _open_folder(folder, address, options, split)
    if folder.exists() or not HUB_NAME.fullmatch(path):
        raise RequestError("data.not_a_folder" if folder.exists() else "data.no_such_folder", data=f"hf:{address}")
    return _open_hub(path, address, options, split)


def _open_folder(folder: Path, address: str, options: dict[str, str], split: str) -> ImageSource:
    data, name = f"hf:{address}", folder.resolve().name
    place = str(folder / split)
    for above, is_whole in ((folder, False), (folder / split, True)):
        names: dict[str, Any] = {"data": data, "folder": above, "name": name, "is_whole": is_whole}
        if (above / "state.json").exists():
            return open_arrow(StreamFiles(_saved_files(above)), options, split, place=str(above), **names)
        for table in (above / f"metadata{extension}" for extension in READERS):
            if table.exists():
                return open_listed(read_table(table), options, split, **names)
    if shards := _shards(folder, split):
        return open_arrow(
            ParquetFiles(shards), options, split, data=data, place=place, folder=folder, name=name, is_whole=True
        )
    if splits := _splits_in(folder):
        raise no_such_split(data, split, place, splits)
    raise RequestError("data.no_hf_files", folder=folder)


def _saved_files(folder: Path) -> list[Path]:
    """The files of a data set that `save_to_disk` wrote, in order."""
    file = folder / "state.json"
    try:
        names = [one["filename"] for one in json.loads(read_text(file))["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError("data.bad_arrow", file=file, reason=first_line(error)) from error
    if not names or any(os.path.basename(name) != name for name in names):
        raise RequestError("data.bad_arrow", file=file, reason=f"the files {names}")
    return [folder / name for name in names]


def _shards(folder: Path, split: str) -> list[Path]:
    """The Parquet files of a split, none of which is missing: SPLIT.parquet, SPLIT-00000-of-00005.parquet or SPLIT/*.parquet."""
    own = re.compile(re.escape(split) + r"(?:-([0-9]{1,9})-of-([0-9]{1,9}))?\.parquet")
    for above in (folder, folder / "data"):
        found = [(path, match) for path in sorted(above.glob("*.parquet")) if (match := own.fullmatch(path.name))]
        if not found:
            continue
        numbers = {int(match[1] or 0) for _, match in found}
        counts = {int(match[2] or 1) for _, match in found}
        count = counts.pop()
        if counts or len(numbers) < len(found) or max(numbers) >= count:
            names = few([path.name for path, _ in found])
            raise RequestError("data.mixed_shards", folder=above, split=split, names=names)
        if missing := count - len(numbers):
            first = next(number for number in range(count) if number not in numbers)
            names = f"{first:05} first, {len(numbers)} of {count} are there"
            raise RequestError("data.missing_shards", folder=above, count=count, missing=missing, names=names)
        return [path for path, _ in found]
    return sorted((folder / split).glob("*.parquet"))


def _splits_in(folder: Path) -> list[str]:
    """The names of the splits that a folder has in any of these forms."""
    files = [*folder.glob("*.parquet"), *folder.glob("data/*.parquet")]
    inside = [*folder.glob("*/state.json"), *folder.glob("*/metadata.*"), *folder.glob("*/*.parquet")]
    named = {re.sub(r"(-\d+-of-\d+)?\.parquet", "", file.name) for file in files}
    return sorted(named | {file.parent.name for file in inside if file not in files})


def _open_hub(name: str, address: str, options: dict[str, str], split: str) -> ImageSource:
    try:
        import datasets
    except ImportError:
        raise RequestError("data.no_datasets", address=address) from None
    if "[" in split or "+" in split:  # the library would take it for a part of a split, or a sum
        raise RequestError("data.bad_split_name", uri=f"hf:{address}", split=split)
    config, revision = options.pop("config", None), options.pop("revision", None)
    try:
        opened = datasets.load_dataset(name, config, split=split, revision=revision)
    except Exception as error:  # the library raises errors of many packages
        raise RequestError("data.not_from_hub", address=address, split=split, reason=first_line(error)) from error
    files = StreamFiles([Path(one["filename"]) for one in opened.cache_files])
    names = {"data": f"hf:{address}", "place": f"hf:{address}", "folder": Path(), "name": name.replace("/", "-")}
    source = open_arrow(files, options, split, is_whole=True, **names)  # type: ignore[arg-type]  # a dict of both types
    source.origin = f"hf:{address}"
    return source


HF = DataSource(
    form="hf:DIR | hf:ORG/NAME?config=NAME&image=image&label=label",
    meaning="a data set of Hugging Face: saved, Parquet, metadata.csv, or of the hub (pip install 'layerbank[hf]')",
    example="hf:uoft-cs/cifar10",
    open=open_hf,
)
