"""A sweep that was killed goes on with the banks that are missing, and comes out as if nothing had happened."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import starved
import torch
from study_runs import read_rows
from sweeps import HEADS, SMALL, make_block_source

from layerbank.events import Event, MemoryPlanned, ProbeProgress
from layerbank.probes import (
    BankKey,
    BankScores,
    LearningCurves,
    Progress,
    Setting,
    SettingError,
    SweepResult,
    plan_group,
    run_sweeps,
)
from layerbank.probing import sweep_journal
from layerbank.probing.probe import probe
from layerbank.probing.probe_groups import plan_groups
from layerbank.probing.probe_spec import ProbeSpec
from layerbank.probing.rows.row_files import row_folder
from layerbank.probing.sweep_journal import SweepJournal, clear_finished
from layerbank.probing.tokens.split_tokens import SplitRequest

PROTOCOL = replace(starved.PROTOCOL, lrs=(1e-2, 1e-3), weight_decays=(1e-4, 1e-2), jitter_std=0.05, batch_size=64)
NAMED = ProbeSpec(name="linear", head="linear", levels=("final",), kinds=("grid4",))
NUM_ROWS = 1200
SWEPT = [HEADS["alf"], HEADS["linear-all"]]


def describe(_: object) -> dict[str, Any]:
    return {"tokens": "resident"}


def sweep(folder: Path, on_event: Any = None, memory_bytes: int | None = None, **setting: Any) -> list[SweepResult]:
    train, test = make_block_source(120, 0), make_block_source(60, 1)
    journal = SweepJournal(folder, {"train": "0123", **setting}, describe, ["row"])
    return run_sweeps(
        [[one] for one in SWEPT],
        train,
        lambda: test,
        SMALL,
        plan=plan_group(SWEPT, train, SMALL, memory_bytes),
        journal=journal,
        on_event=on_event,
    )


def little_memory() -> int:
    """Enough for one head at a time and not for both."""
    return plan_group(SWEPT, make_block_source(120, 0), SMALL, None).total_bytes - 1


class Killed(Exception):
    pass


def test_a_sweep_killed_between_banks_trains_only_those_that_are_missing(tmp_path: Path) -> None:
    memory_bytes = little_memory()
    whole = sweep(tmp_path / "whole", memory_bytes=memory_bytes)
    num_steps = whole[0].selection.num_steps if whole[0].selection else 0

    def kill(event: Progress) -> None:
        if event.phase == "select" and event.step > num_steps:
            raise Killed

    with pytest.raises(Killed):
        sweep(tmp_path / "killed", kill, memory_bytes)
    assert len(list((tmp_path / "killed").iterdir())) == 1
    events: list[Progress] = []
    resumed = sweep(tmp_path / "killed", events.append, memory_bytes)
    assert max(event.step for event in events if event.phase == "select") == num_steps
    for one, wanted in zip(resumed, whole, strict=True):
        assert one.scores == wanted.scores
        assert one.curves is not None
        assert wanted.curves is not None
        assert torch.equal(one.curves.losses, wanted.curves.losses)
        assert torch.equal(one.curves.lrs, wanted.curves.lrs)
        assert one.test_logits is not None
        assert wanted.test_logits is not None
        assert torch.equal(one.test_logits, wanted.test_logits)


def test_a_finished_selection_is_not_trained_again_and_another_setting_is(tmp_path: Path) -> None:
    sweep(tmp_path)
    for setting, phases in (({}, {"refit", "test"}), ({"protocol": "other"}, {"select", "validate", "refit", "test"})):
        events: list[Progress] = []
        sweep(tmp_path, events.append, **setting)
        assert {event.phase for event in events} == phases


def test_what_is_kept_goes_when_all_the_rows_it_led_to_are_written(tmp_path: Path) -> None:
    key = BankKey(candidate=SWEPT[0], settings=(Setting(lr=0.1, weight_decay=0.0),), num_steps=5)
    curves = LearningCurves(steps=torch.tensor([0, 4]), losses=torch.tensor([[1.0, torch.nan]]), lrs=torch.ones(1, 2))
    scores = BankScores(accuracies=torch.tensor([torch.nan], dtype=torch.float64), curves=curves)
    folder = tmp_path / "j"
    one = SweepJournal(folder, {"train": "a"}, describe, ["alf", "linear-cls"])
    other = SweepJournal(folder, {"train": "b"}, describe, ["linear-cls"])
    for journal in (one, other):
        assert journal.find(key) is None
        journal.keep(key, scores)
    found = SweepJournal(folder, {"train": "a"}, describe, ["best"]).find(key)  # whoever asks
    assert found is not None
    assert torch.equal(found.accuracies.isnan(), torch.tensor([True]))
    assert found.curves.losses[0, 0] == 1
    clear_finished(folder, ["linear-cls", "aat"])
    assert one.find(key) is not None
    assert other.find(key) is None
    clear_finished(folder, ["linear-cls", "alf"])
    assert not folder.exists()
    clear_finished(folder, ["linear-cls"])


def test_hits_of_a_search_are_kept_beside_the_scores_of_the_same_setting(tmp_path: Path) -> None:
    setting = Setting(lr=0.1, weight_decay=0.0)
    journal = SweepJournal(tmp_path / "j", {"train": "a"}, describe, ["alf-smallest"])
    assert journal.find_hits(SWEPT[0], setting) is None
    journal.keep_hits(SWEPT[0], setting, np.array([True, False]))
    assert np.array_equal(journal.find_hits(SWEPT[0], setting), [True, False])
    assert journal.find_hits(SWEPT[1], setting) is None
    assert journal.find(BankKey(candidate=SWEPT[0], settings=(setting,), num_steps=5)) is None


def test_what_no_sweep_has_needed_for_thirty_days_goes_when_another_finishes(tmp_path: Path) -> None:
    """And what a sweep that lives has found or kept does not, however old it is."""
    month_s = sweep_journal.ABANDONED_S + 60
    curves = LearningCurves(steps=torch.tensor([0]), losses=torch.ones(1, 1), lrs=torch.ones(1, 1))
    scores = BankScores(accuracies=torch.ones(1, dtype=torch.float64), curves=curves)
    keys = [BankKey(candidate=SWEPT[0], settings=(Setting(lr=lr, weight_decay=0.0),), num_steps=5) for lr in (0.1, 1.0)]
    abandoned, living, finished = (SweepJournal(tmp_path / "j", {"train": name}, describe, [name]) for name in "abc")
    for journal in (abandoned, living):
        journal.keep(keys[0], scores)
    (tmp_path / "j" / ".half.npz").write_bytes(b"PK")
    for path in (tmp_path / "j").iterdir():
        os.utime(path, (time.time() - month_s, time.time() - month_s))
    living.keep(keys[1], scores)  # renews its first bank
    (tmp_path / "j" / "notes.txt").write_text("not ours")
    os.utime(tmp_path / "j" / "notes.txt", (0, 0))
    finished.keep(keys[0], scores)
    clear_finished(tmp_path / "j", ["c"])
    assert abandoned.find(keys[0]) is None
    assert living.find(keys[0]) is not None
    assert living.find(keys[1]) is not None
    assert len(list((tmp_path / "j").iterdir())) == 3


def test_finding_a_bank_renews_it(tmp_path: Path) -> None:
    sweep(tmp_path)
    for path in tmp_path.iterdir():
        os.utime(path, (0, 0))
    sweep(tmp_path)
    assert all(path.stat().st_mtime > time.time() - 600 for path in tmp_path.iterdir())


def test_a_file_that_cannot_be_read_is_a_bank_that_is_missing(tmp_path: Path) -> None:
    sweep(tmp_path)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:100])
    events: list[Progress] = []
    sweep(tmp_path, events.append)
    assert "select" in {event.phase for event in events}


def run(
    stores: tuple[SplitRequest, SplitRequest], runs: Path, memory_bytes: int, on_event: Any
) -> list[dict[str, Any]]:
    return probe(*stores, [NAMED], PROTOCOL, runs, memory_bytes=memory_bytes, on_event=on_event)


def enough_for_two_banks(train: SplitRequest, _: SplitRequest) -> int:
    cache = train.open()
    for memory_bytes in range(30_000_000, 60_000_000, 100_000):
        with contextlib.suppress(SettingError):  # not enough for one
            (group,) = plan_groups(cache, [(NAMED, PROTOCOL)], memory_bytes, torch.device("cpu"))
            (head,) = group.placement.plan.heads.values()
            if head.memory.num_banks == 2:
                return memory_bytes
    raise AssertionError("a grid of four that no budget cuts in two")


def main(folder: str, runs: str, memory: str) -> None:
    """Kill this process in the second of several banks."""

    def kill(event: Event) -> None:
        if isinstance(event, ProbeProgress) and event.phase == "select" and 2 * event.step > event.num_steps:
            os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)
    run(starved.requests_of(Path(folder), NUM_ROWS), Path(runs), int(memory), kill)


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_killed_process_leaves_what_the_next_one_goes_on_with(tmp_path: Path) -> None:
    stores = starved.write_stores(tmp_path, NUM_ROWS)
    memory_bytes = enough_for_two_banks(*stores)
    root = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(root / "tests")}
    command = [sys.executable, __file__, str(tmp_path), str(tmp_path / "killed"), str(memory_bytes)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert read_rows(tmp_path / "killed" / "results.jsonl") == []
    assert len(list((tmp_path / "killed" / ".sweeps").glob("*.npz"))) == 1

    events: list[Event] = []
    resumed = run(stores, tmp_path / "killed", memory_bytes, events.append)
    (plan,) = [event for event in events if isinstance(event, MemoryPlanned)]
    assert plan.num_banks == 2
    trained = [event for event in events if isinstance(event, ProbeProgress) and event.phase == "select"]
    assert trained[-1].num_steps == resumed[0]["selection"]["num_steps"]  # of one bank, not of two
    whole = run(stores, tmp_path / "whole", memory_bytes, lambda event: None)
    may_differ = {"seconds": None, "digest": None}
    assert [row | may_differ for row in resumed] == [row | may_differ for row in whole]
    assert not (tmp_path / "killed" / ".sweeps").exists()
    one, other = (row_folder(tmp_path / name, whole[0]) for name in ("killed", "whole"))
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in other.iterdir())
    for name in ("curves.npz", "test.npz"):
        with np.load(one / name) as ours, np.load(other / name) as theirs:
            assert all(np.array_equal(ours[array], theirs[array]) for array in theirs.files)
    weights = [json.loads((folder / "probe.json").read_text()) for folder in (one, other)]
    assert weights[0] == weights[1]


if __name__ == "__main__":
    main(*sys.argv[1:])
