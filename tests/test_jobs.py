"""Jobs as data: what the command line, recipes and Python make, and what `run` does with them."""

from __future__ import annotations

import json
import pickle
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from commands import run as run_command
from messages import raises, refuses
from photos import TINY_MODEL, write_photos

import layerbank as lb
from layerbank.events import Event, ProbeFinished, RowsFound
from layerbank.jobs.job import NEVER_IN_FILES, ExtractJob, ProbeJob
from layerbank.jobs.probe import protocol_of
from layerbank.jobs.recipe import MORE, open_recipe
from layerbank.jobs.units import StudyOptions, probe_job, units_of

MODEL = {"model": TINY_MODEL, "weights": "random", "image_size": 32, "device": "cpu"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"), {"train": 8, "test": 4})


def job_of(photos: Path, place: Path, **more: Any) -> ProbeJob:
    folders = {"cache_root": place / "caches", "runs_root": place / "runs"}
    return ProbeJob(
        **{**MODEL, "data": f"folder:{photos}", "probes": ("ridge-cls",), "protocol": "quick", **folders, **more}
    )


@pytest.mark.parametrize("kind", [ExtractJob, ProbeJob])
def test_a_job_survives_json_and_pickle(kind: type[Any]) -> None:
    given: dict[str, Any] = {"data": "folder:x", "views": 2, "cache_root": Path("c"), "parity_threshold": 0.5}
    given |= (
        {"models": (("a", None), ("b", "random"))}
        if kind is ExtractJob
        else {"model": "a", "probes": ("alf", "linear-cls")}
    )
    job = kind(**given)
    assert kind.from_dict(json.loads(json.dumps(job.to_dict()))) == job == pickle.loads(pickle.dumps(job))


def test_unknown_keys_other_types_and_newer_versions_are_refused() -> None:
    values = {"data": "folder:x", "model": "a", "probes": ["alf"]}
    with raises("jobs.unknown_job_key", key="probe", nearest="probes"):
        ProbeJob.from_dict(values | {"probe": ["alf"]})
    for name, value in {
        "views": True,
        "seeds": [0.5],
        "view_scale": "0.1",
        "num_heads": 4,
        "data": None,
        "probes": "alf",
    }.items():
        with raises("jobs.wrong_job_value", key=name):
            ProbeJob.from_dict(values | {name: value})
    for name in ("data", "model", "probes"):
        with raises("jobs.missing_job_keys", missing=name):
            ProbeJob.from_dict({key: value for key, value in values.items() if key != name})
    with raises("jobs.missing_job_keys", missing="data, models"):
        ExtractJob.from_dict({})
    for other in ({"version": 2}, {"job": "extract"}):
        with raises("jobs.other_job"):
            ProbeJob.from_dict(values | other)
    with raises("jobs.no_probes"):
        protocol_of(ProbeJob.from_dict(values | {"probes": []}))
    with raises("jobs.no_seeds"):
        protocol_of(ProbeJob.from_dict(values | {"seeds": []}))


def test_the_command_line_and_python_make_the_same_rows(photos: Path, tmp_path: Path) -> None:
    by_job = lb.run(job_of(photos, tmp_path / "a"))
    options = ["--model", TINY_MODEL, "--weights", "random", "--image-size", "32", "--data", f"folder:{photos}"]
    folders = ["--cache", str(tmp_path / "b" / "caches"), "--runs", str(tmp_path / "b" / "runs")]
    result = run_command("probe", *options, *folders, "--probe", "ridge-cls", "--protocol", "quick", "--json")
    (by_command,) = json.loads(result.stdout)["rows"]
    assert [(row["key"], row["test"]) for row in by_job] == [(by_command["key"], by_command["test"])]


def test_a_recipe_can_express_every_option_of_probe(tmp_path: Path) -> None:
    of_the_study = {"cache_root", "runs_root", "device", "memory", "workers", "model", "data", "tap_module"}
    of_a_recipe = {"tap", "probes", "seeds", "protocol", "num_heads", "image_size", "weights"}
    assert {one.name for one in fields(ProbeJob)} == {*MORE, *NEVER_IN_FILES, *of_the_study, *of_a_recipe}
    file = tmp_path / "recipe.toml"
    file.write_text(
        'models = ["a"]\ndata = ["folder:x"]\nprobes = ["alf"]\nsweep = "halving"\nviews = 2\nretrain = true\n'
    )
    recipe = open_recipe(str(file))
    job = probe_job(recipe, StudyOptions(), units_of(recipe)[0], "folder:x")
    assert (job.sweep, job.views, job.retrain, job.storage_dtype) == ("halving", 2, True, "float16")
    file.write_text('models = ["a"]\ndata = ["folder:x"]\nprobes = ["alf"]\nswep = "halving"\nviews = "two"\n')
    with raises("jobs.recipe_invalid", num_problems=2) as refused:
        open_recipe(str(file))
    assert "sweep" in str(refused.error)


def test_extraction_as_a_job_in_two_processes_computes_nothing_twice(photos: Path, tmp_path: Path) -> None:
    job = lb.ExtractJob(
        data=f"folder:{photos}",
        models=((TINY_MODEL, "random"),),
        image_size=32,
        levels="last",
        cache_root=tmp_path,
        device="cpu",
    )
    events: list[Event] = []
    (folder,) = lb.run(job, on_event=events.append)
    assert Path(folder).is_dir()
    assert lb.run(replace(job, splits=("test", "train")), on_event=events.append) == [folder]
    found = [event for event in events if isinstance(event, RowsFound)]
    assert [one.num_missing for one in found] == [24, 12, 0, 0]


def test_rows_that_are_there_are_not_verified_again(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(photos, tmp_path, seeds=(0, 1))
    calls: list[int] = []
    monkeypatch.setattr("layerbank.jobs.probe.verify_tokens", lambda splits: calls.append(1))
    lb.run(job)
    assert calls == [1]
    events: list[Event] = []
    lb.run(job, on_event=events.append)
    assert calls == [1]
    assert [event.reused for event in events if isinstance(event, ProbeFinished)] == [True, True]


def test_every_event_is_a_line_of_the_events_file(photos: Path, tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    options = ["--model", TINY_MODEL, "--weights", "random", "--image-size", "32", "--data", f"folder:{photos}"]
    run_command("extract", *options, "--levels", "last", "--cache", str(tmp_path / "caches"), "--events", str(file))
    names = [json.loads(line)["event"] for line in file.read_text().splitlines()]
    assert names[0] == "HashingStarted"
    assert names.count("RowsFound") == 2
    assert "ExtractionFinished" in names
    refuses(run_command("extract", *options, "--events", "/dev/null"), "layerbank.output_not_a_file")
    folder = tmp_path / "nowhere" / "events.jsonl"
    refuses(run_command("extract", *options, "--events", str(folder)), "layerbank.output_not_writable")
    refuses(run_command("probe", *options, "--probe", ""), "jobs.no_probes")


def test_a_study_that_fails_in_part_is_an_error_of_run(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(f'models = ["{TINY_MODEL}"]\ndata = ["folder:{tmp_path}/nothing"]\nprobes = ["alf"]\n')
    options = StudyOptions(cache_root=tmp_path / "caches", runs_root=tmp_path / "runs", device="cpu")
    with raises("executors.study_failed", count=1):
        lb.run(open_recipe(str(file)), options=options)
