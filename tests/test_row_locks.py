"""Processes that lack the same rows at once: one trains each row, the others take it over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import starved
from study_runs import read_rows

from layerbank.events import Event, ProbeAwaited, ProbeFinished, ProbeProgress, ProbeStarted
from layerbank.probing.probe import probe
from layerbank.probing.probe_spec import ProbeSpec, TopSettings
from layerbank.probing.rows.row_locks import LOCKS_FOLDER, RowLocks
from layerbank.probing.tokens.split_tokens import SplitRequest

NUM_ROWS = 400
PROTOCOL = replace(starved.PROTOCOL, lrs=(1e-2, 1e-3))
LINEAR, SIMPOOL = starved.PROBES["linear"], starved.PROBES["simpool"]
TOP = replace(LINEAR, name="linear-top2", derived=TopSettings(base=LINEAR, num_members=2))
Stores = tuple[SplitRequest, SplitRequest]


def train(stores: Stores, runs: Path, probes: list[ProbeSpec], on_event: Callable[[Event], None], **more: Any) -> Any:
    return probe(*stores, probes, PROTOCOL, runs, on_event=on_event, **more)


def main(folder: str, runs: str) -> None:
    """Train a probe, and wait in its first step until there is a file `go`."""

    def wait(event: Event) -> None:
        if isinstance(event, ProbeProgress):
            print("training", flush=True)
            while not (Path(folder) / "go").exists():
                time.sleep(0.02)

    rows = train(starved.requests_of(Path(folder), NUM_ROWS), Path(runs), [LINEAR], wait)
    Path(folder, "rows.json").write_text(json.dumps(rows))


@pytest.fixture
def stores(tmp_path: Path) -> Stores:
    return starved.write_stores(tmp_path, NUM_ROWS)


@contextmanager
def other_process(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that is training a probe, and waits."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, __file__, str(tmp_path), str(tmp_path / "runs")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "training\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("retrain", [False, True])
def test_equal_probes_of_two_processes_train_once(stores: Stores, tmp_path: Path, retrain: bool) -> None:
    events: list[Event] = []

    def let_go(event: Event) -> None:
        events.append(event)
        if isinstance(event, ProbeAwaited):
            (tmp_path / "go").touch()

    with other_process(tmp_path) as process:
        rows = train(stores, tmp_path / "runs", [LINEAR], let_go, retrain=retrain)
        assert process.wait() == 0
    awaited, finished = events
    assert isinstance(awaited, ProbeAwaited)
    assert f"process {process.pid} on " in awaited.owner
    assert isinstance(finished, ProbeFinished)
    assert finished.reused
    assert rows == read_rows(tmp_path / "runs" / "results.jsonl") == json.loads((tmp_path / "rows.json").read_text())
    assert not (tmp_path / "runs" / LOCKS_FOLDER).exists()


def test_who_waits_trains_first_what_nobody_else_does_and_post_hoc_probes_after_their_base(
    stores: Stores, tmp_path: Path
) -> None:
    done: list[str] = []

    def let_go(event: Event) -> None:
        match event:
            case ProbeStarted():
                done.append(f"{event.probe} started")
            case ProbeFinished():
                done.append(f"{event.probe} {'reused' if event.reused else 'trained'}")
            case ProbeAwaited():
                done.append(f"{event.probe} awaited")
                (tmp_path / "go").touch()

    with other_process(tmp_path):
        rows = train(stores, tmp_path / "runs", [TOP, SIMPOOL], let_go)
    assert [row["probe"] for row in rows] == ["linear-top2", "simpool"]
    assert done == [
        "simpool started",
        "simpool trained",
        "linear awaited",
        "linear reused",
        "linear-top2 started",
        "linear-top2 trained",
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_row_whose_process_is_killed_is_trained_by_the_one_that_waits(stores: Stores, tmp_path: Path) -> None:
    with other_process(tmp_path) as process:

        def kill(event: Event) -> None:
            if isinstance(event, ProbeAwaited):
                process.send_signal(signal.SIGKILL)
            if isinstance(event, ProbeFinished):
                assert not event.reused

        (row,) = train(stores, tmp_path / "runs", [LINEAR], kill)
    assert read_rows(tmp_path / "runs" / "results.jsonl") == [row]
    assert not (tmp_path / "runs" / LOCKS_FOLDER).exists()


def test_a_lock_is_held_once_and_leaves_nothing(tmp_path: Path) -> None:
    with RowLocks(tmp_path) as one, RowLocks(tmp_path) as other:
        assert one.take("a")
        assert not other.take("a")
        assert other.take("b")
        assert str(os.getpid()) in str(other.owner("a"))
    assert list(tmp_path.iterdir()) == []


if __name__ == "__main__":
    main(*sys.argv[1:])
