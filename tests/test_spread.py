"""Different tasks in several processes: each is done once, whatever dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from layerbank import RequestError
from layerbank.cache import CacheError, SpecError
from layerbank.events import Event, OnEvent, StudyUnit
from layerbank.executors.spread import spread
from layerbank.probing.results import append_row, read_rows

ROOT = Path(__file__).parent.parent


def square(process: int, task: int, on_event: OnEvent) -> tuple[int, int]:
    on_event(StudyUnit(model=f"process {process}", dataset=str(task)))
    return task * task, os.getpid()


def die_of_three(process: int, task: int, on_event: OnEvent) -> int:
    if task == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return task


def refuse_two(process: int, task: int, on_event: OnEvent) -> int:
    if task == 2:
        raise SpecError(where="task 2", expected="another", got="two", todo="Leave it out.")
    return task


def write_rows(path: Path, process: int, task: int, on_event: OnEvent) -> None:
    for number in range(40):
        append_row(path, {"key": f"{task}-{number}", "text": "x" * 20_000})


def test_every_task_is_done_once_by_processes_that_stay() -> None:
    told: list[Event] = []
    done = dict(spread(square, range(9), 2, told.append))
    assert {task: result[0] for task, result in done.items()} == {task: task * task for task in range(9)}
    assert len({result[1] for result in done.values()}) <= 2
    assert os.getpid() not in {result[1] for result in done.values()}
    assert sorted(one.dataset for one in told if isinstance(one, StudyUnit)) == [str(task) for task in range(9)]


def test_a_process_that_is_killed_costs_its_task_and_another_does_the_rest() -> None:
    assert dict(spread(die_of_three, range(6), 1, print)) == {**{n: n for n in range(6)}, 3: "killed by SIGKILL"}


def test_an_error_of_a_task_ends_all_and_keeps_its_four_parts() -> None:
    with pytest.raises(RequestError, match=r"task 2: expected another, got two\. Leave it out\.") as raised:
        dict(spread(refuse_two, range(4), 1, print))
    assert not isinstance(raised.value, CacheError)


def test_rows_of_several_processes_in_one_file_are_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    dict(spread(partial(write_rows, path), range(3), 3, print))
    assert sorted(row["key"] for row in read_rows(path)) == sorted(
        f"{task}-{n}" for task in range(3) for n in range(40)
    )


def sleep_long(process: int, task: int, on_event: OnEvent) -> None:
    Path(os.environ["PIDS"], str(os.getpid())).touch()
    time.sleep(100)


def run_forever() -> Iterator[object]:
    yield from spread(sleep_long, range(4), 2, print)


def test_processes_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", "import test_spread\nif __name__ == '__main__': list(test_spread.run_forever())"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests"), "PIDS": str(tmp_path)},
    )
    deadline = time.monotonic() + 60
    while len(pids := [int(path.name) for path in tmp_path.iterdir()]) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    while any(Path("/proc", str(pid)).exists() for pid in pids):
        assert time.monotonic() < deadline, "they outlive it"
        time.sleep(0.02)
