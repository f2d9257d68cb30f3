"""Named scratch memory that outlives a step: page faults of a fresh large tensor cost more than its use."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Workspace:
    """Buffers by name on one device, each as large as its largest use so far. A name's content is gone at its next use."""

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
            buffer = torch.empty(size, dtype=self._dtype, device=self.device)
            self._buffers[name] = buffer
        return buffer[:size].view(shape)
