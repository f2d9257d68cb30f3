"""The rows of one split that a task needs: its images, each in the centre view and, where they are asked for, in augmented views.

Row `image * (1 + k) + view` is that view of that image. Knows sources and content hashes, not models or stores.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from layerbank.cache import RowSet, WantedRows

from .image_set import ImageSet
from .image_source import ImageSource
from .views import ViewRule


@dataclass(frozen=True, kw_only=True, eq=False)
class SplitRows:
    """Images and views of a split.

    Args:
        source: where the images are, their ids and labels.
        images: their content hashes.
        rule: how augmented views are drawn, and how many; None for centre views alone.
    """

    source: ImageSource
    images: ImageSet
    rule: ViewRule | None = None

    def __len__(self) -> int:
        return len(self.images) * self.rows_an_image

    @property
    def rows_an_image(self) -> int:
        return 1 + (self.rule.num_views if self.rule else 0)

    @property
    def name(self) -> str:
        """Name of the data and the split, for people and for the paths of stores."""
        return f"{self.source.name}-{self.source.split}"

    @cached_property
    def wanted(self) -> WantedRows:
        """The rows, as stores are searched for them."""
        images = np.arange(len(self)) // self.rows_an_image
        views = (np.arange(len(self)) % self.rows_an_image).astype(np.uint16)
        rule1 = self.images.rule1_hashes
        return WantedRows(
            rows=RowSet(
                hashes=self.images.hashes[images],
                views=views,
                view_rule=self.rule.describe() if self.rule else "",
            ),
            rule1_hashes=None if rule1 is None else rule1[images],
        )

    @cached_property
    def reading_order(self) -> NDArray[np.int64]:
        """``[N]`` rows in the order in which they are written and streamed; the views of an image stay together."""
        each = self.images.reading_order[:, None] * self.rows_an_image
        return (each + np.arange(self.rows_an_image)).reshape(-1)

    def centre(self) -> SplitRows:
        """The centre views alone."""
        return SplitRows(source=self.source, images=self.images)
