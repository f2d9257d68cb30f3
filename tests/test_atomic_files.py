"""Files appear whole or not at all, whoever else writes them at the same time."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from messages import raises

from layerbank.cache.atomic_files import put_in_place, replace_file, staging_beside
from layerbank.data.image_set import ImageSet
from layerbank.data.splits.split_record import SplitRecord, load_record
from layerbank.probing.rows.whole_files import save_arrays

NUM_FILES = 60


def a_record(number: int) -> SplitRecord:
    hashes = np.arange(1, 201, dtype=np.uint64) + 1000 * number
    images = ImageSet(hashes, None, np.ones(200, np.bool_), False)
    ids, labels = [f"{row}" for row in range(200)], np.zeros(200, np.int64)
    return SplitRecord(dataset="d", split="train", ids=ids, labels=labels, class_names=["a"], images=images)


def write_everything(folder: Path) -> None:
    for number in range(NUM_FILES):
        a_record(number).save(folder)
        save_arrays(folder / "arrays.npz", values=np.full(1000, number))
        replace_file(folder / "text", b"%d" % number * 1000)


def test_processes_and_threads_that_write_the_same_files_do_not_disturb_each_other(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    processes = [context.Process(target=write_everything, args=(tmp_path,)) for _ in range(2)]
    threads = [threading.Thread(target=write_everything, args=(tmp_path,)) for _ in range(2)]
    for one in (*processes, *threads):
        one.start()
    for one in (*processes, *threads):
        one.join()
    assert [one.exitcode for one in processes] == [0, 0]
    for number in range(NUM_FILES):
        load_record(tmp_path / a_record(number).file_name)
    assert (tmp_path / "text").read_bytes() == b"%d" % (NUM_FILES - 1) * 1000
    assert len(list(tmp_path.iterdir())) == NUM_FILES + 2, "nothing else is left"


@pytest.mark.parametrize("name", ["results.npz", "no suffix", ".hidden", "a*[b].txt"])
def test_what_an_ended_process_left_is_removed_and_what_others_write_is_not(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    mine = staging_beside(path)
    ended = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    )
    left = mine.with_name(mine.name.replace(f"-{os.getpid()}-", f"-{ended.stdout.strip()}-"))
    others = [
        mine.with_name(mine.name.replace(f"-{os.getpid()}-", f"-{os.getppid()}-")),
        mine.with_name(mine.name.replace(socket.gethostname(), "another-machine")),
        tmp_path / f".{name}.something",
    ]
    for file in (left, mine, *others):
        file.touch()
    replace_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert sorted(tmp_path.iterdir()) == sorted([path, *others])


@pytest.mark.parametrize("has_links", [True, False], ids=["hard links", "none"])
def test_a_published_file_replaces_nothing(has_links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*names: object) -> None:
        raise PermissionError

    if not has_links:
        monkeypatch.setattr(os, "link", refuse)
    staging, path = tmp_path / "staging", tmp_path / "file"
    staging.write_bytes(b"new")
    put_in_place(staging, path)
    assert path.read_bytes() == b"new"
    staging.write_bytes(b"newer")
    with raises("cache.path_taken", path=path):
        put_in_place(staging, path)
    assert (path.read_bytes(), staging.read_bytes()) == (b"new", b"newer")
