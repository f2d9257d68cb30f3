"""Ctrl-C ends every command that works for long, soon and in two lines, also on a machine that is busy."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import start
from photos import TINY_MODEL, write_photos

pytestmark = pytest.mark.slow
LONGEST_S = 15.0
BUSY = 4  # processes beside the command
LARGE = ("--model", "timm/vit_base_patch16_224", "--weights", "random", "--data", "demo:digits", "--device", "cpu")
SMALL = ("--model", TINY_MODEL, "--weights", "random", "--image-size", "32", "--workers", "0")


@pytest.fixture
def _busy() -> Iterator[None]:
    beside = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(BUSY)]
    yield
    for one in beside:
        one.kill()
        one.wait()


@pytest.mark.usefixtures("_busy")
@pytest.mark.parametrize("after_s", [4.0, 20.0])  # while modules are imported, and at work
@pytest.mark.parametrize(
    "arguments",
    [
        ("extract", *LARGE, "--workers", "0"),
        ("extract", *LARGE, "--workers", "2"),
        ("extract", *LARGE, "--processes", "2"),
        ("plan", *LARGE),
        ("probe", *SMALL, "--data", "folder:photos", "--probe", "alf,linear-all"),
        ("study", "study.toml"),
        ("study", "study.toml", "--processes", "2"),
        ("study", "paper-base", "--dry-run", "--calibrate"),
        ("models", "*"),
    ],
    ids=lambda arguments: " ".join([arguments[0], *arguments[-2:]]),
)
def test_ctrl_c_ends_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], after_s: float
) -> None:
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "photos", {"train": 20, "test": 10})
    recipe = f"models = ['{TINY_MODEL}']\ndata = ['folder:photos', 'demo:digits']\nprobes = ['alf']\nimage_size = 32\n"
    (tmp_path / "study.toml").write_text(f"{recipe}weights = {{'{TINY_MODEL}' = 'random'}}\n")
    command = start(*arguments, in_a_group_of_its_own=True)
    time.sleep(after_s)
    assert command.poll() is None, command.communicate()
    os.killpg(command.pid, signal.SIGINT)
    began_s = time.monotonic()
    _, shown = command.communicate(timeout=120)
    assert time.monotonic() - began_s < LONGEST_S, shown
    assert command.returncode in (130, -signal.SIGINT), (
        shown
    )  # a shell says 130 for both; inside exec() it is Python's own end
    assert "interrupted" in shown
    assert "Traceback" not in shown
