"""`hdf5:FILE?images=x&labels=y`: pixels and labels in HDF5 datasets, as PatchCamelyon ships.

`{split}` in the address stands for the split's name. Images are uint8 [N, H, W, 3], [N, H, W, 1] or [N, H, W]. Labels are integers
[N] (or [N, 1, 1, 1]), in the same file or, as `labels=OTHERFILE::y`, in one beside it:

    hdf5:pcam/camelyonpatch_level_2_split_{split}_x.h5?labels=camelyonpatch_level_2_split_{split}_y.h5::y

Both datasets lie in their file as a whole: links to other files, external storage and virtual datasets of other files are refused.
A file is opened once a process: HDF5 handles survive neither pickling nor a fork.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import h5py  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from layerbank.cache.maintenance.hdf5_inside import place_outside

from ..errors import RequestError, advice
from .image_files import not_a_file
from .image_source import ImageSource, Stored, classes_by_value, split_where
from .patterns import SPLIT, data_name, no_such_split, require_split, splits_of
from .sources import DataSource

IMAGE_NAMES = ("images", "x", "data")  # tried in this order where the address names no dataset
LABEL_NAMES = ("labels", "label", "y")
CLASS_NAME_ATTRIBUTES = ("class_names", "classes")  # of the labels dataset or of a file
DEFAULT_CHUNK_CACHE_BYTES = 1 << 20  # HDF5's own
BLOCK_BYTES = 8 << 20  # read at a time where every row is read


class Hdf5Source(ImageSource):
    """The rows of an images dataset, in its order; ids are `<file>[<row>]`."""

    keeps_order = True

    def __init__(self, address: str, split: str) -> None:
        data = f"hdf5:{address}"
        require_split(data)
        parts = _parse(address)
        self._path = Path(parts.image_file.replace(SPLIT, split))
        if not self._path.exists():
            raise no_such_split(data, split, str(self._path), splits_of(parts.image_file))
        with _open(self._path) as file:
            images = _dataset(file, parts.images.replace(SPLIT, split), IMAGE_NAMES, "images")
            _require_pixels(images)
            self._dataset_name = images.name
            num_images, image_bytes = images.shape[0], math.prod(images.shape[1:])
            self._chunk_cache_bytes = max(DEFAULT_CHUNK_CACHE_BYTES, _chunk_row_bytes(images))
            self._block_rows = _block_rows(images)
            class_names = _class_names(file)
        self.origin = f"hdf5:{os.path.abspath(self._path)}::{self._dataset_name}"
        labels, label_class_names = _read_labels(parts, split)
        if len(labels) != num_images:
            raise RequestError("data.label_count", data=data, split=split, images=num_images, labels=len(labels))
        self._open_in: tuple[int, h5py.Dataset] | None = None
        names = label_class_names or class_names
        if not names:
            labels, names = classes_by_value(labels)
        if labels.max() >= len(names):
            place = f"{data}, split {split}"
            raise RequestError("data.class_without_name", place=place, count=len(names), label=labels.max())
        super().__init__(
            name=data_name(parts.image_file),
            split=split,
            ids=[f"{self._path.name}[{row}]" for row in range(num_images)],
            labels=labels,
            class_names=names,
            sizes=np.full(num_images, image_bytes),
        )

    def read(self, row: int) -> NDArray[np.uint8]:
        return _plain(self._open_dataset()[row])

    def read_each(self, rows: NDArray[np.int64]) -> Iterator[Stored | None]:
        """Yield images as `ImageSource.read_each`; chunks are read and unpacked once for all of their rows."""
        self._open_in = None
        blocks = rows // self._block_rows
        for wanted in split_where(blocks[1:] != blocks[:-1], rows):
            first, last = int(wanted[0]), int(wanted[-1])
            try:
                block = self._open_dataset()[first : last + 1]
            except OSError:  # one chunk is damaged; the others can be read
                yield from map(self._read_or_none, wanted.tolist())
            else:
                for row in wanted.tolist():
                    yield _plain(block[row - first])

    def files(self) -> tuple[Sequence[Path], NDArray[np.int64]]:
        return (self._path.absolute(),), np.zeros(len(self), dtype=np.int64)

    def _open_dataset(self) -> h5py.Dataset:
        if self._open_in is None or self._open_in[0] != os.getpid():
            # a chunk that does not fit the cache is read and unpacked again for every row in it
            file = h5py.File(self._path, "r", rdcc_nbytes=self._chunk_cache_bytes)
            self._open_in = (os.getpid(), file[self._dataset_name])
        return self._open_in[1]

    def file_of(self, row: int) -> str:
        return f"{self._path}::{self._dataset_name}"

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open_in": None}


class _Address(NamedTuple):
    """Files and datasets of an address, `{split}` in any of them; a dataset without a name is found by the usual names."""

    image_file: str
    images: str
    label_file: str
    labels: str


def _parse(address: str) -> _Address:
    path, _, query = address.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := sorted(set(options) - {"images", "labels"}):
        todo = advice(unknown[0], ["images", "labels"])
        raise RequestError("data.unknown_hdf5_option", address=address, option=unknown[0], advice=todo)
    path = os.path.expanduser(path)
    other, colons, labels = options.get("labels", "").rpartition("::")
    label_file = os.path.join(os.path.dirname(path), os.path.expanduser(other)) if colons else path
    return _Address(path, options.get("images", ""), label_file, labels)


def _open(path: Path) -> h5py.File:
    if not path.exists():
        raise RequestError("data.no_hdf5_file", path=path)
    if problem := not_a_file(path):
        raise RequestError("data.not_hdf5", path=path, reason=problem)
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise RequestError("data.not_hdf5", path=path, reason=error) from error


def _dataset(file: h5py.File, name: str, defaults: tuple[str, ...], option: str) -> h5py.Dataset:
    """The dataset called `name`, or the first of the default names that exists. Nothing outside the file is opened."""
    names = (name,) if name else defaults
    for candidate in names:
        if place := place_outside(file, candidate):
            raise RequestError("data.hdf5_outside", dataset=f"{file.filename}::{candidate}", place=place)
        if isinstance(file.get(candidate), h5py.Dataset):
            return file[candidate]
    present: list[str] = []
    file.visititems(lambda path, item: present.append(path) if isinstance(item, h5py.Dataset) else None)
    values = {"names": " or ".join(names), "present": ", ".join(present[:10]) or "none", "option": option}
    raise RequestError("data.no_hdf5_dataset", file=file.filename, **values)


def _require_pixels(images: h5py.Dataset) -> None:
    shape: tuple[int, ...] = images.shape or ()
    grey = len(shape) == 3 or (len(shape) == 4 and shape[3] == 1)
    if images.dtype != np.uint8 or not (grey or (len(shape) == 4 and shape[3] == 3)) or 0 in shape:
        dataset = f"{images.file.filename}::{images.name}"
        raise RequestError("data.not_pixels", dataset=dataset, dtype=images.dtype, shape=list(shape))


def _chunk_row_bytes(images: h5py.Dataset) -> int:
    """Bytes of all chunks that a row lies in; 0 for a dataset without chunks."""
    if images.chunks is None:
        return 0
    covered = (-(-size // chunk) * chunk for size, chunk in zip(images.shape[1:], images.chunks[1:], strict=True))
    return int(images.chunks[0] * math.prod(covered))


def _block_rows(images: h5py.Dataset) -> int:
    """Rows of whole chunks that are read together."""
    chunk_rows = images.chunks[0] if images.chunks else 1
    chunk_bytes = chunk_rows * math.prod(images.shape[1:])
    return int(chunk_rows * max(1, BLOCK_BYTES // chunk_bytes))


def _plain(pixels: Any) -> NDArray[np.uint8]:
    """An image [H, W, 3] or [H, W], without an axis of one colour."""
    image = np.asarray(pixels, dtype=np.uint8)
    return image[..., 0] if image.shape[2:] == (1,) else image


def _read_labels(parts: _Address, split: str) -> tuple[NDArray[np.int64], list[str]]:
    """Labels [N] and the class names written beside them, if any."""
    with _open(Path(parts.label_file.replace(SPLIT, split))) as file:
        dataset = _dataset(file, parts.labels.replace(SPLIT, split), LABEL_NAMES, "labels")
        values = np.asarray(dataset[()])
        place, class_names = f"{file.filename}::{dataset.name}", _class_names(dataset) or _class_names(file)
    if values.dtype.kind not in "iub" or not values.ndim or not values.size == len(values) > 0:
        raise RequestError("data.not_labels", dataset=place, dtype=values.dtype, shape=list(values.shape))
    labels = values.reshape(-1).astype(np.int64)  # uint64 beyond 2^63 becomes negative
    if labels.min() < 0:
        raise RequestError("data.negative_label", dataset=place, label=values.reshape(-1)[labels.argmin()])
    return labels, class_names


def _class_names(holder: h5py.File | h5py.Dataset) -> list[str]:
    for attribute in CLASS_NAME_ATTRIBUTES:
        if attribute in holder.attrs:
            names = np.ravel(holder.attrs[attribute])
            return [name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in names]
    return []


HDF5 = DataSource(
    form="hdf5:FILE_{split}.h5?images=x&labels=y",
    meaning="HDF5 datasets of pixels and labels",
    example="hdf5:cells_{split}.h5?images=images&labels=labels",
    open=Hdf5Source,
)
