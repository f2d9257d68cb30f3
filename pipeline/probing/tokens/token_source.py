"""Tokens of a store as probes read them: where each level and kind lies in a row, and how it is widened and normalised.

`CachedTokens` gathers rows straight from the memory map. `resident.py` reads a store once into the memory of a device where that
fits, which a sweep of many epochs prefers; `streaming.py` reads it ahead where it does not; `predict.py` has tokens of a model that
has just run. All give the same bits, because `TokenRows` alone handles a token between its storage dtype and a probe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, groupby, pairwise
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray

from layerbank.cache import TokenArray
from layerbank.probes import HEADS, ArraySource, ColumnBlock, Reading, concat_tokens, l2_normalize_, stack_tokens
from layerbank.probes.workspace import Workspace

from ...models.rounding import STORAGE_DTYPES, float_tokens
from ..probe_spec import TOKEN_AXIS, ProbeSpec
from .split_tokens import SplitTokens

RELEASE_ROWS = 1024  # rows after which pages of the map that were copied are given back
GAP_ROWS = 8  # positions between two runs that are read as one: views and damaged images that are left out
ROWS_AT_ONCE = 128  # rows of all arrays that are gathered, widened and normalised together


class TokenRows:
    """The rows that some probes read: their blocks side by side, each once.

    Args:
        probes: by name; members of a family count as probes.
        row_shape: shape of an image's tokens at a level and kind: (D,) or (t, D).

    Attributes:
        arrays: (level, kind) pairs that a row is made of, in order.
        columns: where each array lies in a row.
        blocks: the parts of a row as probes read them: an array, or, where a probe normalises over the tokens of a level, all
            arrays of the level.
        size: F, numbers in a row.
    """

    def __init__(self, probes: Iterable[ProbeSpec], row_shape: Callable[[str, str], tuple[int, ...]]) -> None:
        read = {name: arrays for probe in probes for name, arrays in _arrays_of_blocks(probe).items()}
        self.arrays = [array for arrays in read.values() for array in arrays]
        shapes = {array: row_shape(*array) for array in self.arrays}
        self.blocks = tuple(
            ColumnBlock(
                name=name,
                num_tokens=sum(prod(shapes[array][:-1]) for array in arrays),
                width=max(shapes[array][-1] for array in arrays),
            )
            for name, arrays in read.items()
        )
        borders = list(accumulate((prod(shapes[array]) for array in self.arrays), initial=0))
        self.columns = [slice(*pair) for pair in pairwise(borders)]
        self.size = borders[-1]
        self._joint = {name for name, arrays in read.items() if len(arrays) > 1}

    def fill(self, rows: torch.Tensor, parts: Iterable[torch.Tensor]) -> None:
        """Fill rows with the tokens of their arrays, widened and normalised.

        Args:
            rows: [b, F] float32, filled.
            parts: values of each array, [b, D] or [b, t, D], in the storage dtype or wider.
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

        def alike(item: tuple[int, ColumnBlock]) -> tuple[int, int]:
            number, block = item
            return block.width, number if block.name in self._joint else -1

        for (width, number), run in groupby(numbered, alike):
            num_tokens = sum(block.num_tokens for _, block in run)
            start, stop = stop, stop + num_tokens * width
            yield slice(start, stop), num_tokens, width, number >= 0


def block_names(probe: ProbeSpec) -> tuple[str, ...]:
    """The blocks that a probe reads of a row of several probes, in its order.

    >>> from ..probe_spec import parse_probe
    >>> block_names(parse_probe("attn-mid", 12))
    ('block.6/cls', 'block.6/ap', 'final/cls', 'final/ap')
    """
    return tuple(_arrays_of_blocks(probe))


def _arrays_of_blocks(probe: ProbeSpec) -> dict[str, list[tuple[str, str]]]:
    """Name of a block -> its arrays."""
    if _is_joint(probe):
        return {
            f"{level}/{'+'.join(probe.kinds)} over tokens": [(level, kind) for kind in probe.kinds]
            for level in probe.levels
        }
    return {f"{level}/{kind}": [(level, kind)] for level in probe.levels for kind in probe.kinds}


def _is_joint(probe: ProbeSpec) -> bool:
    """Whether a probe normalises over all tokens of a level."""
    return probe.normalize == TOKEN_AXIS and len(probe.kinds) > 1


class CachedTokens:
    """Tokens of one split: what one probe reads, joined as its head wants them, or what several read, side by side.

    Args:
        cache: the tokens of the split.
        probes: one, whose tokens are concatenated (linear and solved heads) or stacked; or some, whose blocks make up a row, each
            block once.

    Attributes:
        rows: how a row is made of arrays.
        blocks: blocks of a row that several probes read: see `layerbank.probes.BlockSource`; None for one probe.
        images: [N] int64, ascending, the image that each row shows; the first row of an image is its centre view.
        groups: [N] int64, the same for images with the same bytes, which no split separates; None if there are none.
        is_validation: [N] bool, rows of images that settings are chosen by alone; None if a fraction of the images is held out.
        reading_order: [N] int64, the rows in the order in which they are best read.
        targets: [N] of the rows that could be read.
        task: with the classes of the data set, not those that happen to occur.
        token_shape: (T, D) stacked, (F,) concatenated or side by side.
        stored_rows: [N] int64, the position of each row in the store, in any order; equal images may share one.
        stored_row_bytes: bytes of one image on the disk.
    """

    def __init__(self, cache: SplitTokens, probes: ProbeSpec | Sequence[ProbeSpec]) -> None:
        self._split = cache
        several = [probes] if isinstance(probes, ProbeSpec) else probes
        self.rows = TokenRows(several, lambda level, kind: cache.arrays[level, kind].row_shape)
        self._arrays = [cache.tokens(*array) for array in self.rows.arrays]
        self.stored_rows = torch.from_numpy(cache.positions)
        self.reading_order = torch.from_numpy(cache.reading_order)
        self.images = torch.from_numpy(cache.images)
        self.stored_row_bytes = sum(array.dtype.itemsize * int(np.prod(array.shape[1:])) for array in self._arrays)
        self.groups = None if cache.groups is None else torch.from_numpy(cache.groups)
        self.is_validation = None if cache.is_validation is None else torch.from_numpy(cache.is_validation)
        self.targets = torch.from_numpy(cache.targets)
        self.task = cache.task
        self.blocks = None if isinstance(probes, ProbeSpec) else self.rows.blocks
        flat = HEADS[probes.head].flat if isinstance(probes, ProbeSpec) else True
        self._reading = Reading(self.rows.blocks, flat=flat)
        self.token_shape = self._reading.token_shape

    @property
    def stored_bytes(self) -> int:
        """Size of all rows that are read, as they are stored."""
        return len(self.targets) * self.stored_row_bytes

    @property
    def sample_ids(self) -> list[str]:
        """The ids of the rows, in the same order as the targets."""
        return self._split.sample_ids

    def take(self, rows: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Tokens of some rows.

        Args:
            rows: [B] int64, in any order.
            out: [B, *token_shape] float32 to fill; None makes it.

        Returns:
            [B, *token_shape] float32, normalised as the probes need them.
        """
        if out is None:
            out = torch.empty(len(rows), *self.token_shape)
        for start in range(0, len(rows), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            self.join(out[part], self.gather(rows[part]))
        return out

    def join(self, out: torch.Tensor, parts: Iterable[torch.Tensor]) -> None:
        """Fill [B, *token_shape] with the tokens of some rows, given [B, t D] of each array, as `gather` gives them."""
        _fill(out, self.rows, self._reading, parts)

    def gather(self, rows: torch.Tensor, *, once: bool = False) -> Iterator[torch.Tensor]:
        """The tokens [B, t D] of some rows, as they are stored, array by array; `once` gives the memory of each back."""
        stored = self.stored_rows[rows].numpy()
        for array in self._arrays:
            values = array.take(stored)
            if once:
                array.release(int(stored.min()), int(stored.max()) + 1)
            yield float_tokens(values, array.logical_dtype).flatten(1)

    def mean_run_bytes(self, stretch_rows: int) -> float:
        """Bytes of an array that lie together, if so many successive rows of the reading order are read."""
        steps = self.stored_rows[self.reading_order].diff()
        num_runs = int(((steps < 0) | (steps > GAP_ROWS + 1)).sum()) + len(self.targets) / stretch_rows
        return len(self.targets) / max(num_runs, 1) * self.stored_row_bytes / len(self._arrays)

    @property
    def storage_dtypes(self) -> list[torch.dtype]:
        """The storage dtype of each array."""
        return [STORAGE_DTYPES[array.logical_dtype] for array in self._arrays]

    def will_need(self, rows: torch.Tensor) -> None:
        """Ask the system to read some rows [B] int64 ahead."""
        self._advise(rows, TokenArray.will_need)

    def release(self, rows: torch.Tensor) -> None:
        """Give back the memory of some rows [B] int64."""
        self._advise(rows, TokenArray.release)

    def _advise(self, rows: torch.Tensor, advice: Callable[[TokenArray, int, int], None]) -> None:
        for start, stop in runs_of(self.stored_rows[rows].numpy()):
            for array in self._arrays:
                advice(array, start, stop)

    def in_memory(self) -> ArraySource:
        """Read everything once, in reading order, into one float32 array [N, *token_shape]."""
        tokens = torch.empty(len(self.targets), *self.token_shape)
        for rows in torch.split(self.reading_order, RELEASE_ROWS):
            put_rows(tokens, rows, self.take(rows))
            self.release(rows)
        return ArraySource(
            tokens,
            self.targets,
            self.task,
            images=self.images,
            blocks=self.blocks,
            groups=self.groups,
            is_validation=self.is_validation,
        )


def runs_of(positions: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Start and stop of the runs that positions make up, ascending; near runs are joined.

    >>> list(runs_of(np.array([3, 1, 2, 3, 70])))
    [(1, 4), (70, 71)]
    """
    positions = np.unique(positions)
    breaks = np.flatnonzero(np.diff(positions) > GAP_ROWS + 1)
    firsts = positions[np.concatenate(([0], breaks + 1))] if len(positions) else positions
    lasts = positions[np.concatenate((breaks, [len(positions) - 1]))] if len(positions) else positions
    return zip(firsts.tolist(), (lasts + 1).tolist(), strict=True)


def put_rows(into: torch.Tensor, rows: torch.Tensor, values: torch.Tensor) -> None:
    """Copy values [B, ...] to rows [B] int64 of a tensor; successive rows as one block, which waits for a GPU only once."""
    first, last = int(rows[0]), int(rows[-1])
    if last - first == len(rows) - 1 and bool((rows.diff() == 1).all()):
        into[first : last + 1].copy_(values)
    else:
        into.index_copy_(0, rows.to(into.device), values.to(into.device))


def join_tokens(probe: ProbeSpec, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Join tokens that come straight from a model, as `CachedTokens.take` joins those of a store.

    Args:
        probe: whose head is to read them.
        parts: one [B, D] or [B, t, D] a (level, kind), levels first, already rounded to the storage dtype.

    Returns:
        [B, T, D] or [B, F] float32; without a write in place, for `torch.export`.
    """
    parts = [part.unsqueeze(1) if part.dim() == 2 else part for part in parts]
    if HEADS[probe.head].flat:
        return concat_tokens(parts)
    if not _is_joint(probe):
        return stack_tokens(parts)
    num_kinds = len(probe.kinds)
    levels = [torch.cat(parts[start : start + num_kinds], 1) for start in range(0, len(parts), num_kinds)]
    return stack_tokens(levels, token_axis=True)


def _fill(out: torch.Tensor, rows: TokenRows, reading: Reading, parts: Iterable[torch.Tensor]) -> None:
    """Join the tokens of each array into [b, *token_shape], without a copy in between where a head reads rows as they lie."""
    if reading.whole:
        rows.fill(out.flatten(1), parts)
        return
    side_by_side = torch.empty(len(out), rows.size)
    rows.fill(side_by_side, parts)
    out.copy_(reading.read(side_by_side, Workspace(torch.float32, out.device)))
