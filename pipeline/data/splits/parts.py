"""A part of a data set: some images of its sources, with what is asked of each. A probe is trained on one and tested on another.

Knows no content of images: `Part.record` adds what is known of them once they are hashed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..image_set import ImageSet
from ..image_source import ImageSource
from ..task_names import MULTICLASS
from .split_record import SplitRecord


@dataclass(kw_only=True, eq=False)
class Part:
    """N images.

    Attributes:
        name, split: names of the data set and of the part.
        sources: [N] number of the source of each image.
        rows: [N] its row there.
        ids: N sample ids.
        labels: [N] what the task asks for.
        class_names: C names; empty for a task without classes, and for images without labels.
        task: the type of the task.
        groups: [N] uint64; None without groups.
        is_validation: [N] bool, images that settings are chosen by; None if a fraction of the images is held out.
    """

    name: str
    split: str
    sources: NDArray[np.int64]
    rows: NDArray[np.int64]
    ids: Sequence[str]
    labels: NDArray[Any]
    class_names: Sequence[str]
    task: str = MULTICLASS
    groups: NDArray[np.uint64] | None = None
    is_validation: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, places: NDArray[Any], split: str | None = None) -> Part:
        """Some of its images, by place or by a mask."""
        numbers = np.arange(len(self))[places]
        return replace(
            self,
            split=split or self.split,
            sources=self.sources[numbers],
            rows=self.rows[numbers],
            ids=[self.ids[number] for number in numbers.tolist()],
            labels=self.labels[numbers],
            groups=None if self.groups is None else self.groups[numbers],
            is_validation=None if self.is_validation is None else self.is_validation[numbers],
        )

    def with_validation(self, other: Part) -> Part:
        """Its images to train on, and those of another part, of the same classes, to choose settings by."""
        groups = self.groups is not None and other.groups is not None
        return replace(
            self,
            sources=np.concatenate([self.sources, other.sources]),
            rows=np.concatenate([self.rows, other.rows]),
            ids=[*self.ids, *other.ids],
            labels=np.concatenate([self.labels, other.labels]),
            groups=np.concatenate([self.groups, other.groups]) if groups else None,
            is_validation=np.repeat([False, True], [len(self), len(other)]),
        )

    def record(self, known: Sequence[SplitRecord]) -> SplitRecord:
        """What is known of it, from what is known of each source."""
        hashes, is_known = np.zeros(len(self), dtype=np.uint64), np.zeros(len(self), dtype=np.bool_)
        rule1 = None if all(one.images.rule1_hashes is None for one in known) else hashes.copy()
        for number, of_source in enumerate(known):
            here, images = self.sources == number, of_source.images
            rows = self.rows[here]
            hashes[here], is_known[here] = images.hashes[rows], images.is_known[rows]
            if rule1 is not None:
                rule1[here] = (images.hashes if images.rule1_hashes is None else images.rule1_hashes)[rows]
        used = [known[number].images.keeps_order for number in np.unique(self.sources).tolist()]
        return SplitRecord(
            dataset=self.name,
            split=self.split,
            ids=self.ids,
            labels=self.labels,
            class_names=self.class_names,
            images=ImageSet(hashes=hashes, rule1_hashes=rule1, is_known=is_known, keeps_order=any(used)),
            task=self.task,
            groups=self.groups,
            is_validation=self.is_validation,
        )


def part_of(source: ImageSource, number: int) -> Part:
    """All images of a source, which has this number among those of its job."""
    return Part(
        name=source.name,
        split=source.split,
        sources=np.full(len(source), number),
        rows=np.arange(len(source)),
        ids=source.ids,
        labels=source.labels,
        class_names=source.class_names,
        task=source.task,
        groups=source.groups,
    )
