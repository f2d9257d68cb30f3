"""Kinds of tokens are those of PROTOCOL section 1, for every layout of prefix tokens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from messages import raises
from torch import Tensor

from layerbank import RequestError
from layerbank.models.taps import TokenLayout, kind_shape, pool_tokens

LAYOUTS = st.builds(
    TokenLayout,
    grid_size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    has_cls=st.booleans(),
    num_register_tokens=st.integers(0, 4),
    num_other_tokens=st.integers(0, 1),
)


def _tokens(layout: TokenLayout, *, batch: int = 2, embed_dim: int = 3) -> Tensor:
    return torch.randn(batch, layout.num_tokens, embed_dim, generator=torch.Generator().manual_seed(0))


def _patch(tokens: Tensor, layout: TokenLayout, row: int, column: int) -> Tensor:
    prefix = int(layout.has_cls) + layout.num_other_tokens + layout.num_register_tokens
    return tokens[:, prefix + row * layout.grid_size[1] + column].double()


@settings(deadline=None, max_examples=60)
@given(layout=LAYOUTS, cells=st.integers(1, 9))
def test_a_grid_cell_is_the_mean_of_its_patches(layout: TokenLayout, cells: int) -> None:
    rows, columns = layout.grid_size
    if cells > min(rows, columns):
        with pytest.raises(RequestError):
            kind_shape(f"grid{cells}", layout)
        return
    tokens = _tokens(layout)
    pooled = pool_tokens(tokens, f"grid{cells}", layout)
    assert tuple(pooled.shape) == (2, *kind_shape(f"grid{cells}", layout), 3)
    assert pooled.is_contiguous()
    for i in range(cells):
        for j in range(cells):
            inside = [
                _patch(tokens, layout, row, column)
                for row in range(i * rows // cells, -(-(i + 1) * rows // cells))
                for column in range(j * columns // cells, -(-(j + 1) * columns // cells))
            ]
            expected = torch.stack(inside).mean(0).float()
            torch.testing.assert_close(pooled[:, i * cells + j], expected, rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(layout=LAYOUTS)
def test_the_other_kinds_are_slices_and_the_mean_of_the_patches(layout: TokenLayout) -> None:
    tokens = _tokens(layout)
    rows, columns = layout.grid_size
    patches = torch.stack([_patch(tokens, layout, r, c) for r in range(rows) for c in range(columns)], 1)
    torch.testing.assert_close(pool_tokens(tokens, "patch", layout), patches.float(), rtol=0, atol=0)
    torch.testing.assert_close(pool_tokens(tokens, "ap", layout), patches.mean(1).float(), rtol=1e-5, atol=1e-6)
    if layout.has_cls:
        assert torch.equal(pool_tokens(tokens, "cls", layout), tokens[:, 0])
    if registers := layout.num_register_tokens:
        start = int(layout.has_cls) + layout.num_other_tokens
        assert torch.equal(pool_tokens(tokens, "register", layout), tokens[:, start : start + registers])
        assert kind_shape("register", layout) == (registers,)


def test_registers_class_and_distillation_tokens_never_reach_ap_or_a_grid() -> None:
    layout = TokenLayout(grid_size=(4, 4), has_cls=True, num_register_tokens=4, num_other_tokens=1)
    tokens = _tokens(layout)
    spoiled = tokens.clone()
    spoiled[:, :6] = torch.nan
    for kind in ("ap", "grid1", "grid2", "grid3", "patch"):
        assert torch.equal(pool_tokens(spoiled, kind, layout), pool_tokens(tokens, kind, layout))


def test_grid1_is_ap_to_the_bit() -> None:
    layout = TokenLayout(grid_size=(16, 16), has_cls=True)
    tokens = _tokens(layout, embed_dim=64)
    assert torch.equal(pool_tokens(tokens, "grid1", layout)[:, 0], pool_tokens(tokens, "ap", layout))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["ap", "grid2", "grid3"])
def test_means_of_half_precision_tokens_are_accumulated_in_float32(dtype: torch.dtype, kind: str) -> None:
    layout = TokenLayout(grid_size=(16, 16), has_cls=True)
    tokens = (100 + _tokens(layout, embed_dim=8)).to(dtype)  # the sum of 256 would leave float16's range of integers
    pooled = pool_tokens(tokens, kind, layout)
    exact = pool_tokens(tokens.double(), kind, layout)
    assert pooled.dtype == dtype
    assert torch.equal(pooled, exact.to(dtype))


def test_large_activations_do_not_overflow_in_the_mean() -> None:
    layout = TokenLayout(grid_size=(16, 16), has_cls=False)
    tokens = torch.full((1, 256, 2), 60000.0, dtype=torch.float16)
    assert pool_tokens(tokens, "ap", layout).tolist() == [[60000.0, 60000.0]]


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("cls", "models.no_class_token"),
        ("register", "models.no_register_tokens"),
        ("grid4", "models.grid_too_fine"),
        ("grid0", "models.unknown_kind"),
        ("CLS", "models.unknown_kind"),
    ],
)
def test_kinds_that_a_backbone_lacks_are_refused(kind: str, key: str) -> None:
    with raises(key, RequestError) as refused:
        kind_shape(kind, TokenLayout(grid_size=(3, 5), has_cls=False))
    assert refused.error.where == f"token kind {kind}"
    if kind == "grid4":
        assert refused.error.values == {"kind": kind, "cells": "4", "most": "3", "rows": "3", "columns": "5"}
