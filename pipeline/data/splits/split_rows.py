"""The rows of one split that a task needs: its images, each in the centre view and, where they are asked for, in augmented views.

Row `image * (1 + k) + view` is that view of that image. Knows sources and content hashes, not models or stores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from layerbank.cache import RowSet, WantedRows

from ..image_set import ImageSet
from ..image_source import ImageSource
from ..views import ViewRule
from .split_record import SplitRecord


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
        return name_of(self.source)

    @property
    def ids(self) -> Sequence[str]:
        """N sample ids; the views of an image share its id."""
        ids = self.source.ids
        return ids if self.rows_an_image == 1 else [id for id in ids for _ in range(self.rows_an_image)]

    @cached_property
    def wanted(self) -> WantedRows:
        """The rows, as stores are searched for them."""
        return wanted_rows(self.images, self.rule)

    @cached_property
    def reading_order(self) -> NDArray[np.int64]:
        """``[N]`` rows in the order in which they are written and streamed; the views of an image stay together."""
        return reading_order(self.images, self.rows_an_image)

    @cached_property
    def record(self) -> SplitRecord:
        """What is known of the split without its images."""
        source = self.source
        return SplitRecord(
            dataset=source.name,
            split=source.split,
            ids=source.ids,
            labels=source.labels,
            class_names=source.class_names,
            task=source.task,
            images=self.images,
            groups=source.groups,
        )

    def centre(self) -> SplitRows:
        """The centre views alone."""
        return SplitRows(source=self.source, images=self.images)


def name_of(source: ImageSource) -> str:
    """Name of a data set and its split."""
    return f"{source.name}-{source.split}"


def wanted_rows(images: ImageSet, rule: ViewRule | None) -> WantedRows:
    """The rows of some images in their centre view and the augmented views of a rule."""
    rows_an_image = 1 + (rule.num_views if rule else 0)
    images_of_rows, views = np.divmod(np.arange(len(images) * rows_an_image), rows_an_image)
    rule1 = images.rule1_hashes
    rows = RowSet(
        hashes=images.hashes[images_of_rows],
        views=views.astype(np.uint16),
        view_rule=rule.describe() if rule else "",
    )
    return WantedRows(rows=rows, rule1_hashes=None if rule1 is None else rule1[images_of_rows])


def reading_order(images: ImageSet, rows_an_image: int) -> NDArray[np.int64]:
    """``[N]`` rows in reading order; the views of an image stay together."""
    each = images.reading_order[:, None] * rows_an_image
    order: NDArray[np.int64] = (each + np.arange(rows_an_image)).reshape(-1)
    return order
