"""No file makes code run: a model that runs code is opened only with permission, whichever command or function opens it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest
from click.testing import Result
from commands import run
from hub_repository import SIZE, has_run, write_repository
from messages import raises, refuses
from study_recipes import FAST

import layerbank as lb
from layerbank.cli import main
from layerbank.executors.local import LocalExecutor
from layerbank.executors.studies import run_study
from layerbank.jobs.recipe import open_recipe
from layerbank.jobs.study_plan import plan_study
from layerbank.models.families import MODEL_FAMILIES, models_with_code
from layerbank.models.listing import open_meta_tower
from layerbank.models.trust import CodePermission, trust_file

ALLOW = "--allow-code"
RUNS_CODE = [name for name, family in MODEL_FAMILIES.items() if family.code_of is not None]


class Place(NamedTuple):
    """Files that name a model with code of its own, and what a command takes for each of its parameters."""

    model: str
    repository: Path
    values: dict[str, Any]


@pytest.fixture(scope="module")
def place(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A store, results, a saved probe and a recipe, as somebody else may have made them."""
    folder = tmp_path_factory.mktemp("theirs")
    repository = write_repository(folder / "repository")
    model, data = f"torchhub:{repository}:tiny", f"folder:{photos}"
    (folder / "fast.toml").write_text(FAST)
    more = f"protocol = {json.dumps(str(folder / 'fast.toml'))}\nimage_size = {SIZE}\n"
    (folder / "recipe.toml").write_text(
        f"models = [{json.dumps(model)}]\ndata = [{json.dumps(data)}]\nprobes = ['linear-cls']\n{more}"
    )
    roots = ("--cache", folder / "caches", "--runs", folder / "runs", "--workers", "0")
    made = run("study", folder / "recipe.toml", *roots, ALLOW, model)
    assert made.exit_code == 0, made.output
    assert has_run(repository)
    (store,) = folder.glob("caches/*/*-test-*.zarr")
    (probe,) = folder.glob("runs/*/*/linear-cls-*")
    assert run("cache", "export", store, folder / "store.h5").exit_code == 0
    values = {"model": model, "models": model, "data": data, "image_size": SIZE, "recipe": folder / "recipe.toml"}
    values |= {"store": store, "stores": store, "folder": probe, "runs": folder / "runs", "file": folder / "store.h5"}
    values |= {"cache_root": folder / "caches", "probe": probe, "output": folder / "exported"}
    return Place(model, repository, values)


@pytest.fixture(autouse=True)
def _has_not_run_yet(place: Place) -> None:
    has_run(place.repository)


def commands(group: click.Group = main, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command of the program, with its words."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


def invocations() -> Iterator[Any]:
    """Every command, plain and with `--dry-run` where it has that."""
    for path, command in commands():
        for flags in [(), ("--dry-run",)] if any(one.name == "dry_run" for one in command.params) else [()]:
            yield pytest.param(path, command, flags, id=" ".join((*path, *flags)))


def arguments_of(command: click.Command, values: dict[str, Any]) -> list[object]:
    """Arguments for all that a command takes of these files."""
    found: list[object] = []
    for one in command.params:
        if one.name in values and (one.required or one.name in ("cache_root", "image_size", "stores")):
            found += [values[one.name]] if isinstance(one, click.Argument) else [one.opts[0], values[one.name]]
        assert one.name in values or not one.required, f"say here what a test gives as {one.name}"
    return found


@pytest.mark.parametrize(("path", "command", "flags"), list(invocations()))
def test_no_command_runs_code_that_a_file_or_a_model_id_names(
    path: tuple[str, ...],
    command: click.Command,
    flags: tuple[str, ...],
    place: Place,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    if not (arguments := arguments_of(command, place.values)):
        return
    result = run(*path, *arguments, *flags)
    assert not has_run(place.repository)
    if any(ALLOW in one.opts for one in command.params):
        error = refuses(result, "models.code_not_allowed", model=place.model, option=f"{ALLOW} {place.model}")
        asks = {"predict": "folder", "export": "probe", "study": "recipe", "repair": "store"}.get(path[-1])
        assert asks is None or error.values["asked_by"].startswith(str(place.values[asks]))


@pytest.mark.parametrize(
    ("path", "command"),
    [
        pytest.param(path, command, id=" ".join(path))
        for path, command in commands()
        if any(ALLOW in one.opts for one in command.params)
    ],
)
def test_permission_is_given_by_the_command_line_or_the_trust_file(
    path: tuple[str, ...], command: click.Command, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [*path, *arguments_of(command, place.values), *(["--dry-run"] if "study" in path else [])]
    arguments += ["--probe", "linear-cls", "--protocol", str(place.values["recipe"].with_name("fast.toml"))] * (
        path == ("probe",)
    )

    def works(result: Result) -> bool:
        if path != ("export",):  # this model depends on the number of images, which a graph cannot express
            assert result.exit_code == 0, result.output
        return has_run(place.repository)

    assert works(run(*arguments, ALLOW, place.model))
    shutil.rmtree(place.values["output"], ignore_errors=True)
    trust(place.model)
    assert works(run(*arguments))


def trust(*models: str) -> None:
    trust_file().parent.mkdir(parents=True, exist_ok=True)
    trust_file().write_text(f"models = {json.dumps(models)}")


def test_python_asks_for_the_same_permission(place: Place, tmp_path: Path) -> None:
    options = {"data": place.values["data"], "image_size": SIZE, "levels": "last", "cache_root": tmp_path, "workers": 0}
    job = lb.ExtractJob(models=((place.model, None),), **options)
    study = replace(open_recipe(str(place.values["recipe"])), runs_root=tmp_path / "runs")
    for attempt in (
        lambda: lb.open_model(place.model, image_size=SIZE),
        lambda: lb.Classifier(place.values["folder"]),
        lambda: lb.run(job),
        lambda: lb.run(job, executor=LocalExecutor(2)),
        lambda: run_study(study),
        lambda: run_study(study, executor=LocalExecutor(1)),
        lambda: lb.run(study),
        lambda: plan_study(study),
        lambda: open_meta_tower(place.model, tap="block", image_size=SIZE),
    ):
        with raises("models.code_not_allowed", lb.RequestError):
            attempt()
        assert not has_run(place.repository)
    lb.open_model(place.model, image_size=SIZE, allow_code=[place.model])
    lb.Classifier(place.values["folder"], allow_code=place.model)  # one text is one id
    assert has_run(place.repository)


def test_worker_processes_get_the_permission(place: Place, tmp_path: Path) -> None:
    options = ("--data", place.values["data"], "--image-size", SIZE, "--levels", "last", "--workers", "0")
    done = run("extract", "--model", place.model, *options, "--processes", "2", "--cache", tmp_path, ALLOW, place.model)
    assert done.exit_code == 0, done.output


MODELS: dict[Any, dict[str, Any]] = {
    lb.ExtractJob: {"data": "x", "models": [["a", None]]},
    lb.ProbeJob: {"data": "x", "model": "a", "probes": ["alf"]},
    lb.StudyJob: {"data": ["x"], "models": ["a"], "probes": ["alf"]},
}


@pytest.mark.parametrize("kind", MODELS)
def test_no_job_in_a_file_gives_permission(kind: Any) -> None:
    job = kind.from_dict(MODELS[kind])
    assert "allow_code" not in job.to_dict()
    with raises("jobs.permission_in_file", key="allow_code"):
        kind.from_dict(job.to_dict() | {"allow_code": ["torchhub:a/b:c"]})


def test_no_recipe_gives_permission(place: Place, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f"allow_code = [{json.dumps(place.model)}]\n" + place.values["recipe"].read_text())
    error = refuses(run("study", recipe), "jobs.recipe_invalid")
    assert "allow_code" in error.got
    assert not has_run(place.repository)


def test_no_saved_request_gives_permission(place: Place, tmp_path: Path) -> None:
    probe = tmp_path / "probe"
    shutil.copytree(place.values["folder"], probe)
    config = json.loads((probe / "probe.json").read_text())
    config["config"]["model"]["permission"] = {"allowed": [place.model], "asked_by": "me"}
    (probe / "probe.json").write_text(json.dumps(config))
    result = run("predict", "--probe", probe, "--data", place.values["data"])
    assert result.exit_code != 0
    assert not has_run(place.repository)


def test_a_folder_is_the_same_however_it_is_written(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(place.repository)
    monkeypatch.chdir(place.repository.parent)
    for allowed in (f"torchhub:./{place.repository.name}:tiny", f"torchhub:{tmp_path}/link:tiny"):
        assert models_with_code([place.model, "timm/a", "nonsense/b"], CodePermission((allowed,))) == (place.model,)
    monkeypatch.chdir(tmp_path)
    for allowed in (f"torchhub:./{place.repository.name}:tiny", f"torchhub:{place.repository}:fixed", "timm/vit", "x"):
        with raises("models.code_not_allowed"):
            models_with_code([place.model], CodePermission((allowed,)))


def test_a_relative_folder_in_the_trust_file_lies_beside_it(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a trusted name would mean other code in each folder where a command runs."""
    monkeypatch.chdir(place.repository.parent)
    trust(f"torchhub:./{place.repository.name}:tiny")
    with raises("models.code_not_allowed"):
        models_with_code([place.model], CodePermission())
    trust(f"torchhub:{os.path.relpath(place.repository, trust_file().parent)}:tiny")
    assert models_with_code([place.model], CodePermission()) == (place.model,)


@pytest.mark.parametrize("text", ["models = 3", "models = [3]", "model = []", "models = [", "\xff"])
def test_a_trust_file_of_another_form_is_named(place: Place, text: str) -> None:
    trust()
    trust_file().write_bytes(text.encode("latin-1"))
    with raises("models.bad_trust_file", file=trust_file()):
        models_with_code([place.model], CodePermission())


def test_owners_and_lists_of_torchs_hub_give_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.hub._hub_dir", str(tmp_path))
    (tmp_path / "trusted_list").write_text("somebody_vits\n")
    asked: list[str] = []

    def no_network(repo: str, entry: str, **options: Any) -> None:
        asked.append(repo)
        raise OSError("no network in a test")

    monkeypatch.setattr("torch.hub.load", no_network)
    for model in ("torchhub:somebody/vits:main:tiny", "torchhub:facebookresearch/dinov2:dinov2_vits14"):
        with raises("models.code_not_allowed"):
            lb.open_model(model)
    assert asked == []
    with raises("models.torchhub_unreachable", lb.WorkError, reason="no network in a test"):
        lb.open_model(model, allow_code=[model])
    assert asked == ["facebookresearch/dinov2"]


def test_the_families_that_run_code_are_known() -> None:
    assert RUNS_CODE == ["torchhub"]


def test_a_study_made_in_python_is_named_so(place: Place) -> None:
    job = lb.StudyJob(models=[place.model], data=[place.values["data"]], probes=["linear-cls"])
    with raises("models.code_not_allowed", asked_by="a study"):
        plan_study(job)
