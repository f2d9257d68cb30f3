"""Measure whether this CPU multiplies faster in bfloat16 than in float32; its list of instructions says little about that.

`auto` stays float32 on a CPU even so: the precision is part of a store's identity, and a choice by measurement could look for
another store each day. The user gets a hint instead.
"""

from __future__ import annotations

import time

import torch

from layerbank.probes import fast_exact_matmul

from ..events import OnEvent, PrecisionAdvice

WORTHWHILE = 1.5  # times as fast
SHAPE = (256, 384, 1536)  # images' tokens, and an S model's MLP: a millisecond in float32
REPEATS = 3


def advise_on_precision(on_event: OnEvent) -> None:
    """Report if bfloat16 would be faster on this CPU."""
    speedup = bfloat16_speedup()
    if speedup >= WORTHWHILE:
        on_event(PrecisionAdvice(precision="bfloat16", speedup=speedup))


def bfloat16_speedup() -> float:
    """Return the time of a matrix product in float32 over its time in bfloat16, with the current number of threads."""
    with fast_exact_matmul(torch.device("cpu")):
        return _product_s(torch.float32) / _product_s(torch.bfloat16)


def _product_s(dtype: torch.dtype) -> float:
    rows, inner, columns = SHAPE
    left, right = torch.ones(rows, inner, dtype=dtype), torch.ones(inner, columns, dtype=dtype)
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - start)
    return min(times)
