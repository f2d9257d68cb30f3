"""The tokens of one split, with the targets and ids that belong to them.

A row is a view of an image; rows keep the order of the data. An image without usable tokens in one of its views is left out with
all of them. Where the tokens lie, in one store or in several, shows only in `positions`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerbank.cache import ArraySpec, ModelSpec, ModelStores, TokenArray, TokenView, WantedRows
from layerbank.probes import TASKS, Task

from ...data.splits.split_record import SplitRecord
from ...data.splits.split_rows import SplitRows, reading_order, wanted_rows
from ...data.views import ViewRule
from ..task_options import with_options


@dataclass(frozen=True, kw_only=True, eq=False)
class SplitRequest:
    """The tokens of a split that are wanted; they need not exist yet.

    Attributes:
        cache_root: folder of all stores.
        model: what computed the tokens.
        tap: the output that was read in each transformer block.
        record: the images of the split.
        rule: how augmented views were drawn; None for centre views alone.
        arrays: (level, kind) pairs that each row must have.
        stores: the stores of the model, if they were read already; None reads them whenever the tokens are opened.
        metric, class_weights: options of the task, see `with_options`; None is its default.
    """

    cache_root: Path
    model: ModelSpec
    tap: str
    record: SplitRecord
    rule: ViewRule | None
    arrays: tuple[tuple[str, str], ...]
    stores: ModelStores | None = None
    metric: str | None = None
    class_weights: str | None = None

    @property
    def name(self) -> str:
        return f"{self.record.dataset}/{self.record.split}"

    @property
    def num_views(self) -> int:
        """Augmented views of an image, beside the centre view."""
        return self.rule.num_views if self.rule else 0

    @property
    def wanted(self) -> WantedRows:
        """The rows, as stores are searched for them."""
        return wanted_rows(self.record.images, self.rule)

    def with_views(self, num_views: int) -> SplitRequest:
        """The same images with fewer augmented views."""
        return replace(self, rule=replace(self.rule, num_views=num_views) if self.rule and num_views else None)

    def asked_for(self, metric: str | None, class_weights: str | None) -> SplitRequest:
        """The same images with these options of their task."""
        return replace(self, metric=metric, class_weights=class_weights)

    def open(self) -> SplitTokens:
        """Find the tokens.

        Raises:
            MissingRowsError: some images have no tokens in the cache.
            DamagedStoreError: a file of a store that is read is missing or of another size.
        """
        return SplitTokens(self)


def request_tokens(
    cache_root: Path,
    model: ModelSpec,
    tap: str,
    rows: SplitRows,
    arrays: tuple[tuple[str, str], ...],
    stores: ModelStores | None = None,
) -> SplitRequest:
    """The request for the tokens of the rows of a split."""
    return SplitRequest(
        cache_root=cache_root, model=model, tap=tap, record=rows.record, rule=rows.rule, arrays=arrays, stores=stores
    )


class SplitTokens:
    """Tokens, targets and ids of the n usable rows of a split; made by `SplitRequest.open`.

    Attributes:
        request: what was asked for.
        arrays: (level, kind) -> spec of each array.
        positions: [n] int64, place of each row in the arrays of `tokens`, in any order; equal images share one.
        images: [n] int64, ascending: the number of the image of each row; the first row of an image is its centre view.
        targets: [n] what the task asks for, of each row.
        task: the task of the data set.
        reading_order: [n] int64, the rows in the order in which they are best read.
        stores: the stores that are read.
    """

    def __init__(self, request: SplitRequest) -> None:
        self.request = request
        record, rows_an_image = request.record, 1 + request.num_views
        self._view = TokenView.open(
            request.cache_root,
            request.model,
            request.wanted,
            request.arrays,
            tap=request.tap,
            name=request.name,
            stores=request.stores,
        )
        self.arrays: dict[tuple[str, str], ArraySpec] = self._view.arrays
        is_whole = (self._view.positions.reshape(-1, rows_an_image) >= 0).all(1)  # of each image
        rows = np.flatnonzero(np.repeat(is_whole, rows_an_image))
        self.positions: NDArray[np.int64] = self._view.positions[rows]
        self.images: NDArray[np.int64] = rows // rows_an_image
        self.targets: NDArray[Any] = record.labels[self.images]
        num_columns = record.labels.shape[1] if record.labels.ndim > 1 else 0
        task = TASKS.require(record.task).for_data(len(record.class_names), num_columns)
        self.task: Task = with_options(task, request.metric, request.class_weights, record.class_names)
        number = np.full(len(self._view.positions), -1)
        number[rows] = np.arange(len(rows))
        order = number[reading_order(record.images, rows_an_image)]
        self.reading_order: NDArray[np.int64] = order[order >= 0]
        self.stores = self._view.stores

    @cached_property
    def groups(self) -> NDArray[np.int64] | None:
        """[n] int64, images with the same bytes or of the same group have the same number; None if no two usable images have."""
        _, groups = np.unique(self.content_hashes, return_inverse=True)
        if self.record.groups is not None:
            groups = _joined(groups, np.unique(self.record.groups[self.images], return_inverse=True)[1])
        has_several = groups.max(initial=-1) + 1 < len(np.unique(self.images))
        return groups.astype(np.int64) if has_several else None

    @property
    def is_validation(self) -> NDArray[np.bool_] | None:
        """[n] bool, rows of images that settings are chosen by and that are not trained on; None if a fraction is held out."""
        marks = self.record.is_validation
        return None if marks is None else marks[self.images]

    @property
    def trained_targets(self) -> NDArray[Any]:
        """The targets of the rows that are trained on."""
        return self.targets if self.is_validation is None else self.targets[~self.is_validation]

    @property
    def record(self) -> SplitRecord:
        return self.request.record

    @property
    def model(self) -> ModelSpec:
        return self.request.model

    @property
    def num_views(self) -> int:
        """Augmented views of an image, beside the centre view."""
        return self.request.num_views

    @property
    def store_names(self) -> list[str]:
        """The stores that are read, below the cache folder."""
        return [path.relative_to(self.request.cache_root).as_posix() for path in self.stores]

    @property
    def class_names(self) -> list[str]:
        return list(self.record.class_names)

    @property
    def content_hashes(self) -> NDArray[np.uint64]:
        """[n] uint64, content hash of the image of each row."""
        return self.record.images.hashes[self.images]

    @property
    def sample_ids(self) -> list[str]:
        """The id of the image of each row."""
        return [self.record.ids[image] for image in self.images.tolist()]

    def tokens(self, level: str, kind: str) -> TokenArray:
        """The tokens of one level and kind, by position."""
        return self._view.tokens(level, kind)


def _joined(first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number from 0 what is linked by steps within a group of `first` or of `second`, both [n] and numbered from 0.

    >>> _joined(np.array([0, 0, 1, 2, 3]), np.array([0, 1, 1, 2, 2]))
    array([0, 0, 0, 1, 1])
    """
    least, before = np.arange(len(first)), None
    while before is None or (least != before).any():
        before = least
        for groups in (first, second):
            of_group = np.full(len(first), len(first))
            np.minimum.at(of_group, groups, least)
            least = of_group[groups]
    joined: NDArray[np.int64] = np.unique(least, return_inverse=True)[1]
    return joined
