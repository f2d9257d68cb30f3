"""Different tasks in several processes: each is done once, whatever dies."""

from __future__ import annotations

import json
import os
import signal
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from messages import raises

from layerbank.cache import NotWritableError
from layerbank.events import Event, OnEvent, StudyUnit, ignore
from layerbank.executors.executor import Done, Task
from layerbank.executors.local import LocalExecutor
from layerbank.probing.rows.results_file import append_row

ROOT = Path(__file__).parent.parent


def run_tasks(tasks: Sequence[Task], num_workers: int, on_event: OnEvent = ignore) -> dict[int, Any]:
    """Results by index; of a task whose process died the reason."""
    outcomes = LocalExecutor(num_workers).run(tasks, lambda number, event: on_event(event))
    return {one.index: one.value if isinstance(one, Done) else one.reason for one in outcomes}


def square(task: int, worker: int, on_event: OnEvent) -> tuple[int, int, int]:
    on_event(StudyUnit(model=f"process {worker}", dataset=str(task)))
    return task * task, worker, os.getpid()


def die_of_three(task: int, worker: int, on_event: OnEvent) -> int:
    if task == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return task


def refuse_two(task: int, worker: int, on_event: OnEvent) -> int:
    if task == 2:
        raise NotWritableError("layerbank.unknown_part", noun="task", name=task, names="0, 1", advice=1)
    return task


def write_rows(path: Path, task: int, worker: int, on_event: OnEvent) -> None:
    for number in range(40):
        append_row(path, {"key": f"{task}-{number}", "text": "x" * 20_000})


def die_in_a_message(worker: int, on_event: OnEvent) -> int:
    for number in range(3, 64):  # the pipe to the parent is one of the first descriptors
        with suppress(OSError):
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                os.write(number, struct.pack("!i", 1000) + b"half")
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def test_a_process_that_dies_in_the_middle_of_a_message_is_a_lost_worker() -> None:
    assert run_tasks([die_in_a_message, partial(square, 3)], 1)[0] == "killed by SIGKILL"


def test_every_task_is_done_once_by_processes_that_stay_and_have_numbers() -> None:
    events: list[Event] = []
    results = run_tasks([partial(square, task) for task in range(9)], 2, events.append)
    assert {index: result[0] for index, result in results.items()} == {task: task * task for task in range(9)}
    assert {result[1] for result in results.values()} <= {0, 1}
    assert len({result[2] for result in results.values()}) <= 2
    assert os.getpid() not in {result[2] for result in results.values()}
    assert sorted(one.dataset for one in events if isinstance(one, StudyUnit)) == [str(task) for task in range(9)]


def test_a_process_that_is_killed_costs_its_task_and_another_does_the_rest() -> None:
    results = run_tasks([partial(die_of_three, task) for task in range(6)], 1)
    assert results == {**{n: n for n in range(6)}, 3: "killed by SIGKILL"}


def test_an_error_of_a_task_ends_all_and_arrives_with_its_class_key_and_values() -> None:
    with raises("layerbank.unknown_part", NotWritableError, name=2, advice=1) as refused:
        run_tasks([partial(refuse_two, task) for task in range(4)], 1)
    assert refused.error.got == "2"
    assert isinstance(refused.error, OSError)


def test_rows_of_several_processes_in_one_file_are_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    run_tasks([partial(write_rows, path, task) for task in range(3)], 3)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted(row["key"] for row in rows) == sorted(f"{task}-{n}" for task in range(3) for n in range(40))


def sleep_long(worker: int, on_event: OnEvent) -> None:
    Path(os.environ["PIDS"], str(os.getpid())).touch()
    time.sleep(100)


def run_forever() -> None:
    run_tasks([sleep_long] * 4, 2)


def test_processes_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import test_local_executor\nif __name__ == '__main__': test_local_executor.run_forever()",
        ],
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
