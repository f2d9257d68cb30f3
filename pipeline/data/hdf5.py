"""`hdf5:FILE?images=x&labels=y`: pixels and labels in HDF5 datasets, as PatchCamelyon ships.

`{split}` in the address stands for the split's name. Images are uint8 [N, H, W, 3], [N, H, W, 1] or
[N, H, W]. Labels are integers [N] (or [N, 1, 1, 1]), in the same file or, as `labels=OTHERFILE::y`, in one
beside it:

    hdf5:pcam/camelyonpatch_level_2_split_{split}_x.h5?labels=camelyonpatch_level_2_split_{split}_y.h5::y

A file is opened once a process: HDF5 handles survive neither pickling nor a fork.
"""

from __future__ import annotations

import difflib
import math
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

import h5py  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError
from .image_source import ImageSource
from .patterns import data_name, fill_split, no_such_split, require_split, splits_of

IMAGE_NAMES = ("images", "x", "data")  # tried in this order where the address names no dataset
LABEL_NAMES = ("labels", "label", "y")
CLASS_NAME_ATTRIBUTES = ("class_names", "classes")  # of the labels dataset or of a file
DEFAULT_CHUNK_CACHE_BYTES = 1 << 20  # HDF5's own


class Hdf5Source(ImageSource):
    """The rows of an images dataset, in its order; ids are `<file>[<row>]`."""

    def __init__(self, address: str, split: str) -> None:
        require_split(f"hdf5:{address}")
        place = _Place.parse(address)
        self._path = place.image_file(split)
        if not self._path.is_file():
            raise no_such_split(
                f"hdf5:{address}, split {split}", f"the file {self._path}", splits_of(place.image_pattern)
            )
        with _open(self._path) as file:
            images = _dataset(file, fill_split(place.images, split), IMAGE_NAMES, "images")
            _require_pixels(images)
            self._dataset_name = images.name
            num_images, image_bytes = images.shape[0], math.prod(images.shape[1:])
            self._chunk_cache_bytes = max(DEFAULT_CHUNK_CACHE_BYTES, _chunk_row_bytes(images))
            class_names = _class_names(file)
        labels, label_class_names = _read_labels(place, split)
        if len(labels) != num_images:
            raise RequestError(
                where=f"hdf5:{address}, split {split}",
                expected=f"{num_images} labels, one an image",
                got=str(len(labels)),
                todo="Check that both datasets belong to the same split.",
            )
        self._open_in: tuple[int, h5py.Dataset] | None = None
        names = label_class_names or class_names or _numbers_of_all_splits(place, split, labels)
        if labels.max() >= len(names):
            raise RequestError(
                where=f"labels of hdf5:{address}, split {split}",
                expected=f"classes from 0 to {len(names) - 1}, as many as there are class names",
                got=str(labels.max()),
                todo="Correct the labels or the class names.",
            )
        super().__init__(
            name=data_name(place.image_pattern),
            split=split,
            ids=[f"{self._path.name}[{row}]" for row in range(num_images)],
            labels=labels,
            class_names=names,
            locations=[f"{self._path.name}:{self._dataset_name}"],
            sizes=np.full(num_images, image_bytes),
        )

    def read(self, row: int) -> NDArray[np.uint8]:
        if self._open_in is None or self._open_in[0] != os.getpid():
            # a chunk that does not fit the cache is read and unpacked again for every row in it
            file = h5py.File(self._path, "r", rdcc_nbytes=self._chunk_cache_bytes)
            self._open_in = (os.getpid(), file[self._dataset_name])
        pixels = np.asarray(self._open_in[1][row], dtype=np.uint8)
        return pixels[..., 0] if pixels.shape[2:] == (1,) else pixels

    def file_of(self, row: int) -> str:
        return f"{self._path}::{self._dataset_name}"

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open_in": None}


@dataclass(frozen=True)
class _Place:
    """The parts of an address; `{split}` may stand in each. Empty names are looked for."""

    image_pattern: str
    images: str
    label_pattern: str
    labels: str

    @classmethod
    def parse(cls, address: str) -> _Place:
        path, _, query = address.partition("?")
        options = dict(parse_qsl(query, keep_blank_values=True))
        if unknown := sorted(set(options) - {"images", "labels"}):
            nearest = difflib.get_close_matches(unknown[0], ["images", "labels"], n=1, cutoff=0)[0]
            raise RequestError(
                where=f"hdf5:{address}",
                expected="no options but images and labels",
                got=unknown[0],
                todo=f"Did you mean {nearest}?",
            )
        path = os.path.expanduser(path)
        other, colons, labels = options.get("labels", "").rpartition("::")
        label_pattern = os.path.join(os.path.dirname(path), os.path.expanduser(other)) if colons else path
        return cls(path, options.get("images", ""), label_pattern, labels)

    def image_file(self, split: str) -> Path:
        return Path(fill_split(self.image_pattern, split))

    def label_file(self, split: str) -> Path:
        return Path(fill_split(self.label_pattern, split))


def _open(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise RequestError(
            where=str(path),
            expected="an HDF5 file",
            got="nothing there" if not path.exists() else f"a file that HDF5 cannot open ({error})",
            todo="Check the path; copy or download the file again if it was cut.",
        ) from error


def _dataset(file: h5py.File, name: str, defaults: tuple[str, ...], option: str) -> h5py.Dataset:
    """The dataset called `name`, or the first of the default names that exists."""
    for candidate in (name,) if name else defaults:
        if isinstance(file.get(candidate), h5py.Dataset):
            return file[candidate]
    present: list[str] = []
    file.visititems(lambda path, item: present.append(path) if isinstance(item, h5py.Dataset) else None)
    raise RequestError(
        where=file.filename,
        expected=f"the dataset {name}" if name else f"a dataset called {' or '.join(defaults)}",
        got=f"the datasets {', '.join(present[:10])}" if present else "no datasets",
        todo=f"Name it: ?{option}=NAME"
        + (", or ?labels=OTHERFILE::NAME for a file beside it." if option == "labels" else "."),
    )


def _require_pixels(images: h5py.Dataset) -> None:
    shape: tuple[int, ...] = images.shape or ()
    grey = len(shape) == 3 or (len(shape) == 4 and shape[3] == 1)
    if images.dtype != np.uint8 or not (grey or (len(shape) == 4 and shape[3] == 3)) or 0 in shape:
        raise RequestError(
            where=f"{images.file.filename}::{images.name}",
            expected="images as uint8 [N, H, W, 3], [N, H, W, 1] or [N, H, W]",
            got=f"{images.dtype} {list(shape)}",
            todo="Name another dataset with ?images=NAME, or convert this one.",
        )


def _chunk_row_bytes(images: h5py.Dataset) -> int:
    """Bytes of all chunks that a row lies in; 0 for a dataset without chunks."""
    if images.chunks is None:
        return 0
    covered = (-(-size // chunk) * chunk for size, chunk in zip(images.shape[1:], images.chunks[1:], strict=True))
    return int(images.chunks[0] * math.prod(covered))


def _read_labels(place: _Place, split: str) -> tuple[NDArray[np.int64], list[str]]:
    """Labels [N] and the class names written beside them, if any."""
    with _open(place.label_file(split)) as file:
        dataset = _dataset(file, fill_split(place.labels, split), LABEL_NAMES, "labels")
        values = np.asarray(dataset[()])
        where, class_names = f"{file.filename}::{dataset.name}", _class_names(dataset) or _class_names(file)
    one_number_a_row = values.ndim > 0 and values.size == len(values) > 0
    if values.dtype.kind not in "iub" or not one_number_a_row or values.min() < 0:
        negative = values.dtype.kind == "i" and values.size > 0 and values.min() < 0
        raise RequestError(
            where=where,
            expected="one class index an image: integers [N], none negative",
            got=f"{values.dtype} {list(values.shape)}" + (f" with {values.min()}" if negative else ""),
            todo="Name another dataset with ?labels=NAME.",
        )
    return values.reshape(-1).astype(np.int64), class_names


def _class_names(holder: h5py.File | h5py.Dataset) -> list[str]:
    for attribute in CLASS_NAME_ATTRIBUTES:
        if attribute in holder.attrs:
            names = np.ravel(holder.attrs[attribute])
            return [name.decode() if isinstance(name, bytes) else str(name) for name in names]
    return []


def _numbers_of_all_splits(place: _Place, split: str, labels: NDArray[np.int64]) -> list[str]:
    """Class names where the files give none: the numbers up to the highest class of any split."""
    highest = int(labels.max())
    for other in splits_of(place.label_pattern):
        if other != split:
            highest = max(highest, int(_read_labels(place, other)[0].max()))
    return [str(number) for number in range(highest + 1)]
