"""What every data source is: an ordered list of labelled images, counted before the first one is decoded.

A source knows where each image lies and reads it by row number. It does not know models, transforms, batches
or processes. Decisions on pixels, the same for all sources:

* `convert("RGB")`, as the folder loaders of torchvision and timm do: alpha is dropped, not composited, and
  CMYK is converted without a colour profile.
* The EXIF orientation is **not** applied, as there, so that published numbers stay comparable.
* 16-bit grey images are scaled to 8 bits; Pillow's own conversion clips at 255, which leaves them white.
"""

from __future__ import annotations

import io
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from xxhash import xxh3_64_intdigest, xxh3_128

from ..errors import RequestError, WorkError


class BadImage(WorkError):
    """One image cannot be read or decoded. Survives pickling, so worker processes can hand it over.

    Args:
        id: the sample's id in its source.
        file: the file that holds the image, and the place in it.
        reason: why; the same text on every run, so that it may be stored.
    """

    def __init__(self, id: str, file: str, reason: str) -> None:
        super().__init__(
            where=f"image {id} in {file}",
            expected="an image that decodes",
            got=reason,
            todo="Replace the file, or go on without it: --on-bad-image skip.",
        )
        self.id, self.file, self.reason = id, file, reason

    def __reduce__(self) -> tuple[type[BadImage], tuple[str, str, str]]:
        return type(self), (self.id, self.file, self.reason)


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
        self._refuse_bad_ids()
        self.manifest_digest = _manifest_digest(self.ids, self.labels, self.class_names, locations, sizes)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_classes(self) -> int:
        """C, counted over all splits of the data set."""
        return len(self.class_names)

    def load(self, row: int) -> tuple[Image.Image, int]:
        """Read and decode one image.

        Returns:
            The RGB image, and the xxh3_64 of its encoded bytes (of the pixels where the source holds arrays).

        Raises:
            BadImage: it cannot be read or decoded.
        """
        try:
            stored = self.read(row)
            if isinstance(stored, bytes):
                return _rgb_from_bytes(stored), xxh3_64_intdigest(stored)
            return Image.fromarray(stored).convert("RGB"), xxh3_64_intdigest(stored.tobytes())
        except MemoryError:
            raise
        except Exception as error:  # damaged bytes make Pillow raise anything: struct.error, SyntaxError, KeyError
            raise BadImage(self.ids[row], self.file_of(row), _reason(error)) from error

    @abstractmethod
    def read(self, row: int) -> bytes | NDArray[np.uint8]:
        """The encoded image, or its pixels [H, W] or [H, W, 3]. Raises OSError where they cannot be read."""

    @abstractmethod
    def file_of(self, row: int) -> str:
        """Where a person finds the image: a path, and the place in the file if it holds many."""

    def _refuse_bad_ids(self) -> None:
        where = f"split {self.split} of {self.name}"
        repeated = [id for id, count in Counter(self.ids).items() if count > 1]
        if repeated:
            raise RequestError(
                where=where,
                expected="distinct sample ids",
                got=f"{repeated[0]!r} more than once, one of {len(repeated)} such ids",
                todo="Rename or remove the repeated samples.",
            )
        texts = (text for text in (*self.ids, *self.class_names) if not text.isascii())
        foreign = [text for text in texts if any("\ud800" <= letter <= "\udfff" for letter in text)]
        if foreign:
            raise RequestError(
                where=where,
                expected="file names in UTF-8",
                got=f"{foreign[0]!a}, one of {len(foreign)} such names",
                todo="Rename the files.",
            )


def _manifest_digest(
    ids: Sequence[str],
    labels: NDArray[np.int64],
    class_names: Sequence[str],
    locations: Iterable[str],
    sizes: NDArray[np.int64],
) -> str:
    """xxh3_128 of what a split is. No times and no absolute paths: a moved copy has the same digest."""
    digest = xxh3_128(b"layerbank manifest 1")
    for texts in (ids, class_names, locations):
        encoded = [text.encode() for text in texts]
        digest.update(np.array([len(encoded), *map(len, encoded)], dtype="<i8").tobytes())
        digest.update(b"".join(encoded))
    for numbers in (labels, sizes):
        digest.update(np.asarray(numbers, dtype="<i8").tobytes())
    return digest.hexdigest()


def _rgb_from_bytes(encoded: bytes) -> Image.Image:
    if not encoded:
        raise ValueError("no bytes")
    with Image.open(io.BytesIO(encoded)) as image:
        if image.mode.startswith("I"):  # 16-bit grey; older Pillow opens it as 32-bit "I"
            eight_bits = np.asarray(image).astype(np.int64).clip(0, 65535) >> 8
            return Image.fromarray(eight_bits.astype(np.uint8)).convert("RGB")
        if image.mode == "P" and "transparency" in image.info:
            return image.convert("RGBA").convert("RGB")  # the pixels of convert("RGB"), without Pillow's warning
        return image.convert("RGB")


def _reason(error: Exception) -> str:
    """The error in words that are the same on every run: no addresses, no absolute paths."""
    if isinstance(error, UnidentifiedImageError):
        return "bytes in no image format that Pillow knows"
    if isinstance(error, OSError) and error.strerror and error.filename:
        return error.strerror
    return re.sub(r" at 0x[0-9a-fA-F]+", "", str(error)) or type(error).__name__
