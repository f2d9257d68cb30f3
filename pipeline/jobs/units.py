"""A unit of a study: one model on one data set, all probes and seeds. Each is what `layerbank probe` does.

The decisions taken here: a unit needs nothing but a recipe, a place and its name, all of which pickle, so any process that sees the
same folders may do it; it takes up whatever a killed run left in its stores, its sweep journal and its results.jsonl, and writes
its own rows. What cannot be done comes back as data and the rest of the unit goes on; an exception is a bug.

Knows nothing of other units: who does which, and in what order, is for `studies.py` to say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from layerbank.cache import CacheError
from layerbank.probes import ProbeError, resolve_compute

from ..data.catalogue import SPLITS, check_size, find_entry, locate_data
from ..data.sources import ImageSource, open_source
from ..errors import LayerbankError
from ..events import OnEvent, StudyFailed, StudyUnit, ignore
from ..extraction.disk_space import check_disk_space
from ..extraction.extract import ExtractConfig, Extraction, extract_together, forecast, spec_of
from ..extraction.parity import settle
from ..memory import memory_for_probes
from ..models.backbone import Backbone
from ..models.request import ModelRequest, choose_device, choose_precision, choose_workers
from ..probing.probe import Store, check_classes, probe, run_folder, verify_arrays
from ..probing.probe_sizes import RowShape, check_heads, leave_out_unfit
from ..probing.probe_spec import ProbeSpec, parse_probes
from ..probing.protocols import open_protocol
from ..probing.results import Row
from .recipe import Recipe

STORAGE_DTYPE = "float16"
FAILS = (LayerbankError, CacheError, ProbeError, OSError)  # any other exception is a bug and ends the study
Fail = Callable[[str | None, Exception], None]


class FailWithSeed(Protocol):
    """Told what could not be done: `None` for the rest of the unit; and by which seed, if there are several."""

    def __call__(self, name: str | None, error: Exception, seed: int | None = None) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One model on one data set.

    Attributes:
        number: in the order of the study, from 0.
        model, dataset: as the recipe names them.
    """

    number: int
    model: str
    dataset: str


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What could not be done, and why.

    Attributes:
        model, dataset: as the recipe names them.
        probe: None where nothing of the unit could be done.
        seed: of a probe that failed by one of several seeds, that one.
        where, expected, got, todo: the message.
    """

    model: str
    dataset: str
    probe: str | None
    seed: int | None = None
    where: str
    expected: str
    got: str
    todo: str


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a study finds data and leaves what it makes, and on what it runs.

    Attributes:
        cache_root: folder of all stores.
        runs_root: folder of all results.
        data_root: folder of the catalogue's data sets.
        fetch: whether a data set that is not there may be fetched.
        device: auto, cpu, cuda, ...
        memory: what the whole program may take, such as 4GB; None is 80 % of what is free.
        num_workers: decoding processes; None is by the number of cores.
        num_sharers: how many processes do units on this machine at once; each takes its part of the memory.
    """

    cache_root: Path = Path("caches")
    runs_root: Path = Path("runs")
    data_root: Path = Path("data")
    fetch: bool = True
    device: str = "auto"
    memory: str | None = None
    num_workers: int | None = None
    num_sharers: int = 1


@dataclass(frozen=True, kw_only=True)
class UnitDone:
    """What became of a unit.

    Attributes:
        unit: which.
        rows: of results.jsonl, those of earlier runs too, in the order of seeds and probes.
        failures: what could not be done.
    """

    unit: Unit
    rows: tuple[Row, ...]
    failures: tuple[Failure, ...]


def lost_unit(unit: Unit, reason: str, on_event: OnEvent = ignore) -> UnitDone:
    """What became of a unit whose process was lost, which is told."""
    failure = Failure(
        model=unit.model,
        dataset=unit.dataset,
        probe=None,
        where="the process of this unit",
        expected="to live until the unit is done",
        got=reason,
        todo="What it had finished is kept: run the study again. If memory ran out, use fewer processes or give --memory.",
    )
    on_event(StudyFailed(**asdict(failure)))
    return UnitDone(unit=unit, rows=(), failures=(failure,))


class OpenModels:
    """Opens models and keeps the last one: the units of a model stand side by side in a study.

    A model that cannot be opened is not tried again for its next data set.
    """

    def __init__(self) -> None:
        self._last: tuple[ModelRequest, str, Backbone | Exception] | None = None

    def open(self, request: ModelRequest, device: str) -> Backbone:
        """The model on its device.

        Raises:
            RequestError, OSError: as `ModelRequest.open`.
        """
        if self._last is None or self._last[:2] != (request, device):
            self._last = None  # before the next one takes its memory
            opened: Backbone | Exception
            try:
                opened = request.open(device)
            except FAILS as error:
                opened = error
            self._last = (request, device, opened)
        if isinstance(self._last[2], Exception):
            raise self._last[2]
        return self._last[2]


def units_of(recipe: Recipe) -> list[Unit]:
    """Every unit of a recipe, models in the outer loop. They are independent: any may be done before, after or beside any other."""
    pairs = ((model, dataset) for model in recipe.models for dataset in recipe.data)
    return [Unit(number=number, model=model, dataset=dataset) for number, (model, dataset) in enumerate(pairs)]


def run_unit(
    recipe: Recipe, place: Place, unit: Unit, *, models: OpenModels | None = None, on_event: OnEvent = ignore
) -> UnitDone:
    """Do what is not done of a unit: extract, train, test, write rows.

    Args:
        recipe: what the study asks for.
        place: folders and device.
        unit: of `units_of(recipe)`.
        models: for a process that does several units one after the other.
        emit: told what happens.
    """
    failures: list[Failure] = []

    def fail(name: str | None, error: Exception, seed: int | None = None) -> None:
        failures.append(Failure(model=unit.model, dataset=unit.dataset, probe=name, seed=seed, **_four_parts(error)))
        on_event(StudyFailed(**asdict(failures[-1])))

    on_event(StudyUnit(model=unit.model, dataset=unit.dataset))
    rows: list[Row] = []
    try:
        device = choose_device(place.device)
        check_compute(recipe, device)  # before the model; a node need not have what the driver has
        request = request_of(recipe, unit.model, device)
        backbone = (models or OpenModels()).open(request, device)
        for row in _rows(recipe, place, request, backbone, unit.dataset, fail, on_event):
            rows.append(row)
    except FAILS as error:
        fail(None, error)
    return UnitDone(unit=unit, rows=tuple(rows), failures=tuple(failures))


def check_compute(recipe: Recipe, device: str) -> None:
    """Refuse a protocol that a device cannot compute by, before hours of extraction.

    Raises:
        SettingError: such as tf32 on a CPU.
    """
    resolve_compute(open_protocol(recipe.protocol, seed=0).compute, device)


def request_of(recipe: Recipe, model: str, device: str) -> ModelRequest:
    """How a model of a recipe is opened."""
    return ModelRequest(
        model=model,
        weights=recipe.weights.get(model),
        tap=recipe.tap,
        image_size=recipe.image_size,
        precision=choose_precision("auto", device),
    )


def open_data(name: str, place: Place) -> tuple[str, list[ImageSource]]:
    """The URI of a data set of a recipe, and its train and test split.

    Raises:
        WorkError: a data set of the catalogue that is neither there nor to be had.
        RequestError: no such data, or one of another size than the study's.
    """
    entry = None if ":" in name else find_entry(name)
    uri = name if entry is None else locate_data(entry, place.data_root, fetch=place.fetch)
    train, test = (open_source(uri, split) for split in SPLITS)
    if entry is not None:
        check_size(entry, num_train=len(train), num_classes=len(train.class_names))
    check_classes(train, test)
    return uri, [train, test]


def probes_that_fit(recipe: Recipe, depth: int, row_shape: RowShape, fail: Fail) -> list[ProbeSpec]:
    """The probes that a backbone can have; the others fail, each for itself: `linear-cls` of a model without CLS, say."""
    fitting: dict[str, ProbeSpec] = {}
    for name in recipe.probes:
        try:
            found = parse_probes([name], depth, num_heads=recipe.num_heads)
            found = leave_out_unfit(found, row_shape)
            for level, kind in (array for one in found for array in one.arrays):
                row_shape(level, kind)
            check_heads(found, row_shape)
        except FAILS as error:
            fail(name, error)
        else:
            fitting |= {one.name: one for one in found}
    return list(fitting.values())


def _rows(
    recipe: Recipe,
    place: Place,
    request: ModelRequest,
    backbone: Backbone,
    dataset: str,
    fail: FailWithSeed,
    on_event: OnEvent,
) -> Iterator[Row]:
    """What a unit comes to, seed by seed."""
    uri, sources = open_data(dataset, place)
    named = probes_that_fit(recipe, backbone.depth, backbone.row_shape, fail)
    if not named:
        return
    arrays = tuple(dict.fromkeys(array for one in named for array in one.arrays))
    # where float16 overflows, this data set goes through a bfloat16 model, as with `layerbank probe`
    settled = settle(
        request,
        backbone,
        sources,
        arrays,
        storage_dtype=STORAGE_DTYPE,
        cache_root=place.cache_root,
        open_split=partial(open_source, uri),
        on_event=on_event,
    )
    config = {"model": settled.request.to_dict(), "data": uri}
    extract_config = ExtractConfig(
        arrays=arrays,
        storage_dtype=STORAGE_DTYPE,
        num_workers=choose_workers(place.num_workers, str(settled.backbone.device)),
    )
    stores, extractions = [], []
    for source in sources:
        spec = spec_of(settled.backbone, source, STORAGE_DTYPE)
        stores.append(Store(spec.store_path(place.cache_root), spec))
        extractions.append(
            Extraction(
                backbone=settled.backbone,
                config=extract_config,
                store=stores[-1].path,
                request=config,
                parity=settled.parity.get(source.split),
            )
        )
    check_disk_space(
        place.cache_root, [forecast(one, source) for one, source in zip(extractions, sources, strict=True)]
    )
    for extraction, source in zip(extractions, sources, strict=True):
        extract_together([extraction], source, on_event=on_event)
    train, test = stores
    verify_arrays(stores, arrays)
    for seed in recipe.seeds:
        yield from probe(
            train,
            test,
            named,
            replace(open_protocol(recipe.protocol, seed=0), seed=seed),
            run_folder(place.runs_root, train),
            config=config,
            memory_bytes=memory_for_probes(place.memory, place.num_sharers),
            device=settled.backbone.device,
            fail=partial(fail, seed=seed if len(recipe.seeds) > 1 else None),
            on_event=on_event,
        )


def _four_parts(error: Any) -> dict[str, str]:
    if isinstance(error, OSError) and not hasattr(error, "todo"):
        todo = "Check the path, its permissions and the space left, then run the study again."
        where = str(error.filename or "a file of the study")
        return {"where": where, "expected": "a file that can be used", "got": str(error), "todo": todo}
    return {part: str(getattr(error, part)) for part in ("where", "expected", "got", "todo")}
