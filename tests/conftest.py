"""What several test files need: a small folder of real image files, and one thread, so that results repeat."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from photos import write_photos


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Models this small run five times faster so on a busy machine: two threads wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _hears_ctrl_c() -> None:
    """A shell lets what it starts in the background ignore it, and all its children with it."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes; 40 images a class to train on, 20 to test on."""
    return write_photos(tmp_path_factory.mktemp("photos"), {"train": 40, "test": 20})
