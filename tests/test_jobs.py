"""Jobs as data: what the command line, recipes and Python make, and what `run` does with them."""

from __future__ import annotations

import json
import pickle
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from commands import run as run_command
from messages import raises, refuses
from photos import TINY_MODEL, write_photos
from study_recipes import FAST

import layerbank as lb
from layerbank import RequestError
from layerbank.commands.extract import extract
from layerbank.commands.probe import probe
from layerbank.commands.study import study
from layerbank.events import Event, ProbeFinished, RowsFound, StudyUnitFinished
from layerbank.jobs.job import ExtractJob, ProbeJob, StudyJob, job_value
from layerbank.jobs.recipe import open_recipe
from layerbank.jobs.units import probe_job, units_of

MODEL = {"model": TINY_MODEL, "weights": "random", "image_size": 32, "device": "cpu"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"), {"train": 8, "test": 4})


def job_of(photos: Path, place: Path, **more: Any) -> ProbeJob:
    folders = {"cache_root": place / "caches", "runs_root": place / "runs"}
    return ProbeJob(
        **{**MODEL, "data": f"folder:{photos}", "probes": ("ridge-cls",), "protocol": "quick", **folders, **more}
    )


GIVEN: dict[type[Any], dict[str, Any]] = {
    ExtractJob: {"data": "folder:x", "models": (("a", None), ("b", "random"))},
    ProbeJob: {"data": "folder:x", "model": "a", "probes": ("alf", "linear-cls")},
    StudyJob: {"data": ("folder:x",), "models": ("a",), "probes": ("alf",), "weights": {"a": "random"}},
}


@pytest.mark.parametrize("kind", GIVEN)
def test_a_job_survives_json_and_pickle(kind: type[Any]) -> None:
    job = kind(**GIVEN[kind], views=2, cache_root=Path("c"), parity_threshold=0.5)
    assert kind.from_dict(json.loads(json.dumps(job.to_dict()))) == job == pickle.loads(pickle.dumps(job))


@pytest.mark.parametrize("kind", GIVEN)
def test_unknown_keys_missing_keys_and_newer_versions_are_refused(kind: type[Any]) -> None:
    values = GIVEN[kind]
    with raises("jobs.unknown_job_key", key="view", advice="Did you mean 'views'?"):
        kind.from_dict(values | {"view": 1})
    for name in set(values) - {"weights"}:
        with raises("jobs.missing_job_keys", missing=name):
            kind.from_dict({key: value for key, value in values.items() if key != name})
    for other in ({"version": 2}, {"job": "train"}):
        with raises("jobs.other_job"):
            kind.from_dict(values | other)


WRONG: list[tuple[str, Any]] = [
    ("views", True),
    ("views", -1),
    ("view_scale", "0.1"),
    ("parity_threshold", float("nan")),
    ("precision", "float8"),
    ("on_bad_image", "ignore"),
    ("image_size", 0),
    ("cache_root", 3),
    ("data", None),
    ("models", ()),
    ("models", "timm/a"),
    ("models", (("a", "b", "c"),)),
    ("splits", "train"),
    ("probes", "alf"),
    ("probes", ()),
    ("seeds", [0.5]),
    ("seeds", ()),
    ("seeds", [-1]),
    ("num_heads", 4),
    ("num_heads", [0]),
    ("sweep", "half"),
    ("retrain", 1),
    ("weights", {"a": None}),
    ("weights", "random"),
]


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [(kind, *wrong) for kind in GIVEN for wrong in WRONG if wrong[0] in {one.name for one in fields(kind)}],
)
def test_a_value_of_another_type_or_out_of_its_range_is_refused_however_the_job_is_made(
    kind: type[Any], name: str, value: Any
) -> None:
    if kind is ProbeJob and (name, value) == ("weights", "random"):
        return
    with raises("jobs.wrong_job_value", key=name):
        kind.from_dict(GIVEN[kind] | {name: value})
    with raises("jobs.wrong_job_value", key=name, where=f"{kind.kind} job"):
        kind(**GIVEN[kind] | {name: value})


def test_lists_ranges_numpy_numbers_and_texts_become_what_a_job_holds() -> None:
    job = ProbeJob(data="x", model="a", probes=["alf"], seeds=range(2), views=np.int64(3), cache_root="c", view_scale=1)
    same = ProbeJob(data="x", model="a", probes=("alf",), seeds=(0, 1), views=3, cache_root=Path("c"), view_scale=1.0)
    assert job == same
    assert json.dumps(job.to_dict()) == json.dumps(same.to_dict())


def test_what_is_no_job_is_refused(tmp_path: Path) -> None:
    with raises("executors.not_a_job", type="str"):
        lb.run("smoke")  # type: ignore[arg-type]
    for number in (0, -1, 1.5, "2", None):
        with raises("executors.number_of_workers", got=repr(number)):
            lb.LocalExecutor(number)  # type: ignore[arg-type]


def test_the_command_line_and_python_make_the_same_rows(photos: Path, tmp_path: Path) -> None:
    by_job = lb.run(job_of(photos, tmp_path / "a"))
    options = ["--model", TINY_MODEL, "--weights", "random", "--image-size", "32", "--data", f"folder:{photos}"]
    folders = ["--cache", str(tmp_path / "b" / "caches"), "--runs", str(tmp_path / "b" / "runs")]
    result = run_command("probe", *options, *folders, "--probe", "ridge-cls", "--protocol", "quick", "--json")
    (by_command,) = json.loads(result.stdout)["rows"]
    assert [(row["key"], row["test"]) for row in by_job] == [(by_command["key"], by_command["test"])]


# options of the commands -> the fields of a recipe that say the same, where they have other names
OTHER_NAMES = {
    "model": ("models",),
    "several_weights": ("weights",),
    "splits": ("train_split", "test_split"),
    "views_split": ("train_split",),  # views are of the images that train
    "levels": ("probes",),  # a study stores what its probes read
    "kinds": ("probes",),
    "store": (),  # a study has models and data
    "test_store": (),
}
# how a command runs and what it prints, not what it computes; --overwrite would compute everything anew after each crash
NOT_OF_A_RECIPE = {"processes", "shard", "engine", "events", "as_json", "dry_run", "overwrite"}


@pytest.mark.parametrize("command", [extract, probe, study])
def test_a_recipe_can_express_every_option_of_the_commands(command: click.Command) -> None:
    names = {one.name for one in fields(StudyJob)}
    options = {str(option.name) for option in command.params} - NOT_OF_A_RECIPE - {"recipe", "calibrate"}
    assert {name for option in options for name in OTHER_NAMES.get(option, (option,))} <= names
    for option in command.params:
        if option.name in names - {"seeds"}:
            if isinstance(option.type, click.Choice):
                assert [job_value(StudyJob, option.name, value) for value in option.type.choices]
            if isinstance(option.default, str | int | float):
                default = StudyJob.__dataclass_fields__[option.name].default
                assert job_value(StudyJob, option.name, option.default) == default


def test_the_fields_of_a_study_are_those_of_probe_with_models_and_data_in_the_plural() -> None:
    of_a_study, of_probes = ({one.name for one in fields(kind)} for kind in (StudyJob, ProbeJob))
    assert of_a_study - of_probes == {"models", "data_root", "fetch"}
    assert of_probes - of_a_study == {"model"}


def test_a_recipe_the_command_and_python_make_the_same_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ['models = ["a"]', 'data = ["folder:x"]', 'probes = ["alf"]', 'sweep = "halving"', "views = 2"]
    file = tmp_path / "recipe.toml"
    file.write_text("\n".join([*lines, 'device = "cuda"', 'tap_module = "layers.{i}"', '[weights]\na = "random"']))
    made = StudyJob(
        models=["a"],
        data=["folder:x"],
        probes=["alf"],
        sweep="halving",
        views=2,
        device="cuda",
        tap_module="layers.{i}",
        weights={"a": "random"},
    )
    assert open_recipe(str(file)) == made
    given: list[StudyJob] = []
    monkeypatch.setattr("layerbank.jobs.study_plan.plan_study", lambda job, calibrate: given.append(job) or [])
    run_command("study", str(file), "--dry-run")
    run_command("study", str(file), "--dry-run", "--device", "cpu", "--cache", str(tmp_path), "--no-fetch")
    assert given == [made, replace(made, device="cpu", cache_root=tmp_path, fetch=False)]
    job = probe_job(made, units_of(made)[0], "folder:x")
    assert (job.sweep, job.views, job.tap_module, job.weights) == ("halving", 2, "layers.{i}", "random")
    file.write_text('models = ["a"]\ndata = ["folder:x"]\nprobes = ["alf"]\nswep = "halving"\nviews = "two"\n')
    with raises("jobs.recipe_invalid", num_problems=2) as refused:
        open_recipe(str(file))
    assert "sweep" in str(refused.error)
    with raises("jobs.recipe_invalid", num_problems=2, where="study job"):
        lb.run(replace(made, probes=("alv",), data=("dema:digits",)))


@pytest.mark.parametrize("place", ["this process", "local", "ray"])
def test_a_study_runs_from_python_in_this_process_and_in_executors(photos: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "fast.toml").write_text(FAST)
    job = StudyJob(
        models=[TINY_MODEL],
        weights={TINY_MODEL: "random"},
        data=[f"folder:{photos}"],
        probes=["ridge-cls", "linear-cls"],
        protocol=str(tmp_path / "fast.toml"),
        image_size=32,
        device="cpu",
        cache_root=tmp_path / "caches",
        runs_root=tmp_path / "runs",
    )
    events: list[Event] = []
    with ExitStack() as stack:
        executor: lb.LocalExecutor | lb.RayExecutor | None = None
        if place == "local":
            executor = lb.LocalExecutor(2)
        elif place == "ray":
            executor = stack.enter_context(lb.RayExecutor([job.cache_root, job.runs_root], 1))
        rows = lb.run(job, executor=executor, on_event=events.append)
    assert [row["probe"] for row in rows] == ["ridge-cls", "linear-cls"]
    (finished,) = [one for one in events if isinstance(one, StudyUnitFinished)]
    assert (finished.num_rows, finished.num_failures) == (2, 0)


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
    refuses(run_command("probe", *options, "--probe", ""), "layerbank.empty_value", where="--probe")


def test_a_study_that_fails_in_part_is_an_error_of_run(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(f'models = ["{TINY_MODEL}"]\ndata = ["folder:{tmp_path}/nothing"]\nprobes = ["alf"]\n')
    job = replace(open_recipe(str(file)), cache_root=tmp_path / "caches", runs_root=tmp_path / "runs", device="cpu")
    with raises("executors.study_failed", count=1):
        lb.run(job)


def test_augmented_views_of_a_split_that_is_not_extracted_are_refused(tmp_path: Path) -> None:
    job = ExtractJob(data=f"folder:{tmp_path}", models=((TINY_MODEL, "random"),), views=2, views_split="trian")
    with raises("jobs.views_of_another_split", RequestError, split="trian", splits="train, test"):
        lb.run(job)
