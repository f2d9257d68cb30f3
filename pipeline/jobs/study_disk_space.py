"""Warn if the disk has too little space for all that a study still lacks, before its first unit.

This is a warning, not a refusal: stores of other studies may be deleted meanwhile, and each unit is checked to the byte before its
first image (`extraction/disk_space.py`). What a store holds is read from its header. Models are not opened for this, so a store is
attributed to a model by its name, and to a data set by its manifest. Only tokens are counted, and only of models and images that
are known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from layerbank.cache import CacheSpec, free_bytes, list_specs, read_store_info

from ..events import OnEvent, StudyShortOfDiskSpace
from .recipe import Recipe
from .study_plan import Split, bytes_of_arrays, find_probes, find_splits
from .units import STORAGE_DTYPE, UNIT_ERRORS, StudyOptions


def report_disk_space(recipe: Recipe, place: StudyOptions, on_event: OnEvent) -> None:
    """Report if what the units of a study lack is more than the disk takes; a single unit checks that itself.

    Args:
        recipe: the study.
        place: where stores and data lie.
        on_event: callback for the warning.
    """
    if len(recipe.models) * len(recipe.data) < 2:
        return
    stores = list_specs(place.cache_root)
    splits: list[tuple[Split, ...]] = []
    for dataset in recipe.data:
        with suppress(*UNIT_ERRORS):  # its unit reports it
            splits.append(find_splits(dataset, place).splits)
    missing: list[int] = []
    for model in recipe.models:
        with suppress(*UNIT_ERRORS):
            probes, row_shape = find_probes(model, recipe, [])
            if row_shape is not None:
                arrays = bytes_of_arrays(probes, row_shape)
                missing += [sum(_missing_bytes(model, arrays, one, stores) for one in of_data) for of_data in splits]
    needed, free = sum(missing), free_bytes(place.cache_root)
    if needed > free:
        num_units = sum(map(bool, missing))
        on_event(
            StudyShortOfDiskSpace(
                cache_root=place.cache_root, num_units=num_units, needed_bytes=needed, free_bytes=free
            )
        )


def _missing_bytes(
    model: str, arrays: Mapping[tuple[str, str], int], split: Split, stores: Sequence[tuple[Path, CacheSpec]]
) -> int:
    """Return the bytes of the tokens of a split that no store of the model holds."""
    lacking = [split.num_images * sum(arrays.values())]
    for path, spec in stores:
        same_model = spec.backbone in (model, f"timm/{model}") and spec.storage_dtype == STORAGE_DTYPE
        if same_model and spec.manifest == split.manifest:
            info = read_store_info(path)
            complete, begun = ({(one.level, one.kind) for one in some} for some in (info.complete_arrays, info.arrays))
            num_missing = sum(map(len, info.missing_rows))
            lacking.append(
                sum(
                    size * (0 if array in complete else num_missing if array in begun else split.num_images)
                    for array, size in arrays.items()
                )
            )
    return min(lacking)
