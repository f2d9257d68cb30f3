"""Named scratch memory that outlives a step: page faults of a fresh large tensor cost more than its use.

Large buffers of the host are taken from the system itself and not from the C library's heap. There they would be given back when
the heap around them allows it, if ever; here that is when they are dropped, and a buffer that grew leaves no hole.
"""

from __future__ import annotations

import math
import mmap

import torch
from torch import Tensor

FROM_SYSTEM_BYTES = 1 << 20


class Workspace:
    """Buffers by name on one device, each as large as its largest use so far. A name's content is gone at its next use."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype, self.device = dtype, device
        self._buffers: dict[str, Tensor] = {}

    @property
    def size_bytes(self) -> int:
        return sum(buffer.nbytes for buffer in self._buffers.values())

    def empty(self, name: str, *shape: int) -> Tensor:
        """A tensor of this shape with whatever lies there."""
        size = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size:
            self._buffers.pop(name, None)  # before the larger one is made
            del buffer
            buffer = self._buffers[name] = _allocate(size, self._dtype, self.device)
        return buffer[:size].view(shape)


def _allocate(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    size_bytes = size * dtype.itemsize
    if device.type != "cpu" or size_bytes < FROM_SYSTEM_BYTES or not hasattr(mmap, "MAP_ANONYMOUS"):
        return torch.empty(size, dtype=dtype, device=device)
    try:
        memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError:  # no memory: let torch say so, in its own words
        return torch.empty(size, dtype=dtype, device=device)
    return torch.frombuffer(memory, dtype=dtype)  # holds the map, which goes with its last tensor
