"""The interface of data sources: an ordered list of labelled images, counted before the first one is decoded.

A source knows where each image lies and reads it by row number. It does not know models, transforms, batches or processes.
Pillow is imported when the first image is decoded.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest, xxh3_128

from ..errors import RequestError, WorkError

if TYPE_CHECKING:
    from PIL.Image import Image


class BadImage(WorkError):
    """One image cannot be read or decoded.

    Args:
        id: the sample's id in its source.
        file: the file that holds the image, and the place in it.
        reason: why; the same text on every run, so that it may be stored.
    """

    def __init__(self, id: str, file: str, reason: str) -> None:
        super().__init__("data.bad_image", id=id, file=file, reason=reason)
        self.id, self.file, self.reason = id, file, reason


class ImageSource(ABC):
    """N labelled images in a fixed order; picklable, so that worker processes can hold a copy.

    Args:
        name: label of the data set; characters that do not belong in a folder name become dashes.
        split: name of the split.
        ids: N distinct sample ids.
        labels: [N] class indices in 0..C-1.
        class_names: C names, of all splits together.
        locations: where the encoded images lie, relative to the data set's folder.
        sizes: [N] bytes of each encoded image.

    Attributes:
        manifest_digest: hex digest of all of the above except name and split.

    Raises:
        RequestError: two samples have the same id, or an id or a class name is not valid Unicode.
    """

    def __init__(
        self,
        *,
        name: str,
        split: str,
        ids: Sequence[str],
        labels: NDArray[np.int64],
        class_names: Sequence[str],
        locations: Iterable[str],
        sizes: NDArray[np.int64],
    ) -> None:
        self.name = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "data"
        self.split = split
        self.ids = list(ids)
        self.labels = np.ascontiguousarray(labels, dtype=np.int64)
        self.class_names = list(class_names)
        self._check_names()
        self.manifest_digest = _manifest_digest(self.ids, self.labels, self.class_names, locations, sizes)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_classes(self) -> int:
        """C, counted over all splits of the data set."""
        return len(self.class_names)

    def load(self, row: int) -> tuple[Image, int]:
        """Read and decode one image.

        Returns:
            The RGB image, and the xxh3_64 of its encoded bytes (of the pixels where the source holds arrays).

        Raises:
            BadImage: it cannot be read or decoded.
        """
        from .decoding import decode_rgb, failure_reason

        try:
            stored = self.read(row)
            return decode_rgb(stored), xxh3_64_intdigest(stored if isinstance(stored, bytes) else stored.tobytes())
        except MemoryError:
            raise
        except Exception as error:  # damaged bytes make Pillow raise anything: struct.error, SyntaxError, KeyError
            raise BadImage(self.ids[row], self.file_of(row), failure_reason(error)) from error

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


def _manifest_digest(
    ids: Sequence[str],
    labels: NDArray[np.int64],
    class_names: Sequence[str],
    locations: Iterable[str],
    sizes: NDArray[np.int64],
) -> str:
    """xxh3_128 of a split, without times and absolute paths: a moved copy has the same digest."""
    digest = xxh3_128(b"layerbank manifest 1")
    for texts in (ids, class_names, locations):
        encoded = [text.encode() for text in texts]
        digest.update(np.array([len(encoded), *map(len, encoded)], dtype="<i8").tobytes())
        digest.update(b"".join(encoded))
    for numbers in (labels, sizes):
        digest.update(np.asarray(numbers, dtype="<i8").tobytes())
    return digest.hexdigest()
