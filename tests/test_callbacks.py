"""A callback that raises ends the run with its error, leaves nothing half written, and the next run goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from photos import TINY_MODEL, write_photos
from study_recipes import FAST, results
from token_stores import tree

import layerbank as lb
from layerbank.cache import list_stores, verify_store
from layerbank.events import Event, ProbeFinished, StudyUnit

TINY: dict[str, Any] = {"image_size": 32, "device": "cpu", "workers": 0}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> lb.ProbeJob:
    folder = tmp_path_factory.mktemp("callbacks")
    (folder / "fast.toml").write_text(FAST)
    photos = write_photos(folder / "photos", {"train": 8, "test": 4})
    probes, protocol = ("ridge-cls", "linear-cls"), str(folder / "fast.toml")
    return lb.ProbeJob(
        data=f"folder:{photos}", model=TINY_MODEL, weights="random", probes=probes, protocol=protocol, **TINY
    )


def in_folder(job: lb.ProbeJob, folder: Path) -> lb.ProbeJob:
    return replace(job, cache_root=folder / "caches", runs_root=folder / "runs")


@pytest.fixture(scope="module")
def finished(job: lb.ProbeJob, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Event]]:
    """The folder of an undisturbed run, and its events."""
    folder, events = tmp_path_factory.mktemp("undisturbed"), list[Event]()
    lb.run(in_folder(job, folder), on_event=events.append)
    return folder, events


def stores(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in tree(folder / "caches").items() if ".zarr/" in name}


def raising(error: Exception, is_it: Callable[[Event], bool]) -> Callable[[Event], None]:
    def on_event(event: Event) -> None:
        if is_it(event):
            raise error

    return on_event


def test_the_run_ends_with_the_error_at_any_event_and_the_next_one_leaves_what_one_run_leaves(
    job: lb.ProbeJob, finished: tuple[Path, list[Event]], tmp_path: Path
) -> None:
    undisturbed, events = finished
    kinds = list(dict.fromkeys(map(type, events)))
    assert len(kinds) > 5
    for number, kind in enumerate(kinds):
        error = (OSError, RuntimeError, lb.RequestError)[number % 3]
        problem = error("data.no_address", uri="x", form="y") if error is lb.RequestError else error("full")
        disturbed = in_folder(job, tmp_path / kind.__name__)
        with pytest.raises(error) as raised:
            lb.run(disturbed, on_event=raising(problem, lambda event, kind=kind: isinstance(event, kind)))
        assert raised.value is problem
        lb.run(disturbed)
        assert stores(tmp_path / kind.__name__) == stores(undisturbed), kind
        assert results(tmp_path / kind.__name__) == results(undisturbed), kind
        assert all(not verify_store(one.path) for one in list_stores(disturbed.cache_root))


@pytest.mark.parametrize(
    ("kind", "executor"),
    [(StudyUnit, None), (ProbeFinished, None), (StudyUnit, lb.LocalExecutor(1))],
    ids=["first", "last", "local"],
)
def test_a_study_ends_too_and_does_not_count_the_error_as_a_failure_of_a_unit(
    job: lb.ProbeJob,
    finished: tuple[Path, list[Event]],
    tmp_path: Path,
    kind: type[Event],
    executor: lb.LocalExecutor | None,
) -> None:
    study = lb.StudyJob(
        models=[job.model],
        weights={job.model: "random"},
        data=[job.data],
        probes=job.probes,
        protocol=job.protocol,
        cache_root=tmp_path / "caches",
        runs_root=tmp_path / "runs",
        **TINY,
    )
    problem = OSError("no space for the events")
    with pytest.raises(OSError, match="no space") as raised:
        lb.run(study, executor=executor, on_event=raising(problem, lambda event: isinstance(event, kind)))
    assert raised.value is problem
    assert not (tmp_path / "runs/failures.jsonl").exists()
    assert len(lb.run(study)) == 2
    assert results(tmp_path) == results(finished[0])
