"""Kinds of tokens: `cls`, `ap`, `grid{g}`, `patch` and `register` are computed from an activation `[B, T, D]`.

Means are accumulated in float32 whatever the compute dtype. Results own their memory, so that keeping a `cls` token does not keep
the whole activation alive. This module knows no models: a `TokenLayout` describes the order of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import RequestError

TAPS = ("norm2", "block")
TOKEN_RULE = "1"
"""Version of the definitions here, part of a cache's identity: raise it when any kind's value changes."""


@dataclass(frozen=True, kw_only=True)
class TokenLayout:
    """Order of tokens in the sequence: CLS, other prefix tokens, registers, then patches row-major.

    Attributes:
        grid_size: rows and columns of patches.
        has_cls: token 0 is a class token.
        num_register_tokens: register tokens, directly before the patches.
        num_other_tokens: prefix tokens that belong to no kind (the distillation token of DeiT).
    """

    grid_size: tuple[int, int]
    has_cls: bool
    num_register_tokens: int = 0
    num_other_tokens: int = 0

    @property
    def num_prefix_tokens(self) -> int:
        return int(self.has_cls) + self.num_other_tokens + self.num_register_tokens

    @property
    def num_tokens(self) -> int:
        return self.num_prefix_tokens + self.grid_size[0] * self.grid_size[1]


def kind_shape(kind: str, layout: TokenLayout) -> tuple[int, ...]:
    """Shape of one row of a kind without its last axis D: `()` for cls and ap, `(T,)` for the others.

    Raises:
        RequestError: no such kind, or the backbone has no such tokens.
    """
    rows, columns = layout.grid_size
    if kind == "cls":
        if not layout.has_cls:
            raise RequestError("models.no_class_token", kind=kind)
        return ()
    if kind == "ap":
        return ()
    if kind == "patch":
        return (rows * columns,)
    if kind == "register":
        if not layout.num_register_tokens:
            raise RequestError("models.no_register_tokens", kind=kind)
        return (layout.num_register_tokens,)
    if (cells := grid_cells(kind)) is None:
        raise RequestError("models.unknown_kind", kind=kind)
    if cells > (most := min(rows, columns)):
        raise RequestError("models.grid_too_fine", kind=kind, cells=cells, most=most, rows=rows, columns=columns)
    return (cells * cells,)


def grid_cells(kind: str) -> int | None:
    """Cells a side of a `grid{g}` kind, None for anything else.

    No regular expression: torch 2.6 compiles none, and the forward pass asks here.

    >>> grid_cells("grid4"), grid_cells("grid04"), grid_cells("patch")
    (4, None, None)
    """
    digits = kind.removeprefix("grid")
    if digits == kind or not (digits.isascii() and digits.isdecimal()) or digits.startswith("0") or len(digits) > 9:
        return None
    return int(digits)


def pool_tokens(tokens: Tensor, kind: str, layout: TokenLayout) -> Tensor:
    """Tokens of one kind.

    Args:
        tokens: [B, T, D] with T = layout.num_tokens, any floating dtype.
        kind: one that `kind_shape` accepts for this layout.
        layout: order of CLS, registers and patches.

    Returns:
        [B, D] for cls and ap, else [B, t, D]; contiguous, in the dtype of `tokens`, sharing no memory with it.
    """
    prefix = layout.num_prefix_tokens
    if kind == "cls":
        return _own(tokens[:, 0])
    if kind == "register":
        return _own(tokens[:, prefix - layout.num_register_tokens : prefix])
    patches = tokens[:, prefix:]
    if kind == "patch":
        return _own(patches)
    mean = patches.mean(dim=1, dtype=torch.float32) if kind == "ap" else _pool_grid(patches, kind, layout)
    return mean.to(tokens.dtype)


def _pool_grid(patches: Tensor, kind: str, layout: TokenLayout) -> Tensor:
    """Averages over g x g cells, row-major, float32 [B, g*g, D].

    Cells are those of adaptive average pooling: cell i of n patches covers floor(i n / g) .. ceil((i + 1) n / g),
    so neighbouring cells share a row where g does not divide n.
    """
    cells = grid_cells(kind)
    assert cells is not None, kind
    if cells == 1:  # the same sum in the same order as ap, hence the same bits
        return patches.mean(dim=1, keepdim=True, dtype=torch.float32)
    rows, columns = layout.grid_size
    image = patches.reshape(patches.shape[0], rows, columns, patches.shape[-1])
    # rows first, then columns: one mean over both axes of a strided view is ten times slower on a CPU
    bands = torch.stack([image[:, a:b].mean(1, dtype=torch.float32) for a, b in _cell_spans(rows, cells)], dim=1)
    pooled = torch.stack([bands[:, :, a:b].mean(2) for a, b in _cell_spans(columns, cells)], dim=2)
    return pooled.flatten(1, 2)


def _cell_spans(patches: int, cells: int) -> list[tuple[int, int]]:
    """First and one past the last patch of each cell along one side.

    >>> _cell_spans(7, 2)
    [(0, 4), (3, 7)]
    """
    return [(i * patches // cells, -(-(i + 1) * patches // cells)) for i in range(cells)]


def _own(tokens: Tensor) -> Tensor:
    return tokens.clone(memory_format=torch.contiguous_format)
