"""A study: every unit of a recipe, a unit being one model on one data set. Each is what `layerbank probe` does.

The decisions taken here: models in the outer loop, one in memory at a time, one process; a unit takes up whatever a killed run left
in its stores, its sweep journal and its results.jsonl, so a study needs no state of its own. What cannot be done is a row of
RUNS/failures.jsonl and the rest goes on; results.jsonl holds results only. failures.jsonl is written anew at the end of every run:
it says what failed in the last one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cache import CacheError
from probes import ProbeError, resolve_compute

from .backbones import Backbone
from .datasets import ImageSource, open_source
from .errors import PipelineError
from .events import Emit, StudyFailed, StudyUnit, ignore
from .extract import ExtractConfig, Extraction, extract_together, forecast, spec_of
from .memory import memory_for_probes
from .parity import settle
from .probe import Store, check_classes, probe, run_folder, verify_arrays
from .probe_names import NamedProbe, resolve_probes
from .probe_sizes import RowShape, check_heads, leave_out_unfit
from .protocols import open_protocol
from .recipe import Recipe
from .request import ModelRequest, choose_device, choose_precision, choose_workers
from .results import Row
from .room import check_room
from .study.catalogue import SPLITS, check_size, find_entry
from .study.hub import locate_data

FAILURES = "failures.jsonl"
STORAGE_DTYPE = "float16"
FAILS = (PipelineError, CacheError, ProbeError, OSError)  # any other exception is a bug and ends the study
Fail = Callable[[str | None, Exception], None]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What could not be done, and why.

    Attributes:
        model, dataset: as the recipe names them.
        probe: None where nothing of the unit could be done.
        where, expected, got, todo: the message.
    """

    model: str
    dataset: str
    probe: str | None
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
    """

    cache_root: Path = Path("caches")
    runs_root: Path = Path("runs")
    data_root: Path = Path("data")
    fetch: bool = True
    device: str = "auto"
    memory: str | None = None
    num_workers: int | None = None


def run_study(recipe: Recipe, place: Place, *, emit: Emit = ignore) -> tuple[list[Row], list[Failure]]:
    """Do all units of a recipe that are not done, in its order.

    Args:
        recipe: models, data sets, probes, seeds, protocol.
        place: folders and device.
        emit: told what happens.

    Returns:
        Every row of the study, those of earlier runs too, and every failure.

    Raises:
        RequestError: the device cannot compute as the protocol says.
    """
    device = choose_device(place.device)
    resolve_compute(open_protocol(recipe.protocol, seed=0).compute, device)
    rows: list[Row] = []
    failures: list[Failure] = []

    def fail_for(model: str, dataset: str) -> Fail:
        def fail(name: str | None, error: Exception) -> None:
            failures.append(Failure(model=model, dataset=dataset, probe=name, **_four_parts(error)))
            emit(StudyFailed(**asdict(failures[-1])))

        return fail

    for model in recipe.models:
        request = request_of(recipe, model, device)
        try:
            backbone = request.open(device)
        except FAILS as error:
            for dataset in recipe.data:
                fail_for(model, dataset)(None, error)
            continue
        for dataset in recipe.data:
            emit(StudyUnit(model=model, dataset=dataset, num_models=len(recipe.models), num_datasets=len(recipe.data)))
            fail = fail_for(model, dataset)
            try:
                rows += _run_unit(recipe, place, request, backbone, dataset, fail, emit)
            except FAILS as error:
                fail(None, error)
    write_failures(place.runs_root / FAILURES, failures)
    return rows, failures


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


def probes_that_fit(recipe: Recipe, depth: int, row_shape: RowShape, fail: Fail) -> list[NamedProbe]:
    """The probes that a backbone can have; the others fail, each for itself: `linear-cls` of a model without CLS, say."""
    fitting: dict[str, NamedProbe] = {}
    for name in recipe.probes:
        try:
            found = resolve_probes([name], depth, num_heads=recipe.num_heads)
            found = leave_out_unfit(found, row_shape)
            for level, kind in (array for one in found for array in one.arrays):
                row_shape(level, kind)
            check_heads(found, row_shape)
        except FAILS as error:
            fail(name, error)
        else:
            fitting |= {one.name: one for one in found}
    return list(fitting.values())


def _run_unit(
    recipe: Recipe,
    place: Place,
    request: ModelRequest,
    backbone: Backbone,
    dataset: str,
    fail: Fail,
    emit: Emit,
) -> list[Row]:
    uri, sources = open_data(dataset, place)
    named = probes_that_fit(recipe, backbone.depth, backbone.row_shape, fail)
    if not named:
        return []
    arrays = tuple(dict.fromkeys(array for one in named for array in one.arrays))
    # where float16 overflows, this data set goes through a bfloat16 model, as with `layerbank probe`
    settled = settle(
        request, backbone, sources, arrays, storage_dtype=STORAGE_DTYPE, cache_root=place.cache_root, emit=emit
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
    check_room(place.cache_root, [forecast(one, source) for one, source in zip(extractions, sources, strict=True)])
    for extraction, source in zip(extractions, sources, strict=True):
        extract_together([extraction], source, emit=emit)
    train, test = stores
    verify_arrays(stores, arrays)
    rows: list[Row] = []
    for seed in recipe.seeds:
        rows += probe(
            train,
            test,
            named,
            replace(open_protocol(recipe.protocol, seed=0), seed=seed),
            run_folder(place.runs_root, train),
            config=config,
            memory_bytes=memory_for_probes(place.memory),
            device=settled.backbone.device,
            emit=emit,
        )
    return rows


def write_failures(path: Path, failures: Sequence[Failure]) -> None:
    """Leave the failures of a run as JSON lines, whole or not at all; no file where there are none."""
    if not failures:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}")
    with aside.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(failure), ensure_ascii=False) + "\n" for failure in failures)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def _four_parts(error: Any) -> dict[str, str]:
    if isinstance(error, OSError) and not hasattr(error, "todo"):
        todo = "Check the path, its permissions and the space left, then run the study again."
        where = str(error.filename or "a file of the study")
        return {"where": where, "expected": "a file that can be used", "got": str(error), "todo": todo}
    return {part: str(getattr(error, part)) for part in ("where", "expected", "got", "todo")}
