"""Whether the disk takes all that a study still lacks, asked before its first unit.

The decision taken here: it is told and nothing is refused. Stores of other studies may be deleted meanwhile, and each unit is
judged to the byte before its first image (`extraction/disk_space.py`). What a store holds already is known from its header: models
are not opened for this, so a store counts as a model's by its name, and as a data set's by its manifest. Counted are tokens; units
of models or data that cannot be looked at, and test images that are not here, are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import prod
from pathlib import Path

from layerbank.cache import CacheSpec, free_bytes, list_specs, read_store_info

from ..events import OnEvent, StudyShortOfRoom
from .recipe import Recipe
from .study_plan import BYTES, Split, look_at, look_for
from .units import STORAGE_DTYPE, UNIT_ERRORS, StudyOptions

Arrays = Mapping[tuple[str, str], int]
"""(level, kind) -> bytes of an image's tokens"""


def report_disk_space(recipe: Recipe, place: StudyOptions, on_event: OnEvent) -> None:
    """Tell if what the units of a study lack is more than the disk takes; a study of one unit leaves it to that.

    Args:
        recipe: what the study asks for.
        place: where stores and data lie.
        emit: told.
    """
    if len(recipe.models) * len(recipe.data) < 2:
        return
    stores = list_specs(place.cache_root)
    splits: list[tuple[Split, ...]] = []
    for dataset in recipe.data:
        with suppress(*UNIT_ERRORS):  # its unit will say so
            splits.append(look_for(dataset, place).splits)
    missing: list[int] = []
    for model in recipe.models:
        with suppress(*UNIT_ERRORS):
            probes, row_shape = look_at(model, recipe, [])
            if row_shape is not None:
                arrays = {array: BYTES * prod(row_shape(*array)) for one in probes for array in one.arrays}
                missing += [sum(_missing_bytes(model, arrays, one, stores) for one in of_data) for of_data in splits]
    free = free_bytes(place.cache_root)
    if sum(missing) > free:
        on_event(
            StudyShortOfRoom(
                cache_root=place.cache_root,
                num_units=sum(map(bool, missing)),
                needed_bytes=sum(missing),
                free_bytes=free,
            )
        )


def _missing_bytes(model: str, arrays: Arrays, split: Split, stores: Sequence[tuple[Path, CacheSpec]]) -> int:
    """Of the tokens of a split, what no store of the model holds."""
    mine = [
        path
        for path, spec in stores
        if spec.backbone in (model, f"timm/{model}")
        and spec.manifest == split.manifest
        and spec.storage_dtype == STORAGE_DTYPE
    ]
    return min(
        (_lacking(path, arrays, split.num_images) for path in mine), default=split.num_images * sum(arrays.values())
    )


def _lacking(store: Path, arrays: Arrays, num_images: int) -> int:
    info = read_store_info(store)
    complete, begun = ({(one.level, one.kind) for one in some} for some in (info.complete_arrays, info.arrays))
    num_missing = sum(map(len, info.missing_rows))
    return sum(
        size * (0 if array in complete else num_missing if array in begun else num_images)
        for array, size in arrays.items()
    )
