"""Named scratch memory that outlives a step: page faults of a fresh large tensor cost more than its use.

Large buffers on a CPU are allocated from the system with mmap, not from the heap of the C library. So they are returned as soon
as they are dropped, which the heap does only if nothing above them is in use, and a buffer that grows leaves no hole.
"""

from __future__ import annotations

import math
import mmap

import torch
from torch import Tensor

FROM_SYSTEM_BYTES = 1 << 20


class Workspace:
    """Buffers by name on one device, each as large as its largest use so far. The next use of a name overwrites its content."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype, self.device = dtype, device
        self._buffers: dict[str, Tensor] = {}

    @property
    def size_bytes(self) -> int:
        return sum(buffer.nbytes for buffer in self._buffers.values())

    def empty(self, name: str, *shape: int) -> Tensor:
        """An uninitialised tensor of this shape."""
        size = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size:
            self._buffers.pop(name, None)  # before the larger one is allocated
            del buffer
            buffer = self._buffers[name] = _allocate(size, self._dtype, self.device)
        return buffer[:size].view(shape)


def _allocate(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    size_bytes = size * dtype.itemsize
    if device.type != "cpu" or size_bytes < FROM_SYSTEM_BYTES or not hasattr(mmap, "MAP_ANONYMOUS"):
        return torch.empty(size, dtype=dtype, device=device)
    try:
        memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError:  # no memory: torch raises its own error
        return torch.empty(size, dtype=dtype, device=device)
    return torch.frombuffer(memory, dtype=dtype)  # keeps the map alive as long as the tensor
