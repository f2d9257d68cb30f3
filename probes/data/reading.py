"""A head's own copy of its blocks: what it reads of rows that several heads share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import SettingError
from ..workspace import Workspace
from .blocks import Block, columns_of
from .jitter import Jitter


class Reading:
    """What one head reads of a row.

    Args:
        blocks: of the row, in order.
        names: of the blocks that are read, in the order in which they are joined; None for all.
        flat: side by side as they are, for linear heads; else stacked, narrow tokens padded on the right with zeros.

    Attributes:
        token_shape: (F,) flat, (T, D) stacked.
        whole: a row is read as it lies, without a copy.

    Raises:
        SettingError: a block that the row does not have.
    """

    def __init__(self, blocks: Sequence[Block], names: Sequence[str] | None = None, *, flat: bool) -> None:
        by_name, columns = {block.name: block for block in blocks}, columns_of(blocks)
        missing = [name for name in names or () if name not in by_name]
        if missing:
            raise SettingError(
                where="blocks that a head reads",
                expected="some of " + ", ".join(by_name),
                got=", ".join(missing),
                todo="Give the trainer a source that holds them.",
            )
        read = [by_name[name] for name in (by_name if names is None else names)]
        num_tokens, width = sum(block.num_tokens for block in read), max(block.width for block in read)
        self.token_shape: tuple[int, ...] = (sum(block.size for block in read),) if flat else (num_tokens, width)
        self._blocks = [(block, columns[block.name]) for block in read]
        self._padded = not flat and any(block.width < width for block in read)
        self.whole = not self._padded and [block.name for block in read] == list(by_name)

    def read(self, rows: Tensor, workspace: Workspace, jitter: Jitter | None = None) -> Tensor:
        """[B, F of the whole row], jittered already if `jitter` is given -> [B, *token_shape], until the next call.

        Padding is jittered here, by the step's noise: LayerNorm runs over the padded width, and so does the noise.
        """
        shape = (len(rows), *self.token_shape)
        if self.whole:
            return rows.view(shape)
        out = workspace.empty("tokens that a head reads", *shape)
        if not self._padded:
            torch.cat([rows[:, columns] for _, columns in self._blocks], 1, out=out.view(len(rows), -1))
            return out
        start = 0
        for block, columns in self._blocks:
            tokens = out[:, start : start + block.num_tokens]
            tokens[:, :, : block.width] = rows[:, columns].view(len(rows), block.num_tokens, block.width)
            padding = tokens[:, :, block.width :]
            padding.zero_()
            if jitter is not None and padding.shape[2]:
                jitter.add_to(padding, f"padding of {block.name} to {shape[2]}")
            start += block.num_tokens
        return out
