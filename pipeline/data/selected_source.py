"""Rows of a store as a source of images: some images of another source, in an order of their own, each in one view.

View 0 is the image as the model evaluates it; view v > 0 carries the seed of its crop, which depends on the content of the image
and on v alone. Consecutive views of an image decode it once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from .image_source import BadImage, ImageSource
from .splits.split_rows import SplitRows
from .views import VIEW_RULE, VIEW_SEED, ViewRule

if TYPE_CHECKING:
    from PIL.Image import Image


class SelectedSource(ImageSource):
    """The rows of one store.

    Args:
        rows: the rows of a split.
        chosen: [n] int64, for each row of the store the number of the row of the split; -1 for one that is never loaded.
        ids: n names.
    """

    def __init__(self, rows: SplitRows, chosen: NDArray[np.int64], ids: Sequence[str]) -> None:
        # the base class is not initialised: it checks that ids are distinct, and those of views are not
        self.images = rows.source
        self.rule: ViewRule | None = rows.rule
        self.name, self.split, self.class_names = self.images.name, self.images.split, self.images.class_names
        self._numbers, self._views = np.divmod(chosen, rows.rows_an_image)
        self.ids = ids  # type: ignore[assignment]  # any sequence
        self._last: tuple[int, Image, int] | None = None

    def load(self, row: int) -> tuple[Image, int]:
        """The image with the seed of its view, and its content hash."""
        number, view = int(self._numbers[row]), int(self._views[row])
        if self._last is None or self._last[0] != number:
            try:
                self._last = (number, *self.images.load(number))
            except BadImage:
                self._last = None
                raise
        _, image, content_hash = self._last
        if self.rule is not None:
            image = image.copy()
        if view:
            image.info[VIEW_SEED] = xxh3_64_intdigest(f"{VIEW_RULE}/{view}/{content_hash:016x}".encode())
        return image, content_hash

    def read(self, row: int) -> bytes | NDArray[Any]:
        return self.images.read(int(self._numbers[row]))

    def file_of(self, row: int) -> str:
        return self.images.file_of(int(self._numbers[row]))

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_last": None}
