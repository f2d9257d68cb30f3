"""The array job of pipeline/README.md, without Slurm: in any order, and all at once, its tasks leave the bytes of one run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

import pytest
from click.testing import Result
from commands import ROOT, run
from photos import write_photos
from token_stores import tree

(SCRIPT,) = re.findall(r"```bash\n(#!/bin/bash\n#SBATCH .*?)```", (ROOT / "pipeline/README.md").read_text(), re.DOTALL)
COMMAND = SCRIPT.splitlines()[-1]
SMALL = "--weights random --image-size 32 --workers 0 --batch-size 16 --levels last --split train"


@pytest.fixture(scope="module")
def photos_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,200 images: five blocks of rows, so that each of four tasks has one."""
    folder = tmp_path_factory.mktemp("data")
    write_photos(folder / "photos", {"train": 400})
    return folder


@pytest.fixture(scope="module")
def finished(photos_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one run leaves, by the command of the script without its shard."""
    root = tmp_path_factory.mktemp("alone")
    assert run_task("", photos_folder, root).exit_code == 0
    return store_in(root)


def store_in(root: Path) -> dict[str, bytes]:
    (store,) = root.rglob("*.zarr")
    return tree(store)


def run_task(task: str, photos_folder: Path, root: Path) -> Result:
    command = COMMAND.replace("$SLURM_ARRAY_TASK_ID", task) if task else COMMAND.partition(" --shard")[0]
    with chdir(photos_folder):
        return run(*shlex.split(f"{command} {SMALL} --cache {root}")[1:])


def test_the_tasks_of_the_array_are_those_that_the_command_counts() -> None:
    (last,) = re.findall(r"#SBATCH --array=0-(\d+)", SCRIPT)
    assert COMMAND.endswith(f"--shard $SLURM_ARRAY_TASK_ID/{int(last) + 1}")
    assert int(last) == 3


def test_one_task_after_the_other_the_last_one_first_leaves_the_bytes_of_one_run(
    photos_folder: Path, finished: dict[str, bytes], tmp_path: Path
) -> None:
    for task in ("3", "1", "0", "2"):
        done = run_task(task, photos_folder, tmp_path)
        assert done.exit_code == 0, done.stderr
    assert store_in(tmp_path) == finished


def test_all_tasks_at_once_leave_the_bytes_of_one_run(
    photos_folder: Path, finished: dict[str, bytes], tmp_path: Path
) -> None:
    command = tmp_path / "bin/layerbank"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m layerbank.cli "$@" {SMALL}\n')
    command.chmod(0o755)
    (tmp_path / "photos").symlink_to(photos_folder / "photos")
    (tmp_path / "extract.sbatch").write_text(SCRIPT)
    paths = {"PATH": f"{command.parent}:{os.environ['PATH']}"}
    tasks = [
        subprocess.Popen(
            ["bash", "extract.sbatch"],
            cwd=tmp_path,
            env=os.environ | paths | {"SLURM_ARRAY_TASK_ID": str(task)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for task in range(4)
    ]
    for task in tasks:
        said = task.communicate(timeout=240)[1]
        assert task.returncode == 0, said
    assert store_in(tmp_path / "caches") == finished
