"""A simulated GPU: its tensors have a shape, a type and a device, but no values, so code that needs values fails.

The host's tensors are real, the GPU's are torch's fake ones. `.item()`, `bool(x)`, `nonzero`, boolean indexing and
operands on two devices raise errors. A copy is no error but may wait: `waits` lists every copy to the host, and every copy
from the host that is not queued (`non_blocking`) from page-locked memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

import layerbank.probes.data.rows
import layerbank.probes.fit


class AbsentGpu(TorchDispatchMode):
    """Sends operations on the GPU to the fake one, and records those that wait."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.num_calls = 0
        self.pinned: set[int] = set()  # where the host's page-locked tensors lie

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        target, tensors = kwargs.get("device"), [x for x in tree_iter((args, kwargs)) if isinstance(x, Tensor)]
        on_gpu = [isinstance(tensor, FakeTensor) for tensor in tensors]
        if not any(on_gpu) and (target is None or torch.device(target).type != "cuda"):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        self.num_calls += 1
        if func is torch.ops.aten._to_copy.default and target is not None:
            from_gpu, to_gpu, queued = on_gpu[0], torch.device(target).type == "cuda", kwargs.get("non_blocking")
        elif func is torch.ops.aten.copy_.default:
            from_gpu, to_gpu, queued = on_gpu[1], on_gpu[0], len(args) > 2 and args[2]
        else:
            if any(tensor.dim() for tensor, there in zip(tensors, on_gpu, strict=True) if not there):
                self.waits.append(f"{func}: a host tensor among its arguments")
            return func(*args, **kwargs)
        source = tensors[-1]
        if from_gpu != to_gpu and not (to_gpu and queued and source.data_ptr() in self.pinned):
            self.waits.append(f"{func} {'to' if to_gpu else 'from'} the GPU")
        return func(*args, **kwargs)


@contextmanager
def absent_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[AbsentGpu]:
    """Within, `device="cuda"` works on any machine; with torch 2.6, indexing or filling such a tensor needs a GPU."""
    gpu = AbsentGpu()

    def pin(x: Tensor) -> Tensor:  # needs a driver
        with unset_fake_temporarily():
            pinned = x.clone()
        gpu.pinned.add(pinned.data_ptr())
        kept.append(pinned)  # or its address might be another's
        return pinned

    def make_generator(seed: int, purpose: str, *numbers: int, device: Any = "cpu") -> torch.Generator:
        return torch.Generator().manual_seed(seed)  # a generator of a GPU needs a driver too

    kept: list[Tensor] = []
    with monkeypatch.context() as patch, FakeTensorMode(allow_non_fake_inputs=True), gpu:
        patch.setattr(Tensor, "pin_memory", pin)
        for module in (layerbank.probes.fit, layerbank.probes.data.rows):
            patch.setattr(module, "make_generator", make_generator)
        try:
            yield gpu
        except RuntimeError as error:
            if not hasattr(torch._C, "_ensureCUDADeviceGuardSet") and "CUDA driver version" in str(error):
                pytest.skip("this torch asks the driver even about a fake tensor")
            raise
