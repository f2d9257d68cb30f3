"""glibc returns dropped memory to the system where memory is short."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from layerbank.probing import training
from layerbank.probing.training import LARGE_BYTES, LARGEST_THRESHOLD_BYTES, large_blocks_returned

ROOT = Path(__file__).parents[1]


LARGE_BLOCKS = """
from pathlib import Path
import torch
from layerbank.probing.training import large_blocks_returned

def resident_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))

torch.ones(30 << 18)  # 30 MiB: from now on glibc calls no less a large block
with large_blocks_returned(0):
    blocks = [torch.ones(4 << 18) for _ in range(8)]
    above, before = torch.ones(1000), resident_bytes()
    del blocks
    print(before - resident_bytes())
assert above.sum() == 1000
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is about glibc")
def test_large_blocks_go_back_at_once_though_larger_ones_were_dropped_before() -> None:
    """In a process of its own: holes that other tests have left in the heap are filled before the system is asked."""
    done = subprocess.run([sys.executable, "-c", LARGE_BLOCKS], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) > 7 * (4 << 20)


def test_the_thresholds_are_set_only_where_memory_is_short_and_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    thresholds: list[int] = []

    def set_thresholds(size_bytes: int) -> bool:
        thresholds.append(size_bytes)
        return True

    monkeypatch.setattr(training, "_set_malloc_thresholds", set_thresholds)
    with large_blocks_returned(2 * LARGEST_THRESHOLD_BYTES):
        assert thresholds == []
    with pytest.raises(KeyError), large_blocks_returned(2 * LARGEST_THRESHOLD_BYTES - 1):
        raise KeyError
    assert thresholds == [LARGE_BYTES, LARGEST_THRESHOLD_BYTES]


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_mallopt(_: Any) -> object:
        return object()

    monkeypatch.setattr(ctypes, "CDLL", without_mallopt)
    with large_blocks_returned(0):
        pass
