"""Memory of a training step, counted without computing it: the step runs on meta tensors, which have no values.

For heads that autograd differentiates: no formula says what it keeps for the backward pass. A trace takes milliseconds for
any sizes and counts all tensors that are alive at the same time. It does not see scratch memory of kernels, which copy a
factor or two at most: for these, twice the largest tensor is added.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from ..heads import Head, HeadModule, make_probe
from ..tasks.task import Task
from .module_bank import ModuleBank, allows_chunks


@lru_cache(maxsize=256)
def step_bytes(head: Head, token_shape: tuple[int, ...], task: Task, batch_size: int, chunk_size: int) -> int:
    """Upper bound of the memory of a training step of one probe, beside batch, weights and gradients.

    Args:
        head: a head that `ModuleBank` trains.
        token_shape: (T, D).
        task: its loss is computed.
        batch_size: B.
        chunk_size: samples computed together; 0 is the whole batch.
    """
    bank = ModuleBank([probe_of(head, token_shape, task.num_outputs)], device="meta", chunk_size=chunk_size or None)
    batch = torch.empty(batch_size, *token_shape, device="meta")
    targets = torch.empty(batch_size, *task.target_shape, dtype=task.target_dtype, device="meta")
    weights = torch.empty(batch_size, device="meta")
    peak_bytes, largest_bytes = count_bytes(lambda: bank.compute_gradients(batch, targets, weights, {}, task))
    return peak_bytes + 2 * largest_bytes


def chunks_are_possible(head: Head, token_shape: tuple[int, ...], num_classes: int) -> bool:
    """Whether `ModuleBank` can process a batch of this head in chunks."""
    return allows_chunks(probe_of(head, token_shape, num_classes))


@lru_cache(maxsize=16)
def probe_of(head: Head, token_shape: tuple[int, ...], num_classes: int) -> HeadModule:
    """A probe of these sizes, kept for the next call; its weights do not matter."""
    return make_probe(head, token_shape, num_classes)


def count_bytes(step: Callable[[], object]) -> tuple[int, int]:
    """Peak memory of the tensors that a call creates, and the size of the largest of them, in bytes."""
    with torch.no_grad(), _Ledger() as ledger:
        step()
    return ledger.peak_bytes, ledger.largest_bytes


class _Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts memory that is allocated and freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak_bytes: int = 0
        self.largest_bytes: int = 0
        self._living_bytes: int = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        made = func(*args, **(kwargs or {}))
        for tensor in _tensors(made):
            storage = tensor.untyped_storage()
            if storage._cdata not in given | self._known:
                self._known.add(storage._cdata)
                weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
                self._living_bytes += storage.nbytes()
                self.largest_bytes = max(self.largest_bytes, storage.nbytes())
                self.peak_bytes = max(self.peak_bytes, self._living_bytes)
        return made

    def _free(self, storage: int, size_bytes: int) -> None:
        self._known.discard(storage)
        self._living_bytes -= size_bytes


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_iter(values) if isinstance(value, Tensor)]
