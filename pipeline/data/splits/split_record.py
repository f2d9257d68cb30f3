"""What is known of a split without its images: ids, labels, their task, class names and content hashes. Kept beside results.

With it and the cache, everything that was computed of a split can be found and read again, wherever the images are by then.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from layerbank.cache import Target
from layerbank.cache.atomic_files import replace_file

from ...errors import WorkError
from ..image_set import ImageSet
from ..saved_arrays import UnreadableArrays, load_arrays
from ..task_names import MULTICLASS
from ..task_of_values import targets_for


@dataclass(frozen=True, kw_only=True, eq=False)
class SplitRecord:
    """The N images of a split, by name and content.

    Args:
        dataset, split: their names.
        ids: N sample ids.
        labels: [N] or [N, K] what the task asks for: int64 class indices, -1 where there are none; or float64 numbers.
        class_names: C names; empty for a task without classes.
        images: their content hashes.
        task: the type of the task, a name in `layerbank.probes.TASKS`.
        groups: [N] uint64, equal for images of one group; None without groups.
        is_validation: [N] bool, images of a training split that settings are chosen by, and that are not trained on; None if a
            fraction of the images is held out for that.
    """

    dataset: str
    split: str
    ids: Sequence[str]
    labels: NDArray[Any]
    class_names: Sequence[str]
    images: ImageSet
    task: str = MULTICLASS
    groups: NDArray[np.uint64] | None = None
    is_validation: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def name(self) -> str:
        """Name of the data set."""
        return self.dataset

    def with_task(self, task: str) -> Self:
        """The same images, asked for another type of task than their labels show; `auto` is that. Raises as `targets_for`."""
        labels, class_names, task = targets_for(self, task)
        return replace(self, labels=labels, class_names=class_names, task=task)

    @cached_property
    def targets_digest(self) -> str:
        """64 hex digits: the digest of labels and class names, as stores keep them."""
        return Target(values=self.labels, type=self.task, class_names=self.class_names).digest

    @cached_property
    def file_name(self) -> str:
        """Name of the file that keeps it: equal records have equal names."""
        arrays = [array.tolist() for array in (self.groups, self.is_validation) if array is not None]
        names = json.dumps([list(self.ids), self.images.digest, self.targets_digest, *arrays], allow_nan=False)
        return f"{self.split}-{hashlib.sha256(names.encode()).hexdigest()[:12]}.npz"

    def save(self, folder: Path) -> str:
        """Write it to a folder, whole or not at all, unless it is there; a damaged file is replaced.

        Returns:
            The name of the file.
        """
        file = folder / self.file_name
        if not _is_sound(file):
            folder.mkdir(parents=True, exist_ok=True)
            about: dict[str, Any] = {
                "dataset": self.dataset,
                "split": self.split,
                "class_names": list(self.class_names),
                "keeps_order": self.images.keeps_order,
            }
            if self.task != MULTICLASS:
                about["task"] = self.task
            content = io.BytesIO()
            arrays = {
                "ids": np.array(self.ids),
                "labels": self.labels,
                "hashes": self.images.hashes,
            }
            if self.images.rule1_hashes is not None:
                arrays["rule1_hashes"] = self.images.rule1_hashes
            if self.groups is not None:
                about["has_groups"] = True
                arrays["groups"] = self.groups
            if self.is_validation is not None:
                about["has_validation"] = True
                arrays["is_validation"] = self.is_validation
            arrays["about"] = np.array(json.dumps(about, allow_nan=False))
            np.savez_compressed(content, **arrays)  # type: ignore[arg-type]  # its stubs take no dict of arrays
            replace_file(file, content.getvalue())
        return file.name


def load_record(file: Path) -> SplitRecord:
    """The record in a file that `SplitRecord.save` wrote.

    Raises:
        WorkError: there is none, or it is damaged.
    """
    try:
        text, ids, labels, hashes, *rule1 = load_arrays(file, ("about", "ids", "labels", "hashes"), ("rule1_hashes",))
        about = json.loads(str(text))
        groups = load_arrays(file, ("groups",)) if about.get("has_groups") else []
        marks = load_arrays(file, ("is_validation",)) if about.get("has_validation") else []
        _check(about, ids, labels, hashes, *rule1, *groups)
        if any(mark.dtype != np.bool_ or mark.shape != ids.shape for mark in marks):
            raise ValueError("marks of validation images that are none")
    except (UnreadableArrays, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WorkError("data.unreadable_record", file=file, reason=error) from error
    record = SplitRecord(
        dataset=about["dataset"],
        split=about["split"],
        ids=ids.tolist(),
        labels=labels,
        class_names=about["class_names"],
        images=ImageSet(
            hashes=hashes,
            rule1_hashes=rule1[0] if rule1 else None,
            is_known=np.ones(len(hashes), dtype=np.bool_),
            keeps_order=about["keeps_order"],
        ),
        task=about.get("task", MULTICLASS),
        groups=groups[0] if groups else None,
        is_validation=marks[0] if marks else None,
    )
    if record.file_name != file.name:
        raise WorkError("data.unreadable_record", file=file, reason="its content is not the one it is named after")
    return record


def _check(about: dict[str, Any], ids: NDArray[Any], labels: NDArray[Any], *hashes: NDArray[Any]) -> None:
    """Raise ValueError, KeyError or TypeError unless these are what `SplitRecord.save` writes."""
    texts = [about["dataset"], about["split"], about.get("task", ""), *about["class_names"]]
    if not all(isinstance(text, str) for text in texts) or type(about["keeps_order"]) is not bool:
        raise ValueError(f"the description {about!r:.80}")
    arrays = (ids, labels, *hashes)
    kinds = [array.dtype.kind for array in arrays]
    if len({array.shape[:1] for array in arrays}) > 1 or ids.ndim != 1 or labels.ndim > 2 or kinds[1] not in "if":
        raise ValueError(f"arrays of the shapes {', '.join(str(array.shape) for array in arrays)}")
    if kinds[0] != "U" or any(array.dtype != np.uint64 for array in hashes):
        raise ValueError(f"arrays of {', '.join(str(array.dtype) for array in arrays)}")


def _is_sound(file: Path) -> bool:
    try:
        load_record(file)
    except WorkError:
        return False
    return True
