"""What the C library keeps of memory that was given back."""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.probing import heap
from pipeline.probing.heap import HIGHEST_BAR_BYTES, large_blocks_returned


def resident_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is about glibc")
def test_large_blocks_go_back_at_once_though_larger_ones_were_dropped_before() -> None:
    torch.ones(30 << 18)  # 30 MiB: from now on glibc calls no less a large block
    with large_blocks_returned(when=True):
        blocks = [torch.ones(4 << 18) for _ in range(8)]
        above, before = torch.ones(1000), resident_bytes()
        del blocks
        assert before - resident_bytes() > 7 * (4 << 20)
    assert above.sum() == 1000


def test_the_bars_are_set_only_where_memory_is_short_and_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    bars: list[int] = []

    def set_bars(size_bytes: int) -> bool:
        bars.append(size_bytes)
        return True

    monkeypatch.setattr(heap, "_set_bars", set_bars)
    with large_blocks_returned(when=False):
        assert bars == []
    with pytest.raises(KeyError), large_blocks_returned(when=True):
        raise KeyError
    assert bars == [heap.LARGE_BYTES, HIGHEST_BAR_BYTES]


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_mallopt(_: Any) -> object:
        return object()

    monkeypatch.setattr(ctypes, "CDLL", without_mallopt)
    with large_blocks_returned(when=True):
        pass
