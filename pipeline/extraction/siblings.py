"""Stores of other splits of the same data by the same model, and the precision they were computed in.

What is trained on and what is tested on come from one model, also where their splits are extracted on different days. A probe opens
one model for both; this keeps a split that is extracted alone from becoming the odd one out.

Two data sets may have one name, `folder:a/photos` and `folder:b/photos`, and so one folder of the cache. A store is of
these data if its manifest is that of one of their splits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from layerbank.cache import CacheSpec, list_specs

from ..data.sources import ImageSource
from ..data.views import MARK
from ..errors import RequestError, WorkError

_OF_THE_MODEL = ("architecture", "weights", "tap", "token_rule", "compute_dtype")


def other_splits(
    spec: CacheSpec, splits: Sequence[str], cache_root: Path, open_split: Callable[[str], ImageSource]
) -> dict[str, Path]:
    """Precision -> one store of a split that is not among these.

    Args:
        spec: of the store of any of the splits, in any precision.
        splits: those that are asked for.
        cache_root: folder of all stores.
        open_split: opens another split of the same data; asked for those only that have such a store.
    """
    folder = spec.store_path(cache_root).parent.parent
    return {
        other.compute_dtype: path
        for path, other in list_specs(folder)
        if other.split not in splits
        and other.storage_dtype == spec.storage_dtype
        and set(model_differences(spec, other)) <= {"compute_dtype"}
        and other.manifest == _manifest(other.split, open_split)
    }


def _manifest(split: str, open_split: Callable[[str], ImageSource]) -> str | None:
    """None where these data have no such split, or none that can be opened."""
    try:
        return open_split(split).manifest_digest
    except (RequestError, WorkError, OSError):
        return None


def model_differences(one: CacheSpec, other: CacheSpec) -> list[str]:
    """The fields of identity in which the models of two stores differ, whatever their data, views and storage."""
    different = [name for name in _OF_THE_MODEL if getattr(one, name) != getattr(other, name)]
    same_transform = one.transform.partition(MARK)[0] == other.transform.partition(MARK)[0]
    return different if same_transform else [*different, "transform"]
