"""What a trainer reads: rows of ready tokens, by number.

Tokens reach a probe L2-normalised over D, then stacked (attentive heads) or concatenated (linear heads).
Where they come from, memory, a map or a disk, is the source's own business.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ..errors import DataError
from ..losses import check_labels
from ..workspace import Workspace
from .blocks import Block, whole_row


@runtime_checkable
class TokenSource(Protocol):
    """N images as tokens and labels.

    Attributes:
        labels: [N] int64 on the CPU, from 0 to num_classes - 1.
        num_classes: C of the data set, whether or not each class occurs.
        token_shape: (T, D) for attentive heads, (F,) for linear ones.
    """

    @property
    def labels(self) -> Tensor: ...
    @property
    def num_classes(self) -> int: ...
    @property
    def token_shape(self) -> tuple[int, ...]: ...

    def take(self, rows: Tensor) -> Tensor:
        """[B] int64 -> float32 [B, *token_shape], normalised and padded, without jitter.

        The caller may write into the result; it need not outlive the next call.
        """
        ...


@runtime_checkable
class ViewedSource(TokenSource, Protocol):
    """A token source that holds several views of an image, each in a row of its own.

    Attributes:
        images: [N] int64, ascending: the image that each row shows. The first row of an image is its centre view, the one
            that is validated and tested; the others are trained on.
    """

    @property
    def images(self) -> Tensor: ...


@runtime_checkable
class BlockSource(TokenSource, Protocol):
    """A token source that may hold the tokens of several levels and kinds side by side.

    Attributes:
        blocks: of which a row (F,) is made, in order; None where a row is one thing, read whole.
    """

    @property
    def blocks(self) -> tuple[Block, ...] | None: ...


def has_blocks(source: TokenSource) -> bool:
    """Whether the rows of a source are made of blocks."""
    return isinstance(source, BlockSource) and source.blocks is not None


def blocks_of(source: TokenSource) -> tuple[Block, ...]:
    """The blocks of a source's rows: one without a name where it says nothing of blocks."""
    blocks = source.blocks if isinstance(source, BlockSource) else None
    return whole_row(source.token_shape) if blocks is None else blocks


@runtime_checkable
class OrderedSource(TokenSource, Protocol):
    """A token source that says in which order its rows are best read in an epoch."""

    def order(self, rows: Tensor, seed: int, epoch: int) -> Tensor:
        """[N] int64 -> [N] the same rows in an order that depends on the arguments alone."""
        ...


@runtime_checkable
class StreamedSource(OrderedSource, Protocol):
    """A token source that reads ahead."""

    def stream(self, batches: Iterable[Tensor]) -> Generator[tuple[Tensor, Tensor], None, None]:
        """For each batch of rows [B] its rows and what `take` gives for them.

        Tokens may be written into and do not outlive the next batch. Closing the generator ends the reading.
        """
        ...


def read_batches(source: TokenSource, batches: Iterable[Tensor]) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Rows [B] and tokens [B, *token_shape] of one batch after the other, read ahead where the source can.

    Whoever may stop before the end closes it: `with contextlib.closing(read_batches(...)) as stream`.
    """
    if isinstance(source, StreamedSource):
        yield from source.stream(batches)
    else:
        for rows in batches:
            yield rows, source.take(rows)


def upload(x: Tensor, device: torch.device) -> Tensor:
    """A small tensor of the host on the device, without waiting: the copy out of page-locked memory is queued like any kernel."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


class ArraySource:
    """A token source in memory, the host's or a GPU's: rows are gathered where the tokens lie.

    Args:
        tokens: [N, T, D] or [N, F] float, already normalised: see `stack_tokens` and `concat_tokens`.
        labels: [N] int64.
        num_classes: C.
        images: [N] int64, ascending, where rows are views of images: see `ViewedSource`. None: each row is an image.
        blocks: of which rows [F] are made: see `BlockSource`.

    Raises:
        DataError: tokens and labels differ in length, or a label is not a class.
    """

    def __init__(
        self,
        tokens: Tensor,
        labels: Tensor,
        num_classes: int,
        images: Tensor | None = None,
        blocks: tuple[Block, ...] | None = None,
    ) -> None:
        if tokens.dim() not in (2, 3) or labels.shape != tokens.shape[:1]:
            raise DataError(
                where="ArraySource",
                expected="tokens [N, T, D] or [N, F] and labels [N]",
                got=f"tokens {list(tokens.shape)} and labels {list(labels.shape)}",
                todo="Give every image one label.",
            )
        check_labels(labels, num_classes)
        self.tokens, self.labels, self.num_classes = tokens, labels, num_classes
        self.images = torch.arange(len(labels)) if images is None else images
        self.token_shape, self.blocks = tuple(tokens.shape[1:]), blocks
        self._workspace = Workspace(tokens.dtype, tokens.device)

    def take(self, rows: Tensor) -> Tensor:
        """[B] int64 -> float32 [B, *token_shape], in memory that the next call uses again."""
        out = self._workspace.empty("rows", len(rows), *self.token_shape)
        return torch.index_select(self.tokens, 0, upload(rows, self.tokens.device), out=out).float()


def l2_normalize(x: Tensor) -> Tensor:
    """Each token divided by its length over the last axis; a zero token stays zero.

    >>> l2_normalize(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    return torch.nn.functional.normalize(x, dim=-1)


def l2_normalize_(x: Tensor, dim: int = -1) -> Tensor:
    """The same bits in place, over any axis: no memory of the size of the tokens is taken.

    >>> l2_normalize_(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    return x.div_(torch.linalg.vector_norm(x, dim=dim, keepdim=True).clamp_min_(1e-12))


def stack_tokens(parts: Sequence[Tensor], out: Tensor | None = None, *, token_axis: bool = False) -> Tensor:
    """Tokens for an attentive head: normalised, then padded on the right to the widest.

    Args:
        parts: [B, t_i, D_i] each; the widths may differ (CLIP's final level is narrower than its blocks).
        out: float32 memory for the result; None makes it.
        token_axis: normalise each channel over the t_i tokens of a part in place of each token over its channels, as the authors'
            code does with all tokens of a level.

    Returns:
        [B, sum of t_i, max of D_i] float32.

    Raises:
        DataError: there is no part, or their batches differ.

    >>> stack_tokens([torch.tensor([[[2.0, 0.0]]]), torch.tensor([[[5.0], [0.0]]])]).tolist()
    [[[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]]
    """
    _check_parts(parts)
    num_tokens, embed_dim = sum(part.shape[1] for part in parts), max(part.shape[2] for part in parts)
    stacked = torch.empty(len(parts[0]), num_tokens, embed_dim, device=parts[0].device) if out is None else out
    if any(part.shape[2] < embed_dim for part in parts):
        stacked.zero_()
    start = 0
    for part in parts:
        normalized = torch.nn.functional.normalize(part.float(), dim=1) if token_axis else l2_normalize(part.float())
        stacked[:, start : start + part.shape[1], : part.shape[2]] = normalized
        start += part.shape[1]
    return stacked


def concat_tokens(parts: Sequence[Tensor], out: Tensor | None = None) -> Tensor:
    """Features for a linear head: each token normalised, then all of them side by side, without padding.

    Args:
        parts: [B, t_i, D_i] each.
        out: float32 memory for the result; None makes it.

    Returns:
        [B, sum of t_i D_i] float32.

    Raises:
        DataError: there is no part, or their batches differ.

    >>> concat_tokens([torch.tensor([[[2.0, 0.0]]]), torch.tensor([[[5.0], [0.0]]])]).tolist()
    [[1.0, 0.0, 1.0, 0.0]]
    """
    _check_parts(parts)
    return torch.cat([l2_normalize(part.float()).flatten(1) for part in parts], 1, out=out)


def _check_parts(parts: Sequence[Tensor]) -> None:
    shapes = [list(part.shape) for part in parts]
    if not parts or any(part.dim() != 3 for part in parts) or len({len(part) for part in parts}) > 1:
        raise DataError(
            where="token parts",
            expected="at least one [B, t, D], all of the same B",
            got=str(shapes),
            todo="Read the same rows of every level and kind.",
        )
