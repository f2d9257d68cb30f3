"""`npz:FILE`: pixels and labels in arrays of a NumPy file.

Images are uint8 [N, H, W, 3], [N, H, W, 1] or [N, H, W], or numbers of another dtype with the values of black and white declared,
`?range=0,1`; labels [N] or [N, 1] are whole numbers or texts. The split is in the name of the file (`{split}` in the address), in
the names of the arrays (`train_images`, `x_train`, as MedMNIST and Keras have them), or in an array `split` [N]; else a fraction of
each class is held out (`?split=0.2`). An array `class_names` names the classes.

`np.savez` stores arrays as they are: they are mapped into memory. Those of `np.savez_compressed` are unpacked, in each process.
"""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...errors import RequestError, first_line
from ..image_files import not_a_file
from ..image_source import ImageSource
from ..patterns import SPLIT, data_name, no_such_split, parse_options, splits_of
from ..pixels import Range, as_bytes, parse_range
from ..saved_arrays import DAMAGE
from ..sources import DataSource
from ..table import Table
from ..tables.class_column import text_of
from ..tables.listed import choose_rows, labels_of
from ..task_of_values import matrix_of

OPTIONS = ("images", "labels", "split", "group", "seed", "range")
IMAGE_NAMES = ("images", "x", "data")
LABEL_NAMES = ("labels", "label", "y")
CLASS_NAMES = ("class_names", "classes")
_LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip member: lengths of its name and its extra field


class NpzSource(ImageSource):
    """Rows of an array of images; ids are `<file>[<row>]`, with the name of the array where it is that of a split."""

    keeps_order = True

    def __init__(self, address: str, split: str) -> None:
        pattern, options = parse_options("npz", address, OPTIONS)
        data, is_whole = f"npz:{address}", SPLIT in pattern
        self.value_range = parse_range(data, options)
        self._path = Path(pattern.replace(SPLIT, split))
        if is_whole and not self._path.exists():
            raise no_such_split(data, split, str(self._path), splits_of(pattern))
        self._open_in: tuple[int, NDArray[Any]] | None = None
        members = _members(self._path)
        found = _find(members, options.get("images", ""), IMAGE_NAMES, split, self._path)
        if found is None:
            names, present = ", ".join(IMAGE_NAMES), ", ".join(members) or "none"
            raise RequestError("data.no_npz_array", file=self._path, names=names, present=present)
        self._array, of_split = found
        images = self._images()
        _require_pixels(f"{self._path}::{self._array}", images, self.value_range)
        columns = _columns(self._path, members, options, split, len(images))
        class_names = _class_names(self._path, members) if "labels" in columns else {}
        prefix = f"{self._path.name}::{self._array}" if of_split else self._path.name
        ids = [f"{prefix}[{row}]" for row in range(len(images))]
        table = Table(str(self._path), columns, len(images), class_names)
        table_options = {name: text for name, text in options.items() if name in ("split", "group", "seed")}
        rows = choose_rows(table, table_options, split, ids=ids, data=data, is_whole=is_whole or of_split)
        self._rows, self.table = rows, table.take(rows)
        self.groups = self.table.groups(options.get("group"))
        chosen = [ids[row] for row in rows.tolist()]
        labels, classes = labels_of(self.table, {}, chosen)
        if (matrix := _label_matrix(self._path, members, options, split, len(images))) is not None:
            labels, classes = matrix_of(matrix[rows], _names_of(self._path, members))
        self.origin = f"npz:{os.path.abspath(self._path)}::{self._array}"
        super().__init__(
            name=data_name(pattern) if is_whole else self._path.stem,
            split=split,
            ids=chosen,
            labels=labels,
            class_names=classes,
            sizes=np.full(len(rows), images[0].nbytes),
        )

    def read(self, row: int) -> NDArray[np.uint8]:
        image = np.array(self._images()[self._rows[row]])
        if self.value_range:
            image = as_bytes(image, self.value_range)
        return image[..., 0] if image.shape[2:] == (1,) else image

    def file_of(self, row: int) -> str:
        return f"{self._path}::{self._array}[{self._rows[row]}]"

    def files(self) -> tuple[Sequence[Path], NDArray[np.int64]]:
        return (self._path.absolute(),), np.zeros(len(self), dtype=np.int64)

    def _images(self) -> NDArray[Any]:
        if self._open_in is None or self._open_in[0] != os.getpid():
            self._open_in = (os.getpid(), _map_array(self._path, self._array))
        return self._open_in[1]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open_in": None, "table": None}


def _members(path: Path) -> list[str]:
    """Names of the arrays of a file."""
    if not path.exists():
        raise RequestError("data.no_table", file=path)
    try:
        if problem := not_a_file(path):
            raise OSError(problem)
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    except DAMAGE as error:
        raise RequestError("data.bad_npz", file=path, reason=first_line(error)) from error


def _find(members: list[str], name: str, usual: Sequence[str], split: str, path: Path) -> tuple[str, bool] | None:
    """The array of a name, or of a usual one if that is empty, and whether the name of the split is in it."""
    if name:
        candidates = [(name.replace(SPLIT, split), SPLIT in name)]
    else:
        candidates = [
            (form.format(one, split), "{1}" in form) for form in ("{1}_{0}", "{0}_{1}", "{0}") for one in usual
        ]
    found = next((one for one in candidates if one[0] in members), None)
    if name and found is None:
        raise RequestError("data.no_npz_array", file=path, names=name, present=", ".join(members) or "none")
    return found


def _columns(
    path: Path, members: list[str], options: Mapping[str, str], split: str, num_images: int
) -> dict[str, list[Any]]:
    """The arrays with a value for each image, by name; the labels are called `labels`."""
    labels = _find(members, options.get("labels", ""), LABEL_NAMES, split, path)
    is_matrix = _label_matrix(path, members, options, split, num_images) is not None
    arrays = {} if labels is None or is_matrix else {"labels": labels[0]}
    arrays |= {name: name for name in (options.get("split"), options.get("group"), "split") if name in members}
    return {name: _values(path, array, num_images) for name, array in arrays.items()}


def _label_matrix(
    path: Path, members: list[str], options: Mapping[str, str], split: str, num_images: int
) -> NDArray[Any] | None:
    """Labels [N, K] of several columns; None where they have one."""
    found = _find(members, options.get("labels", ""), LABEL_NAMES, split, path)
    array = None if found is None else _map_array(path, found[0])
    if array is None or array.ndim != 2 or array.dtype.kind not in "iubf":
        return None
    return array if array.shape[0] == num_images and array.shape[1] > 1 else None


def _values(path: Path, name: str, num_images: int) -> list[Any]:
    array = _map_array(path, name)
    if array.shape not in ((num_images,), (num_images, 1)):
        raise RequestError("data.npz_values", array=f"{path}::{name}", count=num_images, shape=list(array.shape))
    values: list[Any] = array.reshape(-1).tolist()
    return [text_of(value) if isinstance(value, bytes) else value for value in values]


def _class_names(path: Path, members: list[str]) -> dict[str, list[str]]:
    names = _names_of(path, members)
    return {"labels": names} if names else {}


def _names_of(path: Path, members: list[str]) -> list[str]:
    name = next((one for one in CLASS_NAMES if one in members), None)
    return [] if name is None else [text_of(one) for one in _map_array(path, name).reshape(-1).tolist()]


def _require_pixels(place: str, images: NDArray[Any], limits: Range | None) -> None:
    shape, is_number = images.shape, images.dtype.kind in "uif"
    if not is_number or len(shape) not in (3, 4) or shape[3:] not in ((), (1,), (3,)) or 0 in shape:
        raise RequestError("data.not_pixels", dataset=place, dtype=images.dtype, shape=list(shape))
    if images.dtype != np.uint8 and limits is None:
        raise RequestError("data.range_not_declared", dataset=place, dtype=images.dtype)


def _map_array(path: Path, name: str) -> NDArray[Any]:
    """An array of a file: mapped if it is stored as it is, else unpacked. Objects, which are pickles, are refused."""
    try:
        with zipfile.ZipFile(path) as archive:
            info = archive.getinfo(f"{name}.npy")
            with archive.open(info) as member:
                version = np.lib.format.read_magic(member)
                read_header = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
                shape, is_fortran, dtype = read_header(member)
                header_bytes = member.tell()
            if dtype.hasobject:
                raise ValueError("an array of Python objects")
            if info.compress_type != zipfile.ZIP_STORED or not np.prod(shape):
                with archive.open(info) as member:
                    array: NDArray[Any] = np.lib.format.read_array(member, allow_pickle=False)
                return array
        with open(path, "rb") as file:
            file.seek(info.header_offset)
            offset = info.header_offset + 30 + sum(_LOCAL_HEADER.unpack(file.read(30)))
        order: Literal["F", "C"] = "F" if is_fortran else "C"
        mapped: NDArray[Any] = np.memmap(str(path), dtype, "r", offset + header_bytes, shape, order)
        return mapped
    except DAMAGE as error:
        raise RequestError("data.bad_npz", file=f"{path}::{name}", reason=first_line(error)) from error


NPZ = DataSource(
    form="npz:FILE?images=x&labels=y",
    meaning="arrays of pixels and labels in a NumPy file, a file or a pair of arrays a split",
    example="npz:cells_{split}.npz",
    open=NpzSource,
)
