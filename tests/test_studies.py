"""A study: it goes on, it repeats nothing, it loses nothing, and one failure is not the end of it."""

from __future__ import annotations

import json
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from commands import run
from messages import refuses
from photos import TINY_MODEL, write_photos
from study_recipes import FAST, arguments, results, write_recipe

import layerbank.executors.studies
import layerbank.jobs.units
from layerbank.cache import ModelStores
from layerbank.errors import find_message
from layerbank.events import Event, StudyUnitAgain, StudyUnitFinished
from layerbank.executors.executor import Done, Executor, Lost
from layerbank.executors.local import LocalExecutor
from layerbank.executors.ray_placement import place_actors
from layerbank.executors.studies import run_study
from layerbank.jobs.job import StudyJob
from layerbank.jobs.recipe import open_recipe
from layerbank.jobs.units import UnitResult, run_unit, units_of
from layerbank.probes import SettingError
from layerbank.probing.rows.result_key import ResultKey


@pytest.fixture(scope="module")
def finished(two_sets: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A study of two data sets, run to its end."""
    folder = tmp_path_factory.mktemp("study")
    recipe = write_recipe(folder, two_sets, ["linear-cls", "alf"])
    return {"folder": folder, "recipe": recipe, "result": run(*arguments(recipe, folder))}


def test_a_study_is_every_probe_on_every_data_set_and_one_table(finished: dict[str, Any]) -> None:
    result: Result = finished["result"]
    assert result.exit_code == 0, result.output
    assert len(results(finished["folder"])) == 4
    assert result.stdout.count("alf") == 2
    assert not (finished["folder"] / "runs/failures.jsonl").exists()


def test_rerunning_a_finished_study_extracts_nothing_trains_nothing_and_writes_nothing(
    finished: dict[str, Any],
) -> None:
    folder = finished["folder"]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    result = run(*arguments(finished["recipe"], folder))
    assert result.exit_code == 0
    assert result.stderr.count("in the cache, 0 to compute") == 4
    assert result.stderr.count("not trained again") == 4
    assert "settings train together" not in result.stderr
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before
    assert result.stdout == finished["result"].stdout


def test_a_finished_study_reads_the_stores_of_a_unit_once_and_computes_each_key_once(
    finished: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    read, digest = ModelStores.__init__, ResultKey.digest.fget
    assert digest is not None

    def counted_read(self: ModelStores, *rest: Any) -> None:
        calls.append("stores")
        read(self, *rest)

    def counted_digest(self: ResultKey) -> str:
        calls.append("key")
        return digest(self)

    monkeypatch.setattr(ModelStores, "__init__", counted_read)
    monkeypatch.setattr(ResultKey, "digest", property(counted_digest))
    assert run(*arguments(finished["recipe"], finished["folder"])).exit_code == 0
    assert (calls.count("stores"), calls.count("key")) == (2, 4)


def test_json_has_every_row_and_no_progress(finished: dict[str, Any]) -> None:
    result = run(*arguments(finished["recipe"], finished["folder"]), "--json")
    answer = json.loads(result.stdout)
    assert {row["key"] for row in answer["rows"]} == set(results(finished["folder"]))
    assert answer["failures"] == []
    assert result.stderr == ""


def test_what_fails_is_a_row_of_failures_the_rest_goes_on_and_the_exit_code_is_1(photos: Path, tmp_path: Path) -> None:
    data = ["folder:nowhere", "dtd", f"folder:{photos}"]
    recipe = write_recipe(tmp_path, data, ["linear-cls", "alf-grid9"], ("timm/vit_nonsense", TINY_MODEL))
    result = run(*arguments(recipe, tmp_path))
    assert result.exit_code == 1
    assert [row["probe"] for row in results(tmp_path).values()] == ["linear-cls"]
    failures = [json.loads(line) for line in (tmp_path / "runs/failures.jsonl").read_text().splitlines()]
    model = [(one["dataset"], one["probe"]) for one in failures if one["model"] == "timm/vit_nonsense"]
    assert model == [(one, None) for one in data]
    others = {(one["dataset"], one["probe"]): one for one in failures if one["model"] == TINY_MODEL}
    assert set(others) == {("folder:nowhere", None), ("dtd", None), (f"folder:{photos}", "alf-grid9")}
    assert "hf download" in others["dtd", None]["todo"]
    assert all(one[part] for one in failures for part in ("where", "expected", "got", "todo"))
    assert result.stderr.count("\nfailed: ") == len(failures)


def test_a_failure_that_was_repaired_is_no_failure_any_more(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, [f"folder:{tmp_path / 'late'}"], ["linear-cls"])
    assert run(*arguments(recipe, tmp_path)).exit_code == 1
    assert (tmp_path / "runs/failures.jsonl").exists()
    write_photos(tmp_path / "late", {"train": 20, "test": 10})
    assert run(*arguments(recipe, tmp_path)).exit_code == 0
    assert not (tmp_path / "runs/failures.jsonl").exists()


def test_a_study_killed_and_run_again_has_the_results_of_one_that_was_not(
    finished: dict[str, Any], tmp_path: Path
) -> None:
    """The command itself; more moments are in test_study_kills.py."""
    recipe = finished["recipe"]  # the same protocol file, hence the same keys
    command = [sys.executable, "-m", "layerbank", *arguments(recipe, tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 120
    while not list(tmp_path.glob("runs/*/*/results.jsonl")):
        assert process.poll() is None, "it must be killed while it works"
        assert time.monotonic() < limit
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert len(results(tmp_path)) < 4
    assert run(*arguments(recipe, tmp_path)).exit_code == 0
    assert results(tmp_path) == results(finished["folder"])


def test_two_processes_leave_the_results_of_one(finished: dict[str, Any], tmp_path: Path) -> None:
    result = run(*arguments(finished["recipe"], tmp_path), "--processes", "2")
    assert result.exit_code == 0, result.output
    assert results(tmp_path) == results(finished["folder"])
    assert result.stderr.count(f"study: {TINY_MODEL} on folder:") == 2
    assert "study: 2 of 2 done" in result.stderr
    assert "settings" not in result.stderr, "lines of probes would not say of which unit they are"
    assert [line.split()[:3] for line in result.stdout.splitlines()[1:]] == [
        line.split()[:3] for line in finished["result"].stdout.splitlines()[1:]
    ]


def test_a_unit_can_be_done_anywhere_and_says_what_it_could_not_do(
    finished: dict[str, Any], tmp_path: Path, photos: Path
) -> None:
    job = replace(
        open_recipe(str(finished["recipe"])),
        probes=("linear-cls", "alf-grid9"),
        cache_root=tmp_path / "caches",
        runs_root=tmp_path / "runs",
        workers=0,
    )
    assert [unit.dataset for unit in units_of(job)] == list(job.data)
    sent = pickle.loads(pickle.dumps((job, units_of(job)[0])))
    done = pickle.loads(pickle.dumps(run_unit(*sent)))
    assert done.unit == units_of(job)[0]
    assert [row["probe"] for row in done.rows] == ["linear-cls"]
    assert [failure.probe for failure in done.failures] == ["alf-grid9"]


class FakeExecutor:
    """Returns these outcomes, and runs nothing."""

    def __init__(self, outcomes: Sequence[Lost | Done], device: str = "cpu") -> None:
        self.outcomes, self.device = outcomes, device
        self.num_workers = self.num_per_machine = 1
        self.devices: list[str] = []

    def run(self, tasks: Sequence[Any], on_event: object, *, share: bool = False) -> Iterator[Done | Lost]:
        self.devices = [task.args[0].device for task in tasks]
        yield from self.outcomes


def test_a_unit_whose_process_is_lost_is_a_failure_and_the_next_unit_is_done(
    finished: dict[str, Any], tmp_path: Path
) -> None:
    job = replace(open_recipe(str(finished["recipe"])), runs_root=tmp_path)
    units = units_of(job)
    events: list[Event] = []
    lost = [Lost(0, "it died", 0, True), Lost(0, "killed by SIGKILL", 0, False)]
    executor = FakeExecutor([Done(1, UnitResult(unit=units[1], rows=(), failures=())), *lost])
    rows, failures = run_study(job, executor=executor, on_event=events.append)
    assert rows == []
    assert [(one.dataset, one.got) for one in failures] == [(units[0].dataset, "killed by SIGKILL")]
    assert failures[0].todo == find_message("jobs.unit_lost").todo
    assert failures[0].todo in (tmp_path / "failures.jsonl").read_text()
    assert [one.num_done for one in events if isinstance(one, StudyUnitFinished)] == [1, 2]
    assert [one.reason for one in events if isinstance(one, StudyUnitAgain)] == ["it died"]


def of_a_gpu(folder: Path, data: Sequence[str], device: str = "cpu") -> StudyJob:
    """A study whose protocol only a GPU can follow."""
    recipe = write_recipe(folder, list(data), ["linear-cls"])
    (folder / "fast.toml").write_text(FAST + 'compute = "tf32"\n')
    return replace(open_recipe(str(recipe)), cache_root=folder, runs_root=folder, device=device)


@pytest.mark.parametrize("executor", [None, LocalExecutor(2)], ids=["one process", "several processes"])
def test_a_protocol_that_this_device_cannot_follow_is_refused_before_any_unit(
    tmp_path: Path, two_sets: list[str], executor: Executor | None
) -> None:
    events: list[Event] = []
    with pytest.raises(SettingError) as refused:
        run_study(of_a_gpu(tmp_path, two_sets), executor=executor, on_event=events.append)
    assert refused.value.where == "compute on cpu"
    assert events == []


def test_a_unit_fails_with_the_message_where_it_runs_on_another_device_than_was_thought(
    tmp_path: Path, two_sets: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its model is opened."""
    monkeypatch.delattr(layerbank.jobs.units.OpenModels, "open")
    job = of_a_gpu(tmp_path, two_sets[:1])
    done = run_unit(job, units_of(job)[0])
    assert [(one.probe, one.where, one.got) for one in done.failures] == [(None, "compute on cpu", "'tf32'")]


@pytest.mark.parametrize("here", ["cpu", "cuda"])
def test_on_a_cluster_the_devices_of_the_cluster_decide_not_the_drivers_own(
    tmp_path: Path, two_sets: list[str], monkeypatch: pytest.MonkeyPatch, here: str
) -> None:
    job = of_a_gpu(tmp_path, two_sets, "auto")
    monkeypatch.setattr(layerbank.executors.studies, "choose_device", lambda device: here)
    done = [Done(number, UnitResult(unit=unit, rows=(), failures=())) for number, unit in enumerate(units_of(job))]
    cluster = FakeExecutor(done, place_actors([{"CPU": 2, "GPU": 1}], None, "auto").device)
    assert run_study(job, executor=cluster) == ([], [])
    assert cluster.devices == ["cuda", "cuda"]
    with pytest.raises(SettingError) as refused:
        run_study(job, executor=FakeExecutor(done, place_actors([{"CPU": 2}], None, "auto").device))
    assert refused.value.where == "compute on cpu"


def test_a_file_of_the_system_that_cannot_be_used_fails_the_unit_with_a_message(
    finished: dict[str, Any], tmp_path: Path
) -> None:
    job = replace(
        open_recipe(str(finished["recipe"])),
        probes=("linear-cls",),
        cache_root=finished["folder"] / "caches",
        runs_root=tmp_path,
        workers=0,
    )
    unit = units_of(job)[0]
    no_folder = tmp_path / Path(unit.dataset.partition(":")[2]).name
    no_folder.touch()
    (failure,) = run_unit(job, unit).failures
    assert failure.where.startswith(str(no_folder))
    assert failure.todo == find_message("jobs.file_error").todo


def test_calibration_is_part_of_a_dry_run_alone(two_sets: list[str], tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, two_sets, ["linear-cls"])
    refuses(run(*arguments(recipe, tmp_path), "--calibrate"), "jobs.calibrate_without_dry_run")


def test_a_dry_run_leaves_no_file(two_sets: list[str], tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, two_sets, ["linear-cls", "alf"])
    before = sorted(tmp_path.rglob("*"))
    result = run(*arguments(recipe, tmp_path), "--dry-run")
    assert result.exit_code == 0
    assert "2 units from nothing: 270 images through a model, 8 trainings" in result.stdout
    assert sorted(tmp_path.rglob("*")) == before


def test_a_recipe_that_is_wrong_is_refused_with_exit_code_2(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, ["demo:digits"], ["alv"])
    refused = refuses(run(*arguments(recipe, tmp_path)), "jobs.recipe_invalid", num_problems=1)
    assert "'alv'" in refused.got
