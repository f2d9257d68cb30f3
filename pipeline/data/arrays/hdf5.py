"""`hdf5:FILE?images=x&labels=y`: images and labels in HDF5 datasets, as PatchCamelyon ships.

`{split}` in the address stands for the split's name. Images are uint8 [N, H, W, 3], [N, H, W, 1], [N, H, W] or [N, C, H, W] with C
1 or 3; numbers of another dtype with the values of black and white declared, `range=0,1`; or encoded bytes [N]. Labels are integers
or texts [N] (or [N, 1, 1, 1]), or one-hot [N, C], in the same file or, as `labels=OTHERFILE::y`, in one beside it:

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

import h5py  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from layerbank.cache.maintenance.hdf5_inside import place_outside

from ...errors import RequestError
from ..image_files import not_a_file
from ..image_source import ImageSource, Stored, classes_by_value, split_where
from ..patterns import SPLIT, data_name, no_such_split, parse_options, require_split, splits_of
from ..pixels import Range, as_bytes, parse_range
from ..sources import DataSource
from ..tables.class_column import classes_of, text_of
from ..task_of_values import matrix_of

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
            self.value_range = parts.range
            self._is_channels_first = _check_images(images, self.value_range)
            self._dataset_name = images.name
            num_images = images.shape[0]
            image_bytes = math.prod(images.shape[1:]) if images.ndim > 1 else self._path.stat().st_size // num_images
            self._chunk_cache_bytes = max(DEFAULT_CHUNK_CACHE_BYTES, _chunk_row_bytes(images))
            self._block_rows = _block_rows(images, image_bytes)
            class_names = _class_names(file)
        self.origin = f"hdf5:{os.path.abspath(self._path)}::{self._dataset_name}"
        labels, label_class_names = _read_labels(parts, split)
        if len(labels) != num_images:
            raise RequestError("data.label_count", data=data, split=split, images=num_images, labels=len(labels))
        self._open_in: tuple[int, h5py.Dataset] | None = None
        are_numbers = labels.dtype.kind == "f"
        names = [] if are_numbers else label_class_names or class_names
        if not (names or are_numbers):
            labels, names = classes_by_value(labels)
        if not are_numbers and labels.max() >= len(names):
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

    def read(self, row: int) -> bytes | NDArray[np.uint8]:
        return self._plain(self._open_dataset()[row])

    def _plain(self, value: Any) -> bytes | NDArray[np.uint8]:
        """Encoded bytes, or pixels [H, W, 3] or [H, W] without an axis of one colour."""
        if np.ndim(value) < 2:
            return value if isinstance(value, bytes) else np.asarray(value).tobytes()
        image = np.asarray(value)
        if self._is_channels_first:
            image = np.ascontiguousarray(image.transpose(1, 2, 0))
        if self.value_range:
            image = as_bytes(image, self.value_range)
        return image[..., 0] if image.shape[2:] == (1,) else image

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
                    try:
                        yield self._plain(block[row - first])
                    except ValueError:  # values that are no numbers
                        yield None

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
    range: Range | None


def _parse(address: str) -> _Address:
    path, options = parse_options("hdf5", address, ("images", "labels", "range"))
    other, colons, labels = options.get("labels", "").rpartition("::")
    label_file = os.path.join(os.path.dirname(path), os.path.expanduser(other)) if colons else path
    limits = parse_range(f"hdf5:{address}", options)
    return _Address(path, options.get("images", ""), label_file, labels, limits)


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


def _check_images(images: h5py.Dataset, limits: Range | None) -> bool:
    """Whether the axis of colours comes before height and width.

    Raises:
        RequestError: neither pixels nor encoded bytes; or pixels that are not uint8, and no range of values is declared.
    """
    shape: tuple[int, ...] = images.shape or ()
    is_encoded = len(shape) == 1 and (images.dtype.kind in "SV" or h5py.check_vlen_dtype(images.dtype) == np.uint8)
    grey = len(shape) == 3 or (len(shape) == 4 and shape[3] == 1)
    channels_last = grey or (len(shape) == 4 and shape[3] == 3)
    channels_first = not channels_last and len(shape) == 4 and shape[1] in (1, 3)
    place, fits = f"{images.file.filename}::{images.name}", is_encoded or channels_last or channels_first
    is_number = images.dtype.kind in "uif"
    if fits and not is_encoded and is_number and images.dtype != np.uint8 and limits is None and 0 not in shape:
        raise RequestError("data.range_not_declared", dataset=place, dtype=images.dtype)
    if not fits or 0 in shape or not (is_encoded or is_number):
        raise RequestError("data.not_pixels", dataset=place, dtype=images.dtype, shape=list(shape))
    return channels_first


def _chunk_row_bytes(images: h5py.Dataset) -> int:
    """Bytes of all chunks that a row lies in; 0 for a dataset without chunks."""
    if images.chunks is None:
        return 0
    covered = (-(-size // chunk) * chunk for size, chunk in zip(images.shape[1:], images.chunks[1:], strict=True))
    return int(images.chunks[0] * math.prod(covered))


def _block_rows(images: h5py.Dataset, image_bytes: int) -> int:
    """Rows of whole chunks that are read together."""
    chunk_rows = images.chunks[0] if images.chunks else 1
    chunk_bytes = max(1, chunk_rows * image_bytes)
    return int(chunk_rows * max(1, BLOCK_BYTES // chunk_bytes))


def _read_labels(parts: _Address, split: str) -> tuple[NDArray[Any], list[str]]:
    """Labels as `ImageSource` takes them, and the class names written beside them, if any."""
    with _open(Path(parts.label_file.replace(SPLIT, split))) as file:
        dataset = _dataset(file, parts.labels.replace(SPLIT, split), LABEL_NAMES, "labels")
        is_text = h5py.check_string_dtype(dataset.dtype) is not None
        values = np.asarray(dataset.asstr(errors="surrogateescape")[()] if is_text else dataset[()])
        place, class_names = f"{file.filename}::{dataset.name}", _class_names(dataset) or _class_names(file)
    if values.ndim == 2 and values.shape[1] > 1 and values.dtype.kind in "iubf":
        return matrix_of(values, class_names)
    if (values.dtype.kind not in "iubf" and not is_text) or not values.ndim or not values.size == len(values) > 0:
        raise RequestError("data.not_labels", dataset=place, dtype=values.dtype, shape=list(values.shape))
    if is_text or values.dtype.kind == "f":
        texts = values.reshape(-1).tolist()
        return classes_of(texts, [f"[{row}]" for row in range(len(texts))], place)
    labels = values.reshape(-1).astype(np.int64)  # uint64 beyond 2^63 becomes negative
    if labels.min() < 0:
        raise RequestError("data.negative_label", dataset=place, label=values.reshape(-1)[labels.argmin()])
    return labels, class_names


def _class_names(holder: h5py.File | h5py.Dataset) -> list[str]:
    for attribute in CLASS_NAME_ATTRIBUTES:
        if attribute in holder.attrs:
            names = np.ravel(holder.attrs[attribute])
            return [text_of(name) for name in names.tolist()]
    return []


HDF5 = DataSource(
    form="hdf5:FILE_{split}.h5?images=x&labels=y",
    meaning="HDF5 datasets of pixels or encoded images, and labels; ?range=0,1 for floats",
    example="hdf5:cells_{split}.h5?images=images&labels=labels",
    open=Hdf5Source,
)
