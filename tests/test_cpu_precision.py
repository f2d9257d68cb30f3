"""Advice on the precision of a CPU is measured, given only where it is worth something, and never followed by itself."""

from __future__ import annotations

import pytest
import torch

from layerbank.events import Event, PrecisionAdvice
from layerbank.extraction import cpu_precision
from layerbank.extraction.cpu_precision import advise_on_precision, bfloat16_speedup
from layerbank.models.request import choose_precision


@pytest.mark.parametrize(("half_s", "told"), [(0.5, True), (0.7, False), (70.0, False)])
def test_bfloat16_is_recommended_where_it_is_half_as_fast_again(
    monkeypatch: pytest.MonkeyPatch, half_s: float, told: bool
) -> None:
    monkeypatch.setattr(cpu_precision, "_product_s", lambda dtype, shape: half_s if dtype == torch.bfloat16 else 1.0)
    events: list[Event] = []
    advise_on_precision(events.append)
    assert events == ([PrecisionAdvice(precision="bfloat16", speedup=1 / half_s)] if told else [])


def test_where_bfloat16_is_emulated_a_small_product_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[tuple[int, int, int]] = []

    def product_s(dtype: torch.dtype, shape: tuple[int, int, int]) -> float:
        measured.append(shape)
        return 70.0 if dtype == torch.bfloat16 else 1.0

    monkeypatch.setattr(cpu_precision, "_product_s", product_s)
    assert bfloat16_speedup() == 1 / 70
    assert set(measured) == {cpu_precision.SHAPES[0]}


def test_the_speed_of_this_cpu_is_a_ratio_of_measured_times() -> None:
    assert 0.001 < bfloat16_speedup() < 100


def test_auto_does_not_follow_the_stopwatch() -> None:
    assert choose_precision("auto", "cpu") == "float32"
