"""What a study would do, before it does anything: units, images, trainings, bytes, and, if asked, hours.

Models are built without weights, and data sets opened where they lie; of one of the catalogue that is not here the training images
are known, the test images are not. What stores and results hold already is not looked at, for the names of stores need the
weights: the plan is that of a study from nothing. Hours are this machine's: models and probes are run for moments on noise
(`forecast_forward.py`, `forecast_training.py`), which takes a minute or several, so it is done when it is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from layerbank.cache import CacheError
from layerbank.probes import HEADS, TrainingProtocol

from ..data.catalogue import find_data, find_entry
from ..errors import LayerbankError, RequestError, WorkError
from ..models.layers import unknown_level
from ..models.listing import open_meta_tower
from ..models.request import choose_device
from ..models.taps import kind_shape
from ..models.tower import measure_widths
from ..planning.forecast_forward import image_seconds
from ..planning.forecast_training import TrainingForecast, num_trained
from ..probing.probe_sizes import RowShape, head_of, token_shape
from ..probing.probe_spec import ProbeSpec, SmallestLevels, TopSettings
from ..probing.protocols import open_protocol
from .recipe import Recipe
from .units import Place, open_data, probes_that_fit, request_of

PLAN_COLUMNS = ("model", "data set", "images", "trainings", "tokens", "time", "remark")
BYTES = 2  # of a value of float16


@dataclass(frozen=True, kw_only=True)
class PlannedUnit:
    """One model on one data set.

    Attributes:
        model, dataset: as the recipe names them.
        num_train, num_test: images; None where nobody knows before the data are here.
        num_trainings: settings of all probes and seeds, those that are the same bits once, and the final training of each.
        forward_s, training_s: how long images and probes would take on this machine, in seconds; None where that was not measured.
        size_bytes: tokens of both splits, of one where the other is unknown; None where neither the model nor the data are known.
        problems: what is known to fail.
    """

    model: str
    dataset: str
    num_train: int | None
    num_test: int | None
    num_trainings: int
    forward_s: float | None
    training_s: float | None
    size_bytes: int | None
    problems: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Split:
    """Images of a data set; `manifest`: their digest, None where they are not here."""

    num_images: int
    manifest: str | None


@dataclass(frozen=True, kw_only=True)
class Data:
    """What is known of a data set before anything is done: both splits, the training images alone, or nothing."""

    splits: tuple[Split, ...]
    num_classes: int | None
    problems: tuple[str, ...]

    @property
    def num_train(self) -> int | None:
        return self.splits[0].num_images if self.splits else None

    @property
    def num_test(self) -> int | None:
        return self.splits[1].num_images if len(self.splits) > 1 else None


def plan_study(recipe: Recipe, place: Place, *, calibrate: bool = False) -> list[PlannedUnit]:
    """Every unit of a recipe, in its order; nothing is fetched, trained for real or written.

    Args:
        recipe: what the study asks for.
        place: where data lie, and the device.
        calibrate: measure how long it would take here.
    """
    found = {dataset: look_for(dataset, place) for dataset in recipe.data}
    device = choose_device(place.device)
    training = TrainingForecast((data.num_classes for data in found.values() if data.num_classes), device)
    protocol = open_protocol(recipe.protocol, seed=0)
    units = []
    for model in recipe.models:
        problems: list[str] = []
        probes, row_shape = look_at(model, recipe, problems)
        arrays = list(dict.fromkeys(array for one in probes for array in one.arrays))
        image_bytes = sum(BYTES * prod(row_shape(*array)) for array in arrays) if row_shape else None
        num_trainings = sum(_num_trainings(one, protocol, row_shape) for one in probes) if row_shape else 0
        measured = calibrate and row_shape is not None and bool(probes)
        image_s = image_seconds(request_of(recipe, model, device), arrays, device) if measured else None
        for dataset, data in found.items():
            num_images = (data.num_train or 0) + (data.num_test or 0)
            training_s = None
            if measured and row_shape and data.num_train and data.num_classes:
                training_s = len(recipe.seeds) * training.seconds(
                    probes, row_shape, protocol, num_images=data.num_train, num_classes=data.num_classes
                )
            units.append(
                PlannedUnit(
                    model=model,
                    dataset=dataset,
                    num_train=data.num_train,
                    num_test=data.num_test,
                    num_trainings=num_trainings * len(recipe.seeds),
                    forward_s=None if image_s is None else num_images * image_s,
                    training_s=training_s,
                    size_bytes=num_images * image_bytes if num_images and image_bytes else None,
                    problems=(*problems, *data.problems),
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
            "?" if (seconds := _seconds(unit)) is None else duration(seconds),
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
    known = [seconds for unit in units if (seconds := _seconds(unit)) is not None]
    hours = f"; forecast for this machine, one process: {duration(sum(known))}" if known else "; hours: --calibrate"
    return (
        f"{len(units)} units from nothing: {num_images:,} images through a model, {num_trainings:,} trainings, "
        f"{size_bytes / 1e9:,.2f} GB of tokens{hours}" + (", without what is not known (?)" if unknown else "")
    )


def duration(seconds: float) -> str:
    """A time for people.

    >>> duration(50), duration(2000), duration(50_000), duration(5e7)
    ('50 s', '33 min', '13.9 h', '13,889 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours = seconds / 3600
    return f"{seconds / 60:.0f} min" if hours < 1.5 else f"{hours:,.1f} h" if hours < 100 else f"{hours:,.0f} h"


def _seconds(unit: PlannedUnit) -> float | None:
    return None if unit.forward_s is None or unit.training_s is None else unit.forward_s + unit.training_s


def look_for(dataset: str, place: Place) -> Data:
    """A data set of a recipe, where it lies; nothing is fetched."""
    try:
        _, sources = open_data(dataset, replace(place, fetch=False))
    except (LayerbankError, CacheError) as error:
        entry = None if ":" in dataset else find_entry(dataset)
        fetched = entry is not None and place.fetch and find_data(entry, place.data_root) is None
        told = "to be fetched" if fetched else f"{error.where}: {error.got}"
        if entry is None:
            return Data(splits=(), num_classes=None, problems=(told,))
        return Data(
            splits=(Split(num_images=entry.num_train, manifest=None),), num_classes=entry.num_classes, problems=(told,)
        )
    splits = tuple(Split(num_images=len(source), manifest=source.manifest_digest) for source in sources)
    return Data(splits=splits, num_classes=len(sources[0].class_names), problems=())


def look_at(model: str, recipe: Recipe, problems: list[str]) -> tuple[list[ProbeSpec], RowShape | None]:
    """The probes that are trained on a model, what they are made of included, and the shapes of its tokens; what does not fit is
    added to the problems."""
    try:
        row_shape, depth = _shapes(model, recipe)
    except (RequestError, WorkError) as error:
        problems.append(f"{error.where}: {error.got}")
        return [], None
    named = probes_that_fit(recipe, depth, row_shape, lambda name, error: problems.append(f"{name} does not fit"))
    return with_bases(named), row_shape


def with_bases(named: Sequence[ProbeSpec]) -> list[ProbeSpec]:
    """The probes that are trained for some: themselves, each once, and what they are made of."""
    all_of_them = [one for probe in named for one in ((probe.derived.base, probe) if probe.derived else (probe,))]
    return [one for number, one in enumerate(all_of_them) if one not in all_of_them[:number]]


def _num_trainings(named: ProbeSpec, protocol: TrainingProtocol, row_shape: RowShape) -> int:
    """Of one seed: the grid, or what is trained instead, and the final training."""
    if HEADS[named.head].is_solved:
        return 0  # nothing is trained
    changed = replace(protocol, **named.protocol)  # type: ignore[arg-type]  # checked by TrainingProtocol
    grid = sum(num_trained(head_of(one, token_shape(one, row_shape)[0]), changed) for one in named.family)
    match named.derived:
        case SmallestLevels():
            return len(named.levels) * (len(named.levels) + 1) // 2 + 1
        case TopSettings(num_members=num_members):
            return 2 * min(num_members, grid)
        case _:
            return grid + 1


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
