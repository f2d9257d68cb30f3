"""Token sources: rows of normalised tokens by number, from memory or from elsewhere.

Tokens reach a probe L2-normalised over D, then stacked (attentive heads) or concatenated (linear heads).
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from math import prod
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ..errors import DataError
from ..tasks import Task, as_task
from ..workspace import Workspace
from .rows import ColumnBlock, Reading, upload, whole_row


@runtime_checkable
class TokenSource(Protocol):
    """Tokens and targets of N images.

    Attributes:
        targets: [N] or [N, K] on the CPU, what the task predicts: class numbers, or what else it asks for.
        task: the task of the data set.
        token_shape: (T, D) for attentive heads, (F,) for linear ones.
    """

    @property
    def targets(self) -> Tensor: ...
    @property
    def task(self) -> Task: ...
    @property
    def token_shape(self) -> tuple[int, ...]: ...

    def take(self, rows: Tensor) -> Tensor:
        """Tokens float32 [B, *token_shape] of rows [B] int64, normalised and padded, without jitter.

        The caller may write into the result; it is valid until the next call.
        """
        ...


@runtime_checkable
class ViewedSource(TokenSource, Protocol):
    """A token source with several views of an image, each in its own row.

    Attributes:
        images: [N] int64, ascending, the image of each row. The first row of an image is its centre view: validation and test
            use it alone, training uses all.
    """

    @property
    def images(self) -> Tensor: ...


@runtime_checkable
class GroupedSource(TokenSource, Protocol):
    """A token source some rows of which belong together: no group lies on both sides of a split.

    Attributes:
        groups: [N] int64, the group of each row, the same for all rows of an image; None if each image is a group.
    """

    @property
    def groups(self) -> Tensor | None: ...


@runtime_checkable
class WeightedSource(TokenSource, Protocol):
    """A token source whose rows have weights of their own in the loss.

    Attributes:
        weights: [N] float64 > 0, factors of the task's weights; None if each is 1.
    """

    @property
    def weights(self) -> Tensor | None: ...


def row_weights(source: TokenSource) -> Tensor | None:
    """The weights [N] of a source's rows; None if each is 1."""
    return source.weights if isinstance(source, WeightedSource) else None


@runtime_checkable
class ValidatedSource(TokenSource, Protocol):
    """A token source some images of which are there to choose settings by, and are never trained on.

    Attributes:
        is_validation: [N] bool, the same for all rows of an image; None if a fraction of the images is held out instead.
    """

    @property
    def is_validation(self) -> Tensor | None: ...


def training_rows(source: TokenSource) -> Tensor:
    """The rows [n] int64 that the chosen setting is trained on: all but those of images that are there to choose by."""
    if isinstance(source, ValidatedSource) and source.is_validation is not None:
        return (~source.is_validation).nonzero().squeeze(1)
    return torch.arange(len(source.targets))


@runtime_checkable
class BlockSource(TokenSource, Protocol):
    """A token source whose rows may have the tokens of several levels and kinds side by side.

    Attributes:
        blocks: of a row (F,), in order; None if a row is always read whole.
    """

    @property
    def blocks(self) -> tuple[ColumnBlock, ...] | None: ...


def has_blocks(source: TokenSource) -> bool:
    """Whether the rows of a source have blocks."""
    return isinstance(source, BlockSource) and source.blocks is not None


def blocks_of(source: TokenSource) -> tuple[ColumnBlock, ...]:
    """The blocks of a source's rows; a single block without a name if the source declares none."""
    blocks = source.blocks if isinstance(source, BlockSource) else None
    return whole_row(source.token_shape) if blocks is None else blocks


def read_whole(source: TokenSource) -> Reading:
    """The reading of all blocks of a source."""
    return Reading(blocks_of(source), flat=len(source.token_shape) == 1)


@runtime_checkable
class OrderedSource(TokenSource, Protocol):
    """A token source that decides in which order its rows are read in an epoch."""

    def order(self, rows: Tensor, seed: int, epoch: int) -> Tensor:
        """The rows [N] int64 in an order that depends on the arguments alone."""
        ...


@runtime_checkable
class StoredSource(TokenSource, Protocol):
    """A token source some orders of whose rows are read faster than others.

    Attributes:
        reading_order: [N] int64, the rows in the order in which they are best read.
    """

    @property
    def reading_order(self) -> Tensor: ...


def reading_places(source: TokenSource, rows: Tensor) -> Tensor:
    """The order in which to read some rows: the places [B] int64 of `rows` [B], first to last."""
    if not isinstance(source, StoredSource):
        return torch.arange(len(rows))
    rank = torch.empty_like(source.reading_order)
    rank[source.reading_order] = torch.arange(len(rank))
    return rank[rows].argsort(stable=True)


@runtime_checkable
class StreamedSource(OrderedSource, Protocol):
    """A token source that reads ahead."""

    def stream(self, batches: Iterable[Tensor]) -> Generator[tuple[Tensor, Tensor], None, None]:
        """For each batch, its rows [B] and the tokens that `take` returns for them.

        The caller may write into the tokens, which are valid until the next batch. Closing the generator ends the reading.
        """
        ...


def read_batches(source: TokenSource, batches: Iterable[Tensor]) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Rows [B] and tokens [B, *token_shape] of one batch after the other, read ahead if the source can.

    A caller that may stop before the end closes it: `with contextlib.closing(read_batches(...)) as stream`.
    """
    if isinstance(source, StreamedSource):
        yield from source.stream(batches)
    else:
        for rows in batches:
            yield rows, source.take(rows)


ROWS_AT_ONCE = 4096  # that are searched for values that are not finite


class ArraySource:
    """A token source in memory, of the host or of a GPU; rows are gathered on that device.

    Args:
        tokens: [N, T, D] or [N, F] float, finite, already normalised: see `stack_tokens` and `concat_tokens`.
        targets: [N] or [N, K], what the task predicts, such as class numbers.
        task: the task of the data set; a number C stands for classification into C classes, with int64 targets.
        images: [N] int64, ascending, the image of each row, see `ViewedSource`; None if each row is an image.
        blocks: blocks of rows [F], see `BlockSource`.
        groups: [N] int64, see `GroupedSource`; None if each image is a group.
        weights: [N] float64 > 0, see `WeightedSource`; None if each is 1.
        is_validation: [N] bool, see `ValidatedSource`; None if a fraction of the images is held out.

    Raises:
        DataError: tokens, targets, images, groups, blocks, weights and is_validation differ in length or have another dtype, the
            task cannot use the targets, tokens (of the host) are not finite, images are not ascending, or weights are not positive.

    >>> source = ArraySource(l2_normalize(torch.ones(4, 8)), torch.tensor([0, 1, 0, 1]), 2)
    >>> source.token_shape, source.take(torch.tensor([3])).shape
    ((8,), torch.Size([1, 8]))
    """

    def __init__(
        self,
        tokens: Tensor,
        targets: Tensor,
        task: Task | int,
        images: Tensor | None = None,
        blocks: tuple[ColumnBlock, ...] | None = None,
        groups: Tensor | None = None,
        weights: Tensor | None = None,
        is_validation: Tensor | None = None,
    ) -> None:
        tokens, targets = torch.as_tensor(tokens), torch.as_tensor(targets)
        if tokens.dim() not in (2, 3) or not tokens.is_floating_point() or targets.shape[:1] != tokens.shape[:1]:
            shown = f"{tokens.dtype} {list(tokens.shape)}"
            raise DataError("probes.targets_do_not_match", tokens=shown, targets=list(targets.shape))
        self.task = as_task(task)
        self.task.check(targets)
        images = torch.arange(len(targets)) if images is None else torch.as_tensor(images)
        _check_images(images, len(targets))
        groups = None if groups is None else torch.as_tensor(groups)
        if groups is not None:
            _check_groups(groups, images)
        weights = None if weights is None else torch.as_tensor(weights)
        if weights is not None:
            _check_weights(weights, len(targets))
        is_validation = None if is_validation is None else torch.as_tensor(is_validation)
        if is_validation is not None:
            _check_validation(is_validation, images)
        if blocks is not None and (size := sum(block.size for block in blocks)) != prod(tokens.shape[1:]):
            raise DataError("probes.blocks_do_not_match", size=prod(tokens.shape[1:]), blocks=size)
        # A float32 sum can overflow: look again before raising. Tokens on a GPU are not checked, which would wait for it.
        if tokens.device.type == "cpu" and not tokens.sum(dtype=torch.float32).isfinite():
            num_broken = sum(
                int((~part.isfinite()).flatten(1).any(1).sum()) for part in torch.split(tokens, ROWS_AT_ONCE)
            )
            if num_broken:
                raise DataError("probes.tokens_not_finite", num_broken=num_broken, num_samples=len(tokens))
        self.tokens, self.targets, self.images, self.groups = tokens, targets, images, groups
        self.weights, self.is_validation = weights, is_validation
        self.token_shape, self.blocks = tuple(tokens.shape[1:]), blocks
        self._workspace = Workspace(tokens.dtype, tokens.device)

    def take(self, rows: Tensor) -> Tensor:
        """Tokens float32 [B, *token_shape] of rows [B] int64, in memory that the next call uses again."""
        out = self._workspace.empty("rows", len(rows), *self.token_shape)
        return torch.index_select(self.tokens, 0, upload(rows, self.tokens.device), out=out).float()


def _check_groups(groups: Tensor, images: Tensor) -> None:
    got = f"{groups.dtype} {list(groups.shape)}"
    if groups.shape == images.shape and groups.dtype == torch.int64:
        if not ((images[1:] == images[:-1]) & (groups[1:] != groups[:-1])).any():
            return
        got = "an image in several groups"
    raise DataError("probes.groups_do_not_match", num_rows=len(images), got=got)


def _check_weights(weights: Tensor, num_rows: int) -> None:
    got = f"{weights.dtype} {list(weights.shape)}"
    if weights.shape == (num_rows,) and weights.dtype == torch.float64:
        is_wrong = ~(weights.isfinite() & (weights > 0))
        if not is_wrong.any():
            return
        got = f"{int(is_wrong.sum())} others, such as {weights[is_wrong][0]}"
    raise DataError("probes.weights_do_not_match", num_rows=num_rows, got=got)


def _check_validation(is_validation: Tensor, images: Tensor) -> None:
    got = f"{is_validation.dtype} {list(is_validation.shape)}"
    if is_validation.shape == images.shape and is_validation.dtype == torch.bool:
        if not ((images[1:] == images[:-1]) & (is_validation[1:] != is_validation[:-1])).any():
            return
        got = "an image that is trained on and chosen by"
    raise DataError("probes.validation_does_not_match", num_rows=len(images), got=got)


def _check_images(images: Tensor, num_rows: int) -> None:
    """Refuse images of rows that are not ascending: views of one image would count as several."""
    if images.shape == (num_rows,) and images.dtype == torch.int64:
        if bool((images[1:] >= images[:-1]).all()):
            return
        got = "numbers that descend"
    else:
        got = f"{images.dtype} {list(images.shape)}"
    raise DataError("probes.images_not_ascending", num_rows=num_rows, got=got)


def l2_normalize(x: Tensor) -> Tensor:
    """Divide each token by its L2 norm over the last axis; a zero token stays zero.

    >>> l2_normalize(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    return torch.nn.functional.normalize(x, dim=-1)


def l2_normalize_(x: Tensor, dim: int = -1) -> Tensor:
    """`l2_normalize` in place, over any axis, with the same bits and without further memory of the size of the tokens.

    >>> l2_normalize_(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    return x.div_(torch.linalg.vector_norm(x, dim=dim, keepdim=True).clamp_min_(1e-12))


def stack_tokens(parts: Sequence[Tensor], *, token_axis: bool = False) -> Tensor:
    """Stack tokens for an attentive head: normalised, then padded on the right to the widest.

    Args:
        parts: [B, t_i, D_i] each; widths may differ (CLIP's final level is narrower than its blocks).
        token_axis: normalise each channel over the t_i tokens of a part, as the authors' code does with all tokens of a level,
            instead of each token over its channels.

    Returns:
        [B, sum of t_i, max of D_i] float32.

    Raises:
        DataError: there is no part, or batch sizes differ.

    >>> stack_tokens([torch.tensor([[[2.0, 0.0]]]), torch.tensor([[[5.0], [0.0]]])]).tolist()
    [[[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]]
    """
    _check_parts(parts)
    embed_dim = max(part.shape[2] for part in parts)
    normalized = [torch.nn.functional.normalize(part.float(), dim=1 if token_axis else 2) for part in parts]
    return torch.cat([torch.nn.functional.pad(part, (0, embed_dim - part.shape[2])) for part in normalized], 1)


def concat_tokens(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate tokens for a linear head: each normalised, then all side by side, without padding.

    Args:
        parts: [B, t_i, D_i] each.

    Returns:
        [B, sum of t_i D_i] float32.

    Raises:
        DataError: there is no part, or batch sizes differ.

    >>> concat_tokens([torch.tensor([[[2.0, 0.0]]]), torch.tensor([[[5.0], [0.0]]])]).tolist()
    [[1.0, 0.0, 1.0, 0.0]]
    """
    _check_parts(parts)
    return torch.cat([l2_normalize(part.float()).flatten(1) for part in parts], 1)


def _check_parts(parts: Sequence[Tensor]) -> None:
    shapes = [list(part.shape) for part in parts]
    if not parts or any(part.dim() != 3 or part.shape[0] != parts[0].shape[0] for part in parts):
        raise DataError("probes.mixed_token_parts", shapes=shapes)
