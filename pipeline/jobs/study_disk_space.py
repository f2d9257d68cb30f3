"""Warn if the disk has too little space for all that a study still lacks, before its first unit.

This is a warning, not a refusal: stores of other studies may be deleted meanwhile, and each unit is checked to the byte before its
first image (`extraction/disk_space.py`). Models are not opened for this, so a store is attributed to a model by its name, and no
image is hashed: those that the content index does not know count as missing. Only tokens are counted, and only of models and images
that are known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

import numpy as np

from layerbank.cache import StoreFiles, array_key, free_bytes, list_stores

from ..events import OnEvent, StudyShortOfDiskSpace
from .recipe import Recipe
from .study_plan import Split, bytes_of_arrays, find_probes, find_splits
from .units import UNIT_ERRORS, StudyOptions, permission_of


def report_disk_space(recipe: Recipe, place: StudyOptions, on_event: OnEvent) -> None:
    """Report if what the units of a study lack is more than the disk takes; a single unit checks that itself.

    Args:
        recipe: the study.
        place: where stores and data lie.
        on_event: callback for the warning.
    """
    if len(recipe.models) * len(recipe.data) < 2:
        return
    stores = [StoreFiles(one.path, one.header, one.journal) for one in list_stores(place.cache_root) if one.header]
    splits: list[tuple[Split, ...]] = []
    for dataset in recipe.data:
        with suppress(*UNIT_ERRORS):  # its unit reports it
            splits.append(find_splits(dataset, place, recipe.splits).splits)
    missing: list[int] = []
    for model in recipe.models:
        with suppress(*UNIT_ERRORS):
            probes, row_shape = find_probes(model, recipe, permission_of(recipe, place), [])
            if row_shape is not None:
                arrays = bytes_of_arrays(probes, row_shape, recipe.option("storage_dtype"))
                missing += [
                    sum(_missing_bytes(model, arrays, one, stores, recipe) for one in of_data) for of_data in splits
                ]
    needed, free = sum(missing), free_bytes(place.cache_root)
    if needed > free:
        num_units = sum(map(bool, missing))
        on_event(
            StudyShortOfDiskSpace(
                cache_root=place.cache_root, num_units=num_units, needed_bytes=needed, free_bytes=free
            )
        )


def _missing_bytes(
    model: str, arrays: Mapping[tuple[str, str], int], split: Split, stores: Sequence[StoreFiles], recipe: Recipe
) -> int:
    """Return the bytes of the tokens of a split that no store of the model holds."""
    named = [
        files
        for files in stores
        if files.header.spec.model.name in (model, f"timm/{model}")
        and files.header.spec.model.storage_dtype == recipe.option("storage_dtype")
    ]
    missing = 0
    for (level, kind), size in arrays.items():
        held = [np.zeros(0, dtype=np.uint64)]
        for files in named:
            if (name := files.arrays.get(array_key(recipe.tap, level, kind))) is not None:
                rows = np.repeat(files.committed([name]), files.header.block_rows)[: files.header.spec.num_rows]
                held.append(files.rows.hashes[rows])
        num_held = 0 if split.hashes is None else int(np.isin(split.hashes, np.concatenate(held)).sum())
        missing += size * (split.num_images - num_held)
    return missing
