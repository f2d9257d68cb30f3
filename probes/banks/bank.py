"""Banks: many probes that train as one program on the same batches.

A bank takes plain modules, stacks their weights, computes gradients, and returns plain modules. The optimiser, the schedule
and every random number belong to `fit.py`. Law: a bank of P probes equals P probes trained alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from ..errors import SettingError
from ..heads.attention import FusionHead
from ..matmul import Matmul
from ..tasks.task import Task
from ..workspace import Workspace
from .classifier import train_classifier
from .folded import LAYER_NORM_EPS, FoldedGroup, chunks
from .stack import Stack, check_dropouts, check_one_shape, extract_module

# Tuned with tests/benchmarks/bank.py; probes/README.md has the figures.
GROUP_SIZE = 7  # probes computed together
CHUNK_SIZE = 256  # samples of a full group computed together


class Bank(Protocol):
    """P probes, as the trainer uses them."""

    @property
    def num_probes(self) -> int: ...
    @property
    def stacks(self) -> Sequence[Stack]:
        """Weights and gradients; each probe is a row of one stack."""
        ...

    @property
    def noise_heads(self) -> Sequence[int]:
        """The numbers of attention heads for which a step needs dropout noise."""
        ...

    def compute_gradients(
        self, tokens: Tensor, targets: Tensor, weights: Tensor, noise: dict[int, Tensor], task: Task
    ) -> Tensor:
        """Compute loss and gradients; the gradients are written into the stacks.

        Args:
            tokens: [B, *token_shape], B >= 2.
            targets: [B], encoded by the task.
            weights: [B], or [P, B], of the samples in the loss, summing to 1.
            noise: num_heads -> uniform [B, T, H] in [0, 1), for each of noise_heads. A probe with dropout rate p drops
                values below p, so all rates share one draw.
            task: its loss is what the gradients are of.

        Returns:
            loss [P].
        """
        ...

    def logits(self, tokens: Tensor) -> Tensor:
        """Outputs in evaluation mode: [B, *token_shape] -> [P, B, C]."""
        ...

    def probe(self, index: int) -> nn.Module:
        """A copy of one probe as a plain module."""
        ...


class AttentiveBank:
    """Attentive probes and related heads on the same tokens; heads, dropout, token mask and weights may differ.

    Args:
        probes: P plain modules of one embed_dim and num_classes; a module may occur several times.
        dropouts: [P] rates of the attention dropout in [0, 1); all 0 by default.
        dtype: of the arithmetic.
        device: of the arithmetic.
        compute: matmul precision, see `matmul.py`.
        group_size: probes computed together.
        chunk_size: samples of a full group computed together, more of a smaller group. Scratch memory grows with
            group_size * chunk_size.
        mixed_dropout: whether probes of different rates are computed together. By default on a GPU, where the number of kernels
            counts; on a CPU probes without dropout are cheaper by themselves.

    Raises:
        SettingError: there are no probes, their shapes or mask lengths differ, or the rates do not fit.
    """

    def __init__(
        self,
        probes: Sequence[FusionHead],
        dropouts: Sequence[float] | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        compute: str = "float32",
        group_size: int = GROUP_SIZE,
        chunk_size: int = CHUNK_SIZE,
        mixed_dropout: bool | None = None,
    ) -> None:
        check_one_shape("AttentiveBank", [(probe.embed_dim, probe.num_classes) for probe in probes])
        rates = check_dropouts("AttentiveBank", len(probes), dropouts)
        self._probes = tuple(probes)
        self._workspace = Workspace(dtype, torch.device(device))
        self._matmul = Matmul(compute, dtype, torch.device(device))
        self._groups: list[FoldedGroup] = []
        mixed = self._workspace.device.type == "cuda" if mixed_dropout is None else mixed_dropout
        kinds = [
            (probe.num_heads, 0.0 if mixed else rate, _shapes(probe)) for probe, rate in zip(probes, rates, strict=True)
        ]
        for kind in sorted(set(kinds)):
            alike = [index for index, other in enumerate(kinds) if other == kind]
            for members in split_evenly(alike, group_size):
                modules = [probes[index] for index in members]
                self._groups.append(
                    FoldedGroup(
                        Stack(modules, members, dtype, torch.device(device)),
                        num_heads=kind[0],
                        dropouts=[rates[index] for index in members],
                        token_mask=_stack_masks(modules),
                        chunk_size=chunk_size * group_size // len(members),  # the same scratch memory
                        matmul=self._matmul,
                        workspace=self._workspace,
                    )
                )

    @property
    def num_probes(self) -> int:
        return len(self._probes)

    @property
    def stacks(self) -> list[Stack]:
        return [group.stack for group in self._groups]

    @property
    def noise_heads(self) -> list[int]:
        return sorted({group.num_heads for group in self._groups if group.has_dropout})

    @property
    def scratch_bytes(self) -> int:
        """Scratch memory so far, beside weights, gradients, optimiser and the batch itself."""
        return self._workspace.size_bytes + self._matmul.factors.size_bytes

    def compute_gradients(
        self, tokens: Tensor, targets: Tensor, weights: Tensor, noise: dict[int, Tensor], task: Task
    ) -> Tensor:
        xhat = self._normalize(tokens)
        losses = xhat.new_empty(self.num_probes, dtype=weights.dtype)
        with self._matmul.active():
            for group in self._groups:
                stack, values, grads = group.stack, group.stack.values, group.stack.grads
                of_group = weights if weights.dim() == 1 else weights[stack.index]
                folded, keep = group.fold(), group.keep(noise, xhat.dtype)
                pooled, z = group.forward_pooling(xhat, folded, keep)  # [P, B, I]
                y = self._workspace.empty("y", group.num_probes, len(xhat), group.embed_dim)
                self._matmul.multiply(pooled, values["proj.weight"].mT, out=y)
                dy = self._workspace.empty("dy", *y.shape)
                with self._matmul.library_for(y.nbytes):
                    loss = train_classifier(stack, y, values["proj.bias"], targets, of_group, task, out=dy)
                losses.index_copy_(0, stack.index, loss)
                self._matmul.multiply(dy.mT, pooled, out=grads["proj.weight"])
                dpooled = self._matmul.multiply(dy, values["proj.weight"], out=pooled)
                group.backward_query(folded, *group.backward_pooling(xhat, folded, dpooled, z, keep))
                del folded, keep  # before those of the next group are made
        return losses

    def logits(self, tokens: Tensor) -> Tensor:
        xhat = self._normalize(tokens)
        dtype, num_classes = self._groups[0].stack.dtype, self._probes[0].num_classes
        logits = xhat.new_empty(self.num_probes, len(tokens), num_classes, dtype=dtype)
        with self._matmul.active(training=False):
            for group in self._groups:
                logits.index_copy_(0, group.stack.index, group.logits(xhat))
        return logits

    def probe(self, index: int) -> nn.Module:
        return extract_module(self.stacks, index)

    def _normalize(self, tokens: Tensor) -> Tensor:
        """LayerNorm without its affine part, which keys and values of all probes share."""
        tokens = tokens.to(self._groups[0].stack.dtype)
        return self._matmul.factor(torch.nn.functional.layer_norm(tokens, tokens.shape[-1:], eps=LAYER_NORM_EPS))


def split_evenly(items: Sequence[int], largest: int) -> list[list[int]]:
    """Cut a list into the fewest parts of at most `largest` items, as evenly as possible.

    >>> split_evenly(range(8), 7)
    [[0, 1, 2, 3], [4, 5, 6, 7]]
    """
    return [list(items[part]) for part in chunks(len(items), largest)]


def _shapes(probe: FusionHead) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Names and shapes of the parameters: equal ones can be stacked."""
    return tuple((name, tuple(parameter.shape)) for name, parameter in probe.named_parameters())


def _stack_masks(probes: Sequence[FusionHead]) -> Tensor | None:
    masks = [probe.token_mask for probe in probes]
    given = [mask for mask in masks if mask is not None]
    if not given:
        return None
    if len({len(mask) for mask in given}) > 1:
        raise SettingError("probes.mixed_mask_lengths", lengths=sorted({len(mask) for mask in given}))
    return torch.stack([torch.ones_like(given[0]) if mask is None else mask for mask in masks])
