"""Tokens are rounded to the storage dtype, and nothing that did not fit goes uncounted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from layerbank.models.rounding import float_tokens, round_on_device, round_tokens


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_rounding_is_that_of_torch_and_comes_back_as_the_same_numbers(dtype: str) -> None:
    tokens = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    rounded = round_tokens(tokens, dtype)
    assert (rounded.num_saturated, rounded.num_nonfinite) == (0, 0)
    assert torch.equal(float_tokens(rounded.values, dtype), tokens.to(getattr(torch, dtype)))


def test_bfloat16_travels_as_uint16() -> None:
    assert round_tokens(torch.ones(1, 1), "bfloat16").values.dtype == np.uint16


def test_finite_values_beyond_float16_become_its_largest_number_and_are_counted() -> None:
    values, num_saturated, num_nonfinite = round_tokens(torch.tensor([[1e6, -1e6, 65519.0, 2.0]]), "float16")
    assert values.tolist() == [[65504.0, -65504.0, 65504.0, 2.0]]
    assert (num_saturated, num_nonfinite) == (2, 0)


def test_infinities_and_nans_are_kept_and_counted() -> None:
    tokens = torch.tensor([[float("inf"), -float("inf"), float("nan"), 1e6]])
    values, num_saturated, num_nonfinite = round_tokens(tokens, "float16")
    assert values[0, 0] == np.inf
    assert values[0, 1] == -np.inf
    assert np.isnan(values[0, 2])
    assert values[0, 3] == 65504
    assert (num_saturated, num_nonfinite) == (1, 3)


def test_an_overflow_of_a_half_precision_model_is_counted_too() -> None:
    assert round_tokens(torch.full((1, 2), float("inf"), dtype=torch.float16), "float32").num_nonfinite == 2


@pytest.mark.parametrize("planted", [[], [1e6, -1e6], [float("nan"), float("inf"), 1e6]])
def test_counting_without_a_look_first_gives_the_same(planted: list[float]) -> None:
    tokens = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    tokens[0, : len(planted)] = torch.tensor(planted)
    looked, counted = (round_on_device(tokens, "float16", look_first=look) for look in (True, False))
    np.testing.assert_array_equal(looked.values.view(torch.int16), counted.values.view(torch.int16))
    assert looked.counts.tolist() == counted.counts.tolist()
