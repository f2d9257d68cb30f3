"""Rows of blocks: where the tokens of each level and kind lie in a row, and how they are widened and normalised there.

These are the only lines that touch a token between its storage dtype and a probe, wherever tokens come from: the map
(`token_source.py`), the memory of a device (`resident.py`), or a model that has just run (`predict.py`). So all give the
same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from math import prod

import torch

from layerbank.probes import Block, l2_normalize_

from ..probe_spec import TOKEN_AXIS, ProbeSpec

Array = tuple[str, str]
"""(level, kind)"""


class TokenRows:
    """The rows that some probes read: their blocks side by side, each once.

    Args:
        probes: by name; members of a family count as probes.
        row_shape: of one image's tokens at a level and kind: (D,) or (t, D).

    Attributes:
        arrays: that a row is made of, in order.
        columns: of a row, where each array lies.
        blocks: what a row is made of as probes see it: an array, or, where tokens are normalised over the tokens of a level, all
            arrays of the level.
        size: F, numbers in a row.
    """

    def __init__(self, probes: Iterable[ProbeSpec], row_shape: Callable[[str, str], tuple[int, ...]]) -> None:
        read = {name: arrays for probe in probes for name, arrays in _arrays_of_blocks(probe).items()}
        self.arrays: list[Array] = [array for arrays in read.values() for array in arrays]
        shapes = {array: _tokens_and_width(row_shape(*array)) for array in self.arrays}
        self.blocks = tuple(
            Block(
                name=name,
                num_tokens=sum(shapes[array][0] for array in arrays),
                width=max(shapes[array][1] for array in arrays),
            )
            for name, arrays in read.items()
        )
        self.columns: list[slice] = []
        stop = 0
        for array in self.arrays:
            start, stop = stop, stop + prod(shapes[array])
            self.columns.append(slice(start, stop))
        self.size = stop
        self._joint = {name for name, arrays in read.items() if len(arrays) > 1}

    def fill(self, rows: torch.Tensor, parts: Iterable[torch.Tensor]) -> None:
        """Rows from the tokens of their arrays.

        Args:
            rows: [b, F] float32, filled.
            parts: of each array [b, D] or [b, t, D], in the storage dtype or wider.
        """
        for columns, part in zip(self.columns, parts, strict=True):
            rows[:, columns].copy_(part.flatten(1))
        self.normalize(rows)

    def normalize(self, rows: torch.Tensor) -> None:
        """Widened rows [b, F] float32, normalised in place: each token over its channels, or a joint block over its tokens."""
        for columns, num_tokens, width, joint in self._runs():
            l2_normalize_(rows[:, columns].view(len(rows), num_tokens, width), dim=1 if joint else 2)

    def _runs(self) -> Iterator[tuple[slice, int, int, bool]]:
        """Columns, tokens and width of neighbouring blocks that are normalised at once, and whether over their tokens."""
        stop, numbered = 0, list(enumerate(self.blocks))

        def alike(item: tuple[int, Block]) -> tuple[int, int]:
            number, block = item
            return block.width, number if block.name in self._joint else -1

        for (width, number), run in groupby(numbered, alike):
            num_tokens = sum(block.num_tokens for _, block in run)
            start, stop = stop, stop + num_tokens * width
            yield slice(start, stop), num_tokens, width, number >= 0


def block_names(probe: ProbeSpec) -> tuple[str, ...]:
    """The blocks that a probe reads of a row of several probes, in its order.

    >>> from .probe_spec import parse_probe
    >>> block_names(parse_probe("attn-mid", 12))
    ('block.6/cls', 'block.6/ap', 'final/cls', 'final/ap')
    """
    return tuple(_arrays_of_blocks(probe))


def _arrays_of_blocks(probe: ProbeSpec) -> dict[str, list[Array]]:
    """Name of a block -> its arrays."""
    if probe.normalize == TOKEN_AXIS and len(probe.kinds) > 1:
        return {
            f"{level}/{'+'.join(probe.kinds)} over tokens": [(level, kind) for kind in probe.kinds]
            for level in probe.levels
        }
    return {f"{level}/{kind}": [(level, kind)] for level in probe.levels for kind in probe.kinds}


def _tokens_and_width(row_shape: tuple[int, ...]) -> tuple[int, int]:
    return (1 if len(row_shape) == 1 else row_shape[0]), row_shape[-1]
