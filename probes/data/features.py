"""The features of some rows of a token source, as solvers read them: a part at a time, from memory if they fit into it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import torch
from torch import Tensor

from ..errors import DataError
from ..heads.features import PART_ROWS, features_bytes
from .token_source import TokenSource, read_batches


class SourceFeatures:
    """The `Features` of some rows of a source. Parts depend on the rows alone: the same bits however much memory there is.

    Args:
        source: tokens (F,) of each row.
        rows: [N] int64.
        held_bytes: memory for all of them; if they do not fit, they are read again each time. None is no limit.

    Attributes:
        rows: [N] int64 in the order in which the source is best read; every result is in this order.
        shape: (N, F).
        is_held: whether they are kept in memory.
    """

    def __init__(self, source: TokenSource, rows: Tensor, held_bytes: int | None = None) -> None:
        self.rows = _in_reading_order(source, rows)
        self.shape = (len(rows), source.token_shape[0])
        self.is_held = held_bytes is None or held_bytes >= features_bytes(*self.shape)
        self._source, self._held, self._is_checked = source, list[Tensor](), False

    def parts(self, stop: int | None = None) -> Iterator[tuple[slice, Tensor]]:
        """As `Features.parts`; the places are those in `rows`."""
        starts = range(0, len(self.rows), PART_ROWS)[:stop]
        places = [slice(start, min(start + PART_ROWS, len(self.rows))) for start in starts]
        if self._held:
            yield from zip(places, self._held, strict=False)
            return
        held, num_broken = list[Tensor](), 0
        with closing(read_batches(self._source, (self.rows[place] for place in places))) as stream:
            for place, (_, tokens) in zip(places, stream, strict=True):
                part = tokens.cpu()
                if not self._is_checked:
                    num_broken += int((~part.isfinite()).any(1).sum())
                if self.is_held:
                    held.append(part.clone())
                yield place, part
        if stop is None:
            if num_broken:
                raise DataError("probes.tokens_not_finite", num_broken=num_broken, num_samples=len(self.rows))
            self._is_checked, self._held = True, held

    def whole(self) -> Tensor:
        """[N, F] float32."""
        features = torch.empty(self.shape)
        for place, part in self.parts():
            features[place] = part
        return features


def _in_reading_order(source: TokenSource, rows: Tensor) -> Tensor:
    order: Tensor | None = getattr(source, "reading_order", None)
    if order is None:
        return rows
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    return rows[rank[rows].argsort()]
