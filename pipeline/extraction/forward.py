"""A forward pass that survives a compiler that fails and memory that runs out: compiled if possible, batches of one shape.

No row is lost and none changes its place. If the compiler fails, the plain pass runs; a batch that does not fit into the memory is
run in halves; both are reported as events. Rows may then differ in their last bits from those of other runs, as they do between
devices: matrix products of another shape are summed in another order.

Knows tensors only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import WorkError
from ..events import BatchHalved, CompileFailed, OnEvent
from ..memory import shortage_of
from ..models.backbone import TokenFunction, Tokens

MOST_PADDING = 1 / 16  # of a batch; a shorter one takes the plain pass
MOST_SHAPES = 1024  # graphs of a model: each size of batch has one, and torch gives up after eight


class SteadyForward:
    """`images [n, 3, H, W] -> tokens`, for n up to the batch size.

    Args:
        function: the forward pass.
        batch_size: the largest n.
        model_id: the model's name in events and errors.
        backend: backend of `torch.compile`; None runs the plain pass.
        on_event: callback for a failed compiler and for batches that were halved.
    """

    def __init__(
        self,
        function: TokenFunction,
        *,
        batch_size: int,
        model_id: str,
        backend: str | Callable[..., Any] | None,
        on_event: OnEvent,
    ) -> None:
        self._function, self._model_id, self._on_event = function, model_id, on_event
        self._part_size = batch_size
        self._compiled: Callable[[Tensor], Tokens] | None = None
        self._known: set[int] = set()  # batch sizes that the compiler has managed
        if backend is not None:
            # one shape at a time: a batch that is nearly full is padded to it, so a graph is made once a size
            self._compiled = torch.compile(function.forward, backend=backend, fullgraph=True, dynamic=False)

    def __call__(self, images: Tensor) -> Tokens:
        """Return the tokens of a batch.

        Raises:
            WorkError: one image alone does not fit into the memory.
        """
        while True:
            try:
                with self._function.inference():
                    return _joined([self._part(part) for part in torch.split(images, self._part_size)])
            except RuntimeError as error:
                reason = shortage_of(error)
                if reason is None:
                    raise
            self._halve(images, reason)  # outside of the handler, whose traceback holds what the pass had allocated

    def _part(self, images: Tensor) -> Tokens:
        ready = self._function.normalise(images)
        if self._compiled is None or padded_size(len(ready), self._part_size) < self._part_size:
            return self._function.forward(ready)
        try:
            with torch._dynamo.config.patch(cache_size_limit=MOST_SHAPES):
                tokens = self._compiled(_padded(ready, self._part_size))
        except Exception as error:  # compilers raise anything; if it is the model's own, the plain pass raises it again
            if self._part_size in self._known or shortage_of(error):
                raise
            self._compiled = None
            self._on_event(CompileFailed(backbone=self._model_id, reason=_what_failed(error)))
            with self._function.inference():  # again: torch 2.6's compiler leaves another precision behind
                return self._function.forward(ready)
        self._known.add(self._part_size)
        return {
            level: {kind: values[: len(ready)] for kind, values in kinds.items()} for level, kinds in tokens.items()
        }

    def _halve(self, images: Tensor, reason: str) -> None:
        tried = min(self._part_size, len(images))
        if tried == 1:
            raise WorkError("extraction.image_too_large_for_memory", model=self._model_id, reason=reason)
        self._part_size = -(-tried // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # pieces of the size that did not fit
        self._on_event(BatchHalved(backbone=self._model_id, num_images=self._part_size, reason=reason))


def padded_size(num_images: int, batch_size: int) -> int:
    """Return how many images go through the model for a batch: those of a full one if few are missing, else its own.

    >>> padded_size(60, 64), padded_size(59, 64)
    (64, 59)
    """
    return batch_size if batch_size - num_images <= MOST_PADDING * batch_size else num_images


def _joined(parts: list[Tokens]) -> Tokens:
    if len(parts) == 1:
        return parts[0]
    return {
        level: {kind: torch.cat([part[level][kind] for part in parts]) for kind in kinds}
        for level, kinds in parts[0].items()
    }


def _padded(images: Tensor, batch_size: int) -> Tensor:
    """Append black images up to the batch size that the graph was made for."""
    if len(images) == batch_size:
        return images
    return torch.cat([images, images.new_zeros(batch_size - len(images), *images.shape[1:])])


def _what_failed(error: Exception) -> str:
    """Join the first two lines of an error: a compiler names the part that failed in the first, and why in the second."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join([f"{type(error).__name__}:", *lines[:2]])
