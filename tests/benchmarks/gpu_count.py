"""Count what one training step asks of a GPU, without one: kernels, bytes, FLOPs, and the time that a roofline gives them.

    python tests/benchmarks/gpu_count.py                          # 63 attentive probes, one, and 21 linear probes
    python tests/benchmarks/gpu_count.py --compute bfloat16 --group-size 63 --chunk-size 2048

The trainer runs on a simulated GPU, whose tensors have shapes and no values, for two and for four steps; half the difference is a
step. Every operation is one kernel that reads its arguments and writes its results once, but for views and empty tensors, which are
none, and for the fused AdamW: one kernel for 320 pieces of 65,536 numbers, of which each moves 28 bytes. Broadcast axes count once.
A custom operator is listed in CUSTOM with the kernels that it launches and the bytes that they move.
The seconds are a lower bound: the larger of bytes / bandwidth, FLOPs / peak and 2.5 us, summed over the kernels of an H200.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

sys.path.append(str(Path(__file__).parents[1]))
from absent_gpu import absent_gpu

from layerbank.probes import (
    COMPUTES,
    PAPER,
    ArraySource,
    AttentiveBank,
    AttentiveProbe,
    Head,
    LinearBank,
    LinearProbe,
    Multiclass,
    first_duplicates,
    fit_bank,
)

VIEWS = frozenset(
    (
        "view",
        "_unsafe_view",
        "t",
        "transpose",
        "unsqueeze",
        "squeeze",
        "expand",
        "slice",
        "select",
        "permute",
        "as_strided",
        "detach",
        "alias",
        "_reshape_alias",
        "split",
        "unbind",
        "flatten",
        "numpy_T",
        "mT",
        "resolve_conj",
        "lift_fresh",
        "empty",
        "empty_strided",
        "empty_like",
        "new_empty",
        "is_pinned",
        "device",
        "item",
    )
)
FACTORS = {"mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "addmm_": (1, 2), "baddbmm": (1, 2), "baddbmm_": (1, 2)}
BANDWIDTH, LAUNCH_S = 3.9e12, 2.5e-6  # of an H200: bytes/s that a copy reaches, and from one kernel to the next
PEAK_FLOPS = {"float32": 50e12, "tf32": 330e12, "bfloat16": 600e12}
CUSTOM: dict[str, Callable[..., Counted]] = {}
"""Name of a custom operator -> its kernels and bytes, given its arguments."""


@dataclass(frozen=True, kw_only=True)
class Counted:
    """Of one operation, or of many."""

    kernels: float = 0
    num_bytes: float = 0
    flops: float = 0
    seconds: float = 0

    def plus(self, other: Counted, times: float = 1) -> Counted:
        return Counted(**{name: value + times * vars(other)[name] for name, value in vars(self).items()})


class CountingMode(TorchDispatchMode):
    """Counts the operations on fake tensors, by name."""

    def __init__(self, compute: str) -> None:
        super().__init__()
        self.compute = compute
        self.counted: dict[str, Counted] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        results = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        inputs = _tensors((args, {key: value for key, value in kwargs.items() if key != "out"}))
        outputs = _tensors(results)
        if name not in VIEWS and any(isinstance(tensor, FakeTensor) for tensor in inputs + outputs):
            counted = self._count(name, args, inputs, outputs)
            self.counted[name] = self.counted.get(name, Counted()).plus(counted)
        return results

    def _count(self, name: str, args: Any, inputs: list[Tensor], outputs: list[Tensor]) -> Counted:
        if name in CUSTOM:
            return CUSTOM[name](*args)
        if name == "_fused_adamw_":
            size = sum(parameter.numel() for parameter in args[0])
            return self._timed(kernels=-(-size // (320 * 65536)) + 1, num_bytes=28 * size)
        num_bytes = sum(map(_moved_bytes, inputs))
        if name != "copy_":  # its target is among its inputs
            num_bytes += sum(map(_moved_bytes, outputs))
        if name not in FACTORS:
            return self._timed(num_bytes=num_bytes)
        left, right = (args[place] for place in FACTORS[name])
        rate = "bfloat16" if left.dtype == torch.bfloat16 else "tf32" if self.compute == "bfloat16" else self.compute
        return self._timed(num_bytes=num_bytes, flops=2 * left.numel() * right.shape[-1], rate=rate)

    @staticmethod
    def _timed(*, kernels: int = 1, num_bytes: int, flops: int = 0, rate: str = "float32") -> Counted:
        seconds = max(num_bytes / BANDWIDTH, flops / PEAK_FLOPS[rate], kernels * LAUNCH_S)
        return Counted(kernels=kernels, num_bytes=num_bytes, flops=flops, seconds=seconds)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_iter(tree) if isinstance(leaf, Tensor)]


def _moved_bytes(tensor: Tensor) -> int:
    size = tensor.dtype.itemsize
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        size *= length if stride else 1
    return size


def count_step(
    kind: str,
    *,
    compute: str,
    num_probes: int = 63,
    num_tokens: int = 24,
    embed_dim: int = 768,
    num_classes: int = 100,
    batch: int = 2048,
    group_size: int = 63,
    chunk_size: int = 2048,
) -> dict[str, Counted]:
    """What a step of a bank costs, by operation.

    Args:
        kind: attentive, with a head for each token, or linear, on all tokens.
        compute: precision of matrix products.
        num_probes, num_tokens, embed_dim, num_classes: P, T, D, C.
        batch: B.
        group_size, chunk_size: probes and samples of an attentive bank that are computed together.
    """
    head = Head(kind=kind, num_heads=num_tokens if kind == "attentive" else 0)
    grid = list(PAPER.settings(head))
    grid = [grid[number] for number in sorted(set(first_duplicates(grid)))]
    settings = sorted(grid, key=lambda setting: setting.dropout)[:num_probes]
    shape = (num_tokens, embed_dim) if kind == "attentive" else (num_tokens * embed_dim,)
    protocol = replace(PAPER, epochs=4, min_steps=0, batch_size=batch, compute=compute)
    rows = torch.arange(5 * batch)
    counts = []
    with pytest.MonkeyPatch.context() as patch, absent_gpu(patch):
        tokens = torch.empty(len(rows), *shape, device="cuda")
        source = ArraySource(tokens, rows % num_classes, Multiclass(num_classes=num_classes))
        bank: AttentiveBank | LinearBank
        if kind == "attentive":
            bank = AttentiveBank(
                [AttentiveProbe(embed_dim, num_tokens, num_classes)] * len(settings),
                [setting.dropout for setting in settings],
                device="cuda",
                compute=compute,
                group_size=group_size,
                chunk_size=chunk_size,
            )
        else:
            probe = LinearProbe(num_tokens * embed_dim, num_classes)
            bank = LinearBank([probe] * len(settings), device="cuda", compute=compute)
        for num_steps in (2, 4):
            with CountingMode(compute) as mode:
                fit_bank(bank, source, rows, settings, protocol, max_steps=num_steps)
            counts.append(mode.counted)
    few, many = counts
    step = {name: Counted().plus(counted, 0.5).plus(few.get(name, Counted()), -0.5) for name, counted in many.items()}
    return {name: counted for name, counted in step.items() if counted.kernels}


def total(step: dict[str, Counted]) -> Counted:
    """The sum over all operations."""
    whole = Counted()
    for counted in step.values():
        whole = whole.plus(counted)
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compute", choices=COMPUTES, action="append")
    parser.add_argument("--group-size", type=int, default=63)
    parser.add_argument("--chunk-size", type=int, default=2048)
    options = parser.parse_args()
    for compute in options.compute or COMPUTES:
        for kind, num_probes in (("attentive", 63), ("attentive", 1), ("linear", 20)):
            sizes = {"num_probes": num_probes} | ({"num_tokens": 1} if kind == "linear" else {})
            step = count_step(
                kind, compute=compute, group_size=options.group_size, chunk_size=options.chunk_size, **sizes
            )
            whole = total(step)
            largest = sorted(step.items(), key=lambda item: -item[1].seconds)[:6]
            line = {
                "kind": kind,
                "compute": compute,
                "num_probes": num_probes,
                "kernels": round(whole.kernels),
                "gigabytes": round(whole.num_bytes / 1e9, 2),
                "teraflops": round(whole.flops / 1e12, 3),
                "roofline_ms": round(1e3 * whole.seconds, 2),
                "most": {name: round(1e3 * counted.seconds, 2) for name, counted in largest},
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
