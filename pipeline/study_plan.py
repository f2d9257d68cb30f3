"""What a study would do, before it does anything: units, images, trainings, bytes.

Models are built without weights, and data sets opened where they lie; of one of the catalogue that is not here the training images
are known, the test images are not. What stores and results hold already is not looked at, for the names of stores need the
weights: the plan is that of a study from nothing. It says no hours: they are the machine's, and the headers of the shipped recipes
have those that were measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from cache import CacheError
from probes import SOLVED_KINDS, TrainingProtocol

from .errors import PipelineError
from .layers import unknown_level
from .models import open_meta_tower
from .probe_names import NamedProbe
from .probe_sizes import RowShape, head_of, token_shape
from .protocols import open_protocol
from .recipe import Recipe
from .study.catalogue import find_data, find_entry
from .taps import kind_shape
from .tower import measure_widths
from .units import Place, open_data, probes_that_fit

PLAN_COLUMNS = ("model", "data set", "images", "trainings", "tokens", "remark")
BYTES = 2  # of a value of float16


@dataclass(frozen=True, kw_only=True)
class PlannedUnit:
    """One model on one data set.

    Attributes:
        model, dataset: as the recipe names them.
        num_train, num_test: images; None where nobody knows before the data are here.
        num_trainings: settings of all probes and seeds, and the final training of each.
        size_bytes: tokens of both splits, of one where the other is unknown; None where neither the model nor the data are known.
        problems: what is known to fail.
    """

    model: str
    dataset: str
    num_train: int | None
    num_test: int | None
    num_trainings: int
    size_bytes: int | None
    problems: tuple[str, ...]


def plan_study(recipe: Recipe, place: Place) -> list[PlannedUnit]:
    """Every unit of a recipe, in its order; nothing is fetched, computed or written."""
    counts = {dataset: _count_images(dataset, place) for dataset in recipe.data}
    units = []
    for model in recipe.models:
        num_trainings, image_bytes, of_model = _look_at(model, recipe)
        for dataset, (num_train, num_test, of_data) in counts.items():
            num_images = (num_train or 0) + (num_test or 0)
            units.append(
                PlannedUnit(
                    model=model,
                    dataset=dataset,
                    num_train=num_train,
                    num_test=num_test,
                    num_trainings=num_trainings,
                    size_bytes=num_images * image_bytes if num_images and image_bytes else None,
                    problems=(*of_model, *of_data),
                )
            )
    return units


def plan_table(units: Sequence[PlannedUnit]) -> list[list[str]]:
    """Lines under PLAN_COLUMNS."""
    return [
        [
            unit.model,
            unit.dataset,
            f"{_number(unit.num_train)} + {_number(unit.num_test)}",
            f"{unit.num_trainings:,}",
            "?" if unit.size_bytes is None else f"{unit.size_bytes / 1e9:,.3f} GB",
            "; ".join(unit.problems),
        ]
        for unit in units
    ]


def plan_title(units: Sequence[PlannedUnit]) -> str:
    """The sum."""
    num_images = sum((unit.num_train or 0) + (unit.num_test or 0) for unit in units)
    size_bytes = sum(unit.size_bytes or 0 for unit in units)
    num_trainings = sum(unit.num_trainings for unit in units)
    unknown = any(unit.num_test is None for unit in units)
    return (
        f"{len(units)} units from nothing: {num_images:,} images through a model, {num_trainings:,} trainings, "
        f"{size_bytes / 1e9:,.2f} GB of tokens" + (", without what is not known (?)" if unknown else "")
    )


def _count_images(dataset: str, place: Place) -> tuple[int | None, int | None, tuple[str, ...]]:
    try:
        _, sources = open_data(dataset, replace(place, fetch=False))
    except (PipelineError, CacheError) as error:
        entry = None if ":" in dataset else find_entry(dataset)
        fetched = entry is not None and place.fetch and find_data(entry, place.data_root) is None
        told = "to be fetched" if fetched else f"{error.where}: {error.got}"
        return (entry.num_train if entry else None), None, (told,)
    return len(sources[0]), len(sources[1]), ()


def _look_at(model: str, recipe: Recipe) -> tuple[int, int | None, tuple[str, ...]]:
    """Trainings on one data set, bytes of an image's tokens, and what does not fit."""
    problems: list[str] = []
    try:
        row_shape, depth = _shapes(model, recipe)
    except PipelineError as error:
        return 0, None, (f"{error.where}: {error.got}",)
    named = probes_that_fit(recipe, depth, row_shape, lambda name, error: problems.append(f"{name} does not fit"))
    protocol = open_protocol(recipe.protocol, seed=0)
    per_seed = sum(_num_settings(one, protocol, row_shape) + 1 for one in named)
    arrays = dict.fromkeys(array for one in named for array in one.arrays)
    return per_seed * len(recipe.seeds), sum(BYTES * prod(row_shape(*array)) for array in arrays), tuple(problems)


def _num_settings(named: NamedProbe, protocol: TrainingProtocol, row_shape: RowShape) -> int:
    if named.head in SOLVED_KINDS:
        return 0  # nothing is trained
    changed = replace(protocol, **named.protocol)  # type: ignore[arg-type]  # checked by TrainingProtocol
    return sum(len(changed.settings(head_of(one, token_shape(one, row_shape)[0]))) for one in named.family)


def _shapes(model: str, recipe: Recipe) -> tuple[RowShape, int]:
    tower = open_meta_tower(model, tap=recipe.tap, image_size=recipe.image_size)
    widths = measure_widths(tower, recipe.tap)

    def row_shape(level: str, kind: str) -> tuple[int, ...]:
        if level not in widths:
            raise unknown_level(level, list(widths))
        return (*kind_shape(kind, tower.layout), widths[level])

    return row_shape, len(tower.blocks)


def _number(count: int | None) -> str:
    return "?" if count is None else f"{count:,}"
