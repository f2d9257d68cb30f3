"""One probe that cannot be trained: it fails by name, and every other one of its group, seed and unit gives the usual row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import run as run_command
from messages import check, raises
from photos import VIT_TINY
from small_stores import ALF, GRID, LINEAR, PROTOCOL, write_small_store
from study_recipes import arguments, results, write_recipe
from study_runs import read_rows
from token_stores import without_fsync  # noqa: F401

import layerbank.jobs.probe
import layerbank.probing.probe
import layerbank.probing.training
from layerbank import RequestError, WorkError
from layerbank.errors import Message
from layerbank.events import Event, ProbeProgress, TrainingStarted
from layerbank.probes import DataError, Head, SettingError
from layerbank.probing.probe import probe
from layerbank.probing.probe_spec import ProbeSpec, SmallestLevels, TopSettings
from layerbank.probing.tokens.split_tokens import SplitRequest

UNFIT = ProbeSpec(name="unfit", head="cae", levels=("block.0",), kinds=("grid2",), num_heads=7)  # of 24 channels
RIDGE = ProbeSpec(name="ridge", head="ridge", levels=("final",), kinds=("cls",))
HUGE = replace(ALF, name="huge", num_heads=24)
Failed = list[tuple[str, Exception]]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[SplitRequest, SplitRequest]:
    root = tmp_path_factory.mktemp("caches")
    train = write_small_store(root, num_rows=400)
    return train.request, write_small_store(root, num_rows=120, split="test", first_image=1000).request


@pytest.fixture(scope="module")
def wanted(
    stores: tuple[SplitRequest, SplitRequest], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """Rows of probes that nothing has happened to."""
    rows = probe(*stores, [LINEAR, ALF, GRID, RIDGE, top(ALF)], PROTOCOL, tmp_path_factory.mktemp("runs"))
    return by_name(rows)


def by_name(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["probe"]: row | {"seconds": None, "digest": None} for row in rows}


def started(events: Sequence[Event]) -> list[tuple[str, ...]]:
    return [event.probes for event in events if isinstance(event, TrainingStarted)]


def top(base: ProbeSpec) -> ProbeSpec:
    return replace(base, name=f"{base.name}-top2", derived=TopSettings(base=base, num_members=2))


def run(
    stores: tuple[SplitRequest, SplitRequest], runs: Path, probes: Sequence[ProbeSpec], **more: Any
) -> tuple[list[dict[str, Any]], Failed, list[Event]]:
    failed: Failed = []
    events: list[Event] = []
    rows = probe(
        *stores,
        probes,
        PROTOCOL,
        runs,
        fail=lambda name, error: failed.append((name, error)),
        on_event=events.append,
        **more,
    )
    return rows, failed, events


def test_a_head_that_does_not_fit_its_tokens_fails_before_the_others_train_and_they_train_together(
    stores: tuple[SplitRequest, SplitRequest], wanted: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    rows, failed, events = run(stores, tmp_path, [UNFIT, LINEAR, ALF, GRID])
    assert started(events) == [("linear", "alf", "grid")]
    assert by_name(rows) == {name: wanted[name] for name in ("linear", "alf", "grid")}
    assert by_name(read_rows(tmp_path / "results.jsonl")) == by_name(json.loads(json.dumps(rows)))
    ((name, error),) = failed
    assert name == "unfit"
    assert isinstance(error, SettingError)
    assert "7" in str(error)


def test_a_group_that_fails_because_of_one_probe_is_repeated_probe_by_probe(
    stores: tuple[SplitRequest, SplitRequest],
    wanted: dict[str, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refused = DataError(Message(where="tokens", expected="other tokens", got="these", todo="Repair them."))
    original = layerbank.probing.probe.run_sweeps

    def run_sweeps(sweeps: Any, *rest: Any, **more: Any) -> Any:
        if any(sweep[0].head == Head(kind="attentive", num_heads=GRID.num_heads or 0) for sweep in sweeps):
            raise refused
        return original(sweeps, *rest, **more)

    monkeypatch.setattr(layerbank.probing.probe, "run_sweeps", run_sweeps)
    rows, failed, events = run(stores, tmp_path, [LINEAR, GRID, ALF])
    assert started(events) == [("linear", "grid", "alf"), ("linear",), ("grid",), ("alf",)]
    assert failed == [("grid", refused)]
    assert by_name(rows) == {name: wanted[name] for name in ("linear", "alf")}
    monkeypatch.undo()
    again, failed, events = run(stores, tmp_path, [LINEAR, GRID, ALF])
    assert failed == []
    assert started(events) == [("grid",)]
    assert by_name(again) == by_name(json.loads(json.dumps([wanted[name] for name in ("linear", "grid", "alf")])))
    assert not (tmp_path / ".sweeps").exists()


def test_without_a_callback_the_first_failure_is_raised(
    stores: tuple[SplitRequest, SplitRequest], tmp_path: Path
) -> None:
    with pytest.raises(SettingError):
        probe(*stores, [LINEAR, UNFIT], PROTOCOL, tmp_path)
    with raises("probing.missing_arrays", RequestError, arrays="block.7/cls"):
        probe(*stores, [replace(LINEAR, levels=("block.7",))], PROTOCOL, tmp_path)
    assert not (tmp_path / "results.jsonl").exists()


def test_a_probe_that_fits_no_memory_fails_and_those_that_fit_are_trained_and_a_rerun_does_only_what_is_missing(
    stores: tuple[SplitRequest, SplitRequest], tmp_path: Path
) -> None:
    asked = [LINEAR, HUGE, GRID]
    rows, failed, _ = run(stores, tmp_path, asked, memory_bytes=12_500_000)
    assert [row["probe"] for row in rows] == ["linear", "grid"]
    ((name, error),) = failed
    assert name == "huge"
    assert "memory" in str(error)
    again, failed, events = run(stores, tmp_path, asked)
    assert failed == []
    assert started(events) == [("huge",)]
    assert [one for one in again if one["probe"] != "huge"] == json.loads(json.dumps(rows))


def test_a_store_that_lacks_what_one_probe_reads_is_that_probes_failure(
    stores: tuple[SplitRequest, SplitRequest], wanted: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    lost = replace(LINEAR, name="lost", levels=("block.7",))
    rows, failed, _ = run(stores, tmp_path, [lost, GRID, top(lost)])
    assert by_name(rows) == {"grid": wanted["grid"]}
    assert [name for name, _ in failed] == ["lost", "lost-top2"]


def test_a_solved_probe_fails_alone(
    stores: tuple[SplitRequest, SplitRequest],
    wanted: dict[str, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refused = DataError(Message(where="tokens", expected="finite values", got="others", todo="Repair them."))
    original = layerbank.probing.training.run_solvers

    def solve(head: Any, *rest: Any, **more: Any) -> Any:
        if head.kind == "knn":
            raise refused
        return original(head, *rest, **more)

    monkeypatch.setattr(layerbank.probing.training, "run_solvers", solve)
    rows, failed, _ = run(stores, tmp_path, [replace(RIDGE, name="knn", head="knn"), RIDGE, LINEAR])
    assert failed == [("knn", refused)]
    assert by_name(rows) == {name: wanted[name] for name in ("ridge", "linear")}


def test_a_post_hoc_probe_of_a_base_that_failed_names_the_base(
    stores: tuple[SplitRequest, SplitRequest], wanted: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    smallest = replace(UNFIT, name="unfit-smallest", derived=SmallestLevels(base=UNFIT))
    rows, failed, _ = run(stores, tmp_path, [top(UNFIT), smallest, top(ALF)])
    assert by_name(rows) == {"alf-top2": wanted["alf-top2"]}
    assert [name for name, _ in failed] == ["unfit", "unfit-top2", "unfit-smallest"]
    error = failed[1][1]
    assert isinstance(error, WorkError)
    check(error, "probing.base_failed", {"probe": "unfit-top2", "base": "unfit"})


def test_what_a_group_had_chosen_before_it_failed_is_not_trained_again(
    stores: tuple[SplitRequest, SplitRequest],
    wanted: dict[str, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = layerbank.probing.probe.run_sweeps

    def only_alone(sweeps: Any, *rest: Any, **more: Any) -> Any:
        results = original(sweeps, *rest, **more)
        if len(sweeps) > 1:
            raise SettingError(Message(where="group", expected="one probe", got="several", todo="Train it alone."))
        return results

    monkeypatch.setattr(layerbank.probing.probe, "run_sweeps", only_alone)
    rows, failed, events = run(stores, tmp_path, [LINEAR, ALF])
    assert failed == []
    assert by_name(rows) == {name: wanted[name] for name in ("linear", "alf")}
    trained = [event.probes for event in events if isinstance(event, ProbeProgress) and event.phase == "select"]
    assert set(trained) == {("linear", "alf")}
    assert not (tmp_path / ".sweeps").exists()


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory"), MemoryError()]
)
def test_memory_that_runs_out_is_a_failure_and_a_group_that_is_too_large_trains_alone(
    stores: tuple[SplitRequest, SplitRequest],
    wanted: dict[str, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    original = layerbank.probing.probe.run_sweeps

    def run_sweeps(sweeps: Any, *rest: Any, **more: Any) -> Any:
        if len(sweeps) > 1 or sweeps[0][0].head.kind == "attentive":
            raise error
        return original(sweeps, *rest, **more)

    monkeypatch.setattr(layerbank.probing.probe, "run_sweeps", run_sweeps)
    rows, failed, _ = run(stores, tmp_path, [LINEAR, ALF])
    assert by_name(rows) == {"linear": wanted["linear"]}
    ((name, failure),) = failed
    assert name == "alf"
    assert isinstance(failure, WorkError)
    check(failure, "probing.out_of_memory", {"probe": "alf"})
    with pytest.raises(type(error)):
        probe(*stores, [ALF], PROTOCOL, tmp_path)


def test_a_bug_is_not_taken_for_a_failure_of_a_probe(
    stores: tuple[SplitRequest, SplitRequest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*rest: Any, **more: Any) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr(layerbank.probing.probe, "run_sweeps", broken)
    for asked in ([LINEAR, ALF], [ALF]):
        with pytest.raises(RuntimeError, match="a bug"):
            run(stores, tmp_path, asked)


def test_a_study_trains_all_seeds_of_the_others_and_says_which_probe_failed_by_which_seed(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(tmp_path, [f"folder:{photos}"], ["linear-cls", "alf", "alf-top2", "linear-all"], (VIT_TINY,))
    recipe.write_text("seeds = [0, 3]\n" + recipe.read_text())
    with monkeypatch.context() as patch:
        patch.setattr(layerbank.jobs.probe, "memory_for_probes", lambda *rest: 60_000_000)
        result = run_command(*arguments(recipe, tmp_path))
    assert result.exit_code == 1, result.output
    found = results(tmp_path)
    assert sorted((row["probe"], row["protocol"]["seed"]) for row in found.values()) == [
        *(("linear-all", 0), ("linear-all", 3), ("linear-cls", 0), ("linear-cls", 3))
    ]
    failures = [json.loads(line) for line in (tmp_path / "runs/failures.jsonl").read_text().splitlines()]
    assert [(one["probe"], one["seed"]) for one in failures] == [
        *(("alf", 0), ("alf-top2", 0), ("alf", 3), ("alf-top2", 3))
    ]
    assert f"failed: {VIT_TINY} on folder:" in result.stderr
    assert ", alf-top2, seed 3: probe alf-top2: a base that failed: " in result.stderr
    again = run_command(*arguments(recipe, tmp_path))
    assert again.exit_code == 0, again.output
    assert again.stderr.count("not trained again") == 4
    assert not (tmp_path / "runs/failures.jsonl").exists()
    assert {key: row for key, row in results(tmp_path).items() if key in found} == found
    whole = tmp_path / "whole"
    assert run_command(*arguments(recipe, whole)).exit_code == 0
    assert results(tmp_path) == results(whole)
