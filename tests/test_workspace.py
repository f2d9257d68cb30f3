"""Scratch memory: by name, as large as its largest use, and gone when it is dropped."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from layerbank.probes.workspace import FROM_SYSTEM_BYTES, Workspace

CPU = torch.device("cpu")


def resident_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def test_a_name_is_one_buffer_as_large_as_its_largest_use() -> None:
    workspace = Workspace(torch.float32, CPU)
    large = workspace.empty("x", 3, 4)
    assert workspace.empty("x", 2).data_ptr() == large.data_ptr()
    assert workspace.empty("y", 2).data_ptr() != large.data_ptr()
    assert workspace.size_bytes == 4 * (12 + 2)
    assert workspace.empty("x", 100, 2).shape == (100, 2)
    assert workspace.size_bytes == 4 * (200 + 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_large_buffers_are_memory_like_any(dtype: torch.dtype) -> None:
    workspace = Workspace(dtype, CPU)
    size = FROM_SYSTEM_BYTES // dtype.itemsize
    buffer = workspace.empty("x", size)
    assert (buffer.dtype, buffer.shape) == (dtype, (size,))
    del workspace  # whoever holds a tensor holds its memory
    assert buffer.fill_(2).sum(dtype=torch.float64) == 2 * size


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_large_buffer_that_is_dropped_or_grows_goes_back_to_the_system() -> None:
    workspace, size = Workspace(torch.float32, CPU), 16 * FROM_SYSTEM_BYTES // 4
    before = resident_bytes()
    for factor in (1, 2, 3):
        workspace.empty("x", factor * size).fill_(1)
    above = torch.ones(1000)  # on the heap, which could not shrink below it
    grown = resident_bytes() - before
    assert 3 * 4 * size <= grown < 3.5 * 4 * size
    del workspace
    assert resident_bytes() - before < 0.5 * 4 * size
    assert above.sum() == 1000
