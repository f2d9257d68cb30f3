"""The interface of data sources: an ordered list of labelled images, counted before the first one is decoded.

A source knows where each image lies and reads it by row number. It does not know models, transforms, batches or processes, and not
the content of its images: `image_set` hashes that. Pillow is imported when the first image is decoded.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64, xxh3_64_intdigest

from layerbank.cache.rows import HASH_RULE

from ..errors import RequestError, WorkError
from .pixels import JPEG, USUAL, PixelRule, Range
from .task_of_values import NO_LABEL, task_of_values

if TYPE_CHECKING:
    from PIL.Image import Image

    from .table import Table


Stored = bytes | memoryview | NDArray[np.uint8]
"""What a source holds of an image: its encoded bytes, or its pixels [H, W] or [H, W, 3]."""

__all__ = ["BadImage", "HASH_RULE", "ImageSource", "NO_LABEL", "Stored", "row_hash", "row_hash_rule1", "split_where"]


def row_hash(stored: Stored, changes: str = "") -> int:
    """Return the content hash of an image, rule 2: xxh3_64 of its encoded bytes; of dtype, shape and bytes of an array.

    It is never 0, which stands for an image that cannot be read.

    Args:
        stored: the image.
        changes: what decides its pixels beside it, see `decoding.changes_of`; hashed too, unless it is empty.

    >>> row_hash(b"") == row_hash_rule1(b""), row_hash(b"", "background=#ffffff") == row_hash(b"")
    (True, False)
    >>> flat, high = np.zeros((2, 8), dtype=np.uint8), np.zeros((8, 2), dtype=np.uint8)
    >>> row_hash(flat) == row_hash(high), row_hash_rule1(flat) == row_hash_rule1(high)
    (False, True)
    """
    if not changes and not isinstance(stored, np.ndarray):  # nearly every image: at once, which is faster
        return xxh3_64_intdigest(stored) or 1
    digest = xxh3_64()
    if isinstance(stored, np.ndarray):
        digest.update(f"{stored.dtype.str} {'x'.join(map(str, stored.shape))}\n".encode())
        stored = np.ascontiguousarray(stored).data
    digest.update(stored)
    if changes:
        digest.update(f"\n{changes}".encode())
    return digest.intdigest() or 1


def row_hash_rule1(stored: Stored) -> int:
    """Return the content hash in stores of format 1: xxh3_64 of the bytes, of an array without its shape."""
    return xxh3_64_intdigest(np.ascontiguousarray(stored).data if isinstance(stored, np.ndarray) else stored)


def split_where(ends: NDArray[np.bool_], rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Cut rows [n] after each of which `ends` [n - 1] is true; nothing of no rows.

    >>> split_where(np.array([False, True]), np.array([4, 5, 9]))
    [array([4, 5]), array([9])]
    """
    return np.split(rows, np.flatnonzero(ends) + 1) if len(rows) else []


class BadImage(WorkError):
    """One image cannot be read or decoded.

    Args:
        id: the sample's id in its source.
        file: the file that holds the image, and the place in it.
        reason: why; the same text on every run, so that it may be stored.
        content_hash: hash of the image as it is stored; 0 if it cannot be read.
    """

    def __init__(self, id: str, file: str, reason: str, content_hash: int = 0) -> None:
        super().__init__("data.bad_image", id=id, file=file, reason=reason)
        self.id, self.file, self.reason, self.content_hash = id, file, reason, content_hash


def classes_by_value(values: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[str]]:
    """Number the classes of N labels that have no names.

    Returns:
        [N] class indices in 0..C-1, and the C labels as text, in rising order.

    >>> classes_by_value(np.array([47220, 7, 47220]))
    (array([1, 0, 1]), ['7', '47220'])
    """
    found, labels = np.unique(values, return_inverse=True)
    return labels.reshape(-1), [str(value) for value in found.tolist()]


class ImageSource(ABC):
    """N labelled images in a fixed order; picklable, so that worker processes can hold a copy.

    A class of a plug-in defines `read` and `file_of`. If it also defines `files`, images of unchanged files are not read again
    to identify them; if its images are faster to read in their order than one by one, it defines `read_each` and `keeps_order`.

    Args:
        name: label of the data set; characters that do not belong in a folder name become dashes.
        split: name of the split.
        ids: N distinct sample ids.
        labels: [N] class indices in 0..C-1; or float64 numbers, [N] or [N, K]; or [N, C] of 1, 0 and -1 (unknown).
        class_names: C names; none for numbers.
        sizes: [N] bytes of each image as it is stored.

    Attributes:
        uri: what `open_source` was given, to open the same images again; empty for images that a program holds.
        origin: absolute place of the data, for the name of their content index; `open_source` sets it where a source does not.
        has_whole_files: whether row i is all of file i of `files`.
        keeps_order: whether rows are extracted in their own order (archives), not in the order of their hashes.
        left_out: extension -> number of files, or of members of archives, that are not read, where a source looks for them.
        table: every column of the rows, where a table lists them; other targets can be taken from it.
        task: the type of task that the labels ask for, a name in `layerbank.probes.TASKS`.
        groups: [N] uint64, equal for images of one group, such as a patient, in every split; None without groups.
        is_encoded: whether images are encoded files of `sizes` bytes; only such sizes tell images apart, see `--trust-files`.
        value_range: the values of black and white that the URI declares for images of more than 8 bits.
        pixel_rule: how images become pixels; `open_source` sets it.

    Raises:
        RequestError: two samples have the same id, or an id or a class name is not valid Unicode.

    >>> import layerbank as lb
    >>> images = lb.open_images("demo:digits?train=40&test=20", split="test")
    >>> isinstance(images, lb.ImageSource), len(images), images.num_classes
    (True, 20, 10)
    """

    uri: str = ""
    origin: str = ""
    has_whole_files: bool = False
    keeps_order: bool = False
    is_encoded: bool = False
    left_out: Mapping[str, int] = MappingProxyType({})
    table: Table | None = None
    groups: NDArray[np.uint64] | None = None
    value_range: Range | None = None
    pixel_rule: PixelRule = USUAL

    def __init__(
        self,
        *,
        name: str,
        split: str,
        ids: Sequence[str],
        labels: NDArray[Any],
        class_names: Sequence[str],
        sizes: NDArray[np.int64],
    ) -> None:
        self.name = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "data"
        self.split = split
        self.ids = list(ids)
        are_numbers = labels.dtype.kind == "f"
        self.labels = np.ascontiguousarray(labels, dtype=np.float64 if are_numbers else np.int64)
        self.class_names = list(class_names)
        self.task = task_of_values(self.labels, self.class_names)
        self.sizes = np.ascontiguousarray(sizes, dtype=np.int64)
        self._check_names()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.class_names)

    def load(self, row: int) -> tuple[Image, int]:
        """Read and decode one image.

        Returns:
            The RGB image, and its `row_hash`.

        Raises:
            BadImage: it cannot be read or decoded.
        """
        from .decoding import decode_rgb, failure_reason

        stored = None
        try:
            stored = self.read(row)
            image, changes = decode_rgb(stored, self.pixel_rule)
            return image, row_hash(stored, changes)
        except MemoryError:
            raise
        except Exception as error:  # damaged bytes make Pillow raise anything: struct.error, SyntaxError, KeyError
            content_hash = 0 if stored is None else self.hashes_of(stored)[0]
            raise BadImage(self.ids[row], self.file_of(row), failure_reason(error), content_hash) from error

    def hashes_of(self, stored: Stored) -> tuple[int, int]:
        """Return the content hashes of an image of this source by rules 2 and 1.

        What the options for pixels decide has no hash of its own by rule 1: no store of format 1 holds such a row.
        """
        if self.pixel_rule.keeps_jpegs and not isinstance(stored, np.ndarray) and stored[:3] == JPEG:
            content_hash = xxh3_64_intdigest(stored) or 1  # `row_hash` of nearly every image
            return content_hash, content_hash
        from .decoding import changes_of

        changes = changes_of(stored, self.pixel_rule)
        content_hash = row_hash(stored, changes)
        differs = isinstance(stored, np.ndarray) and not changes
        return content_hash, row_hash_rule1(stored) if differs else content_hash

    def read_each(self, rows: NDArray[np.int64]) -> Iterator[Stored | None]:
        """Yield the images of ascending rows as `read` returns them, None for one that cannot be read.

        An image may lie in a buffer that the next one overwrites. Files that this object holds open are opened anew, in case
        another file has taken their place.
        """
        yield from map(self._read_or_none, rows.tolist())

    def _read_or_none(self, row: int) -> bytes | NDArray[np.uint8] | None:
        try:
            return self.read(row)
        except MemoryError:
            raise
        except Exception:  # a plug-in's reader may raise anything; `load` names the image and the reason
            return None

    def files(self) -> tuple[Sequence[str | Path], NDArray[np.int64]]:
        """Return the files that decide what `read` returns, and the number of each row's file.

        Returns:
            F distinct paths, and [N] numbers in 0..F-1; -1 for a row in no file, which is read each time it is identified.
        """
        return (), np.full(len(self), -1)

    @abstractmethod
    def read(self, row: int) -> bytes | NDArray[np.uint8]:
        """The encoded image, or its pixels [H, W] or [H, W, 3]. Raises OSError where they cannot be read."""

    @abstractmethod
    def file_of(self, row: int) -> str:
        """Where a person finds the image: a path, and the place in the file if it holds many."""

    def _check_names(self) -> None:
        data = f"{self.name}, split {self.split}"
        repeated = [id for id, count in Counter(self.ids).items() if count > 1]
        if repeated:
            raise RequestError("data.repeated_ids", data=data, id=repeated[0], count=len(repeated))
        names = (name for name in (*self.ids, *self.class_names) if not name.isascii())
        foreign = [name for name in names if any("\ud800" <= letter <= "\udfff" for letter in name)]
        if foreign:
            raise RequestError("data.not_utf8", data=data, name=ascii(foreign[0]), count=len(foreign))
