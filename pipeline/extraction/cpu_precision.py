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
SHAPES = ((16, 384, 1536), (256, 384, 1536))  # tokens, and an S model's MLP: the larger takes a millisecond in float32
EMULATED = 0.5  # times as fast: 256 tokens would take a quarter of a second, and could not change the answer
REPEATS = 3


def advise_on_precision(on_event: OnEvent) -> None:
    """Report if bfloat16 would be faster on this CPU."""
    speedup = bfloat16_speedup()
    if speedup >= WORTHWHILE:
        on_event(PrecisionAdvice(precision="bfloat16", speedup=speedup))


def bfloat16_speedup() -> float:
    """Return the time of a matrix product in float32 over its time in bfloat16, with the current number of threads.

    Of a small product where that one is much slower in bfloat16, of a large one otherwise.
    """
    with fast_exact_matmul(torch.device("cpu")):
        for shape in SHAPES:
            speedup = _product_s(torch.float32, shape) / _product_s(torch.bfloat16, shape)
            if speedup < EMULATED:
                break
    return speedup


def _product_s(dtype: torch.dtype, shape: tuple[int, int, int]) -> float:
    rows, inner, columns = shape
    left, right = torch.ones(rows, inner, dtype=dtype), torch.ones(inner, columns, dtype=dtype)
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - start)
    return min(times)
