"""Whatever kills a study, at any moment and as often as it likes: run again it leaves what a study leaves that nobody killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from photos import TINY_MODEL, write_photos
from study_runs import read_rows

ROOT = Path(__file__).parent.parent
TIMES = ("seconds", "memory", "digest")  # all that may differ between two runs
PROTOCOL = "epochs = 1\nmin_steps = 6\nlrs = [0.01]\nweight_decays = [1e-4, 0.1]\ndropouts = [0.0]\n"
PROBES = ["linear-cls", "attn-mid", "attn-mid-smallest", "attn-mid-top2"]

# Imports once and forks each study that it is to kill, so that a kill costs a second. Reads lines of JSON: the arguments of the
# command, and where to kill it; answers how the command ended.
RUNNER = """
import io, json, os, signal, sys
import torch
torch.set_num_threads(1)
import layerbank.probing.probe, layerbank.probing.rows.results, layerbank.executors.studies
import layerbank.console, layerbank.cli  # noqa
from kills import die_at_call
from layerbank.console import Listener
from layerbank.cli import main

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def at_event(name, phase, number):
    "When the event comes for the given time."
    def show(self, event):
        nonlocal number
        if type(event).__name__ == name and phase in (None, getattr(event, "phase", None)):
            number -= 1
            if number == 0:
                kill()
    Listener.show = show

def in_the_line(number):
    "While the line of results.jsonl of the given number is being written: half of it is on the disk."
    sync = os.fsync
    def fsync(descriptor):
        nonlocal number
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("results.jsonl"):
            number -= 1
            if number == 0:
                path = os.readlink(f"/proc/self/fd/{descriptor}")
                text = open(path, "rb").read()
                start = text[:-1].rfind(b"\\n") + 1
                os.truncate(path, start + (len(text) - start) // 2)
                kill()
        sync(descriptor)
    os.fsync = fsync

def at_call(number):
    os.fsync = lambda descriptor: None  # nobody cuts the power
    die_at_call(number)

for line in sys.stdin:
    order = json.loads(line)
    pid = os.fork()
    if pid == 0:
        sys.stdout = sys.stderr = io.StringIO()
        where, *rest = order["kill"]
        {"event": at_event, "line": in_the_line, "call": at_call, "nowhere": lambda: None}[where](*rest)
        code = 0
        try:
            main(order["arguments"])
        except SystemExit as end:
            code = end.code or 0
        os._exit(code)
    status = os.waitpid(pid, 0)[1]
    print(-os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status), flush=True)
"""


class Runner:
    """Studies in processes of their own, one after the other."""

    def __init__(self, arguments: list[str]) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
        self._arguments = arguments
        self._process = subprocess.Popen(
            [sys.executable, "-c", RUNNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def study(self, folder: Path, *kill: Any) -> int:
        """The exit code, -9 if it was killed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        places = ["--cache", str(folder / "caches"), "--runs", str(folder / "runs")]
        order = {"arguments": [*self._arguments, *places], "kill": kill or ("nowhere",)}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process.wait()


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("recipe")
    data = [f"folder:{write_photos(folder / name, {'train': 16, 'test': 6})}" for name in ("one", "two")]
    (folder / "fast.toml").write_text(PROTOCOL)
    (folder / "recipe.toml").write_text(
        f'models = ["{TINY_MODEL}"]\ndata = {json.dumps(data)}\nprobes = {json.dumps(PROBES)}\n'
        f'protocol = "{folder / "fast.toml"}"\nimage_size = 32\n[weights]\n"{TINY_MODEL}" = "random"\n'
    )
    made = Runner(["study", str(folder / "recipe.toml"), "--workers", "0"])
    yield made
    made.close()


@pytest.fixture(scope="module")
def exclusive(runner: Runner, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert runner.study(folder) == 0
    return left_by(folder)


def left_by(folder: Path) -> dict[str, Any]:
    """All that a study leaves: rows in their order, without what may differ, and every other file's bytes.

    The content index is left out: whether a file was old enough to be recorded depends on the clock.
    """
    left: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.name == "results.jsonl":
            left[name] = [{k: v for k, v in row.items() if k not in TIMES} for row in read_rows(path)]
        elif (
            path.is_file() and not path.name.endswith(".lock") and "/attributes" not in name and "/.index/" not in name
        ):
            left[name] = path.read_bytes()
    return left


def differing(left: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    return sorted(name for name in left.keys() | wanted.keys() if left.get(name) != wanted.get(name))


# each kills the run that goes on where the one before was killed
MOMENTS: dict[str, tuple[Any, ...]] = {
    "extracting": ("event", "ExtractionProgress", None, 1),
    "choosing": ("event", "ProbeProgress", "select", 3),
    "training again": ("event", "ProbeProgress", "refit", 3),
    "in the first row": ("line", 1),
    "between two rows": ("event", "ProbeFinished", None, 1),
    "in the second row": ("line", 1),
    "searching for levels": ("event", "ProbeProgress", "validate", 3),
    "in the last row of a unit": ("line", 2),
    "between two units": ("event", "StudyUnitFinished", None, 1),
}


def test_a_study_killed_nine_times_on_its_way_leaves_what_one_leaves_that_was_not(
    runner: Runner, exclusive: dict[str, Any], tmp_path: Path
) -> None:
    for moment, kill in MOMENTS.items():
        assert runner.study(tmp_path, *kill) == -9, moment
        assert not (tmp_path / "runs/failures.jsonl").exists()
    assert runner.study(tmp_path) == 0
    assert differing(left_by(tmp_path), exclusive) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_study_killed_before_any_call_that_changes_the_disk_leaves_the_same(
    runner: Runner, exclusive: dict[str, Any], tmp_path: Path
) -> None:
    """Kills of fresh runs at every 47th call until a run comes through, each followed by one that goes on."""
    number, ended = 0, -9
    while ended == -9:
        folder = tmp_path / str(number)
        ended = runner.study(folder, "call", number)
        if ended == -9:
            assert runner.study(folder) == 0, number
        assert differing(left_by(folder), exclusive) == [], number
        number += 47
    assert number > 10 * 47
