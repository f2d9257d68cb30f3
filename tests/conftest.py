"""What several test files need: a small folder of real image files, and one thread, so that results repeat."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import MODEL, run
from photos import write_photos

from layerbank.data.sources import ImageSource

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Models this small run five times faster so on a busy machine, here and in other processes: threads wait for each other."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(autouse=True)
def _no_index_of_an_earlier_test(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that is read-only leaves its content index in the user's cache folder, for whoever comes next.

    The folder of settings is a new one too: a developer's own list of trusted models decides no test.
    """
    folder = tmp_path_factory.getbasetemp() / f"user-{secrets.token_hex(4)}"
    monkeypatch.setenv("XDG_CACHE_HOME", f"{folder}-cache")
    monkeypatch.setenv("XDG_CONFIG_HOME", f"{folder}-config")


@pytest.fixture(autouse=True, scope="session")
def _hears_ctrl_c() -> None:
    """A shell lets what it starts in the background ignore it, and all its children with it."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes; 40 images a class to train on, 20 to test on."""
    return write_photos(tmp_path_factory.mktemp("photos"), {"train": 40, "test": 20})


@pytest.fixture(scope="session")
def two_sets(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The URIs of two data sets."""
    more = write_photos(tmp_path_factory.mktemp("more") / "other", {"train": 20, "test": 10})
    time.sleep(2.1)  # the next command would hash younger files again, and write their index
    return [f"folder:{photos}", f"folder:{more}"]


@pytest.fixture(scope="session")
def many_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 images: three blocks of rows."""
    return write_photos(tmp_path_factory.mktemp("many"), {"train": 200})


@pytest.fixture(scope="session")
def extract_arguments(many_photos: Path) -> tuple[str, ...]:
    """`layerbank extract` of these images."""
    return ("extract", *MODEL, "--data", f"folder:{many_photos}", "--split", "train", "--levels", "last")


@pytest.fixture(scope="session")
def extracted_store(extract_arguments: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store that one process leaves after `extract_arguments`."""
    root = tmp_path_factory.mktemp("alone")
    assert run(*extract_arguments, "--cache", root).exit_code == 0
    (store,) = root.rglob("*.zarr")
    return store


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that leaves so many bytes free on every disk."""

    def leave(free: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 10**12 - free, free))

    return leave


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows that were decoded."""
    rows: list[int] = []
    original = ImageSource.load

    def load(self: ImageSource, row: int) -> Any:
        rows.append(row)
        return original(self, row)

    monkeypatch.setattr(ImageSource, "load", load)
    return rows
