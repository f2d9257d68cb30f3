"""A bank of any head: P plain modules as one program by `torch.func`, gradients by autograd.

The attentive and the linear bank have hand-written gradients. Other heads are not trained by the hundred thousand, so here
the module itself is the program: its parameters are stacked, vmap runs all rows, grad differentiates. Gradients are written
into the `Stack` that the trainer uses.

BatchNorm writes its running statistics in place, which grad does not allow: in the bank a BatchNorm without writes replaces
it, and the statistics of the batch are returned beside the loss. Autograd also gives rounding noise for gradients that are
zero by algebra; AdamW would turn it into steps of size lr, so gradients of the parameters in `zero_gradient` are not written.

The loss is a sum over the samples, so a batch may be processed in chunks whose gradients are added. With a BatchNorm each
sample depends on all others, and the whole batch is processed at once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from ..errors import SettingError
from ..heads import HeadModule
from ..matmul import Matmul
from ..tasks.task import Task
from .bank import split_evenly
from .folded import chunks
from .stack import Stack, check_dropouts, extract_module

# Probes computed together. On a CPU one at a time is the fastest: vmap copies the tokens for every probe of a
# group (tests/benchmarks/heads.py); probes/README.md has the figures.
GROUP_SIZE = 1
_PRODUCT_SHARE = 8  # a product of a head has roughly 1/8 of the size of the tokens; decides whether oneDNN is used
_MOMENTUM = 0.1  # of torch's BatchNorm


class ModuleBank:
    """Probes of any head on the same tokens; weights and dropout may differ.

    Args:
        probes: P plain modules of one head and the same sizes; a module may occur several times.
        dropouts: [P] rates of the attention dropout in [0, 1); all 0 by default, and all 0 for a head without it.
        dtype: of the arithmetic.
        device: of the arithmetic.
        compute: matmul precision, see `matmul.py`. The products are torch's own: bfloat16 means tf32 on a GPU, float32 on a CPU.
        group_size: probes computed together.
        chunk_size: samples computed together, for heads without BatchNorm; None is the whole batch.

    Raises:
        SettingError: there are no probes, their heads or sizes differ, or the rates do not fit.
    """

    def __init__(
        self,
        probes: Sequence[HeadModule],
        dropouts: Sequence[float] | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        compute: str = "float32",
        group_size: int = GROUP_SIZE,
        chunk_size: int | None = None,
    ) -> None:
        rates = _check(probes, dropouts)
        self._head, self._rates = probes[0], tuple(rates)
        self._dtype, self._device = dtype, torch.device(device)
        self._matmul = Matmul(compute, dtype, self._device)
        self._rates_on_device = torch.tensor(rates, dtype=torch.float64, device=self._device)
        self._skeleton = _without_writes(probes[0])
        self._chunk_size = chunk_size if allows_chunks(probes[0]) else None
        self._stacks = [
            Stack([probes[index] for index in members], members, dtype, self._device)
            for members in split_evenly(range(len(probes)), group_size)
        ]

    @property
    def num_probes(self) -> int:
        return len(self._rates)

    @property
    def stacks(self) -> list[Stack]:
        return self._stacks

    @property
    def noise_heads(self) -> list[int]:
        return [self._head.sizes["num_heads"]] if any(self._rates) else []

    def compute_gradients(
        self, tokens: Tensor, targets: Tensor, weights: Tensor, noise: dict[int, Tensor], task: Task
    ) -> Tensor:
        tokens = tokens.to(self._dtype)
        of_heads = noise[self.noise_heads[0]] if any(self._rates) else None
        losses = tokens.new_empty(self.num_probes)
        self._skeleton.train()
        each = weights.dim() == 2
        with self._matmul.active(), self._matmul.library_for(tokens.nbytes // _PRODUCT_SHARE):
            for stack in self._stacks:
                rates, of_probes = self._rates_on_device[stack.index], weights[stack.index] if each else weights
                of_chunks = []
                for rows in chunks(len(tokens), self._chunk_size or len(tokens)):
                    keep = None if of_heads is None else of_heads[rows]
                    loss_of_one = self._loss_function(tokens[rows], targets[rows], keep, task)
                    of_all = vmap(grad_and_value(loss_of_one, has_aux=True), in_dims=(0, 0, 0, 0 if each else None))
                    gradients, (loss, seen) = of_all(stack.values, stack.statistics, rates, of_probes[..., rows])
                    self._write(stack, gradients, seen, rates, first=rows.start == 0)
                    of_chunks.append(loss)
                    del gradients, seen  # before those of the next chunk are made
                losses.index_copy_(0, stack.index, torch.stack(of_chunks).sum(0))
        return losses

    def logits(self, tokens: Tensor) -> Tensor:
        tokens = tokens.to(self._dtype)
        self._skeleton.eval()

        def of_one(values: dict[str, Tensor], statistics: dict[str, Tensor], part: Tensor) -> Tensor:
            logits: Tensor = functional_call(self._skeleton, (values, statistics), (part,))
            return logits

        of_all = vmap(of_one, in_dims=(0, 0, None))
        parts = [tokens[rows] for rows in chunks(len(tokens), self._chunk_size or len(tokens))]
        with self._matmul.active(training=False):
            of_parts = [
                torch.cat([of_all(stack.values, stack.statistics, part) for stack in self._stacks]) for part in parts
            ]
        return torch.cat(of_parts, 1)

    def probe(self, index: int) -> nn.Module:
        return extract_module(self._stacks, index)

    def _loss_function(self, tokens: Tensor, targets: Tensor, noise: Tensor | None, task: Task) -> Callable[..., Any]:
        """The loss of one probe on some samples as a function of its weights, and the statistics of these samples."""

        def loss_of_one(
            values: dict[str, Tensor], statistics: dict[str, Tensor], rate: Tensor, of_samples: Tensor
        ) -> tuple[Tensor, dict[str, Tensor]]:
            inputs = [tokens]
            if noise is not None:
                keep = (noise >= rate.to(noise.dtype)).to(tokens.dtype) / (1 - rate).to(tokens.dtype)
                inputs.append(keep.mT)  # [B, H, T]
            outputs = functional_call(self._skeleton, (values, statistics), tuple(inputs))
            loss = (task.loss_each(outputs, targets) * of_samples).sum()
            return loss, _take_statistics(self._skeleton)

        return loss_of_one

    def _write(
        self,
        stack: Stack,
        gradients: dict[str, Tensor],
        seen: dict[str, Tensor],
        rates: Tensor,
        *,
        first: bool,
    ) -> None:
        """Write the gradients of a chunk, or add them after the first one; update the running statistics."""
        for name, gradient in gradients.items():
            if name in self._head.zero_gradient:
                continue
            if first:
                stack.grads[name].copy_(gradient)
            else:
                stack.grads[name].add_(gradient)
            if name in self._head.zero_gradient_without_dropout:
                stack.grads[name].masked_fill_((rates == 0).view(-1, *(1,) * (gradient.dim() - 1)), 0)
        for name, statistic in seen.items():
            stack.statistics[name].lerp_(statistic, _MOMENTUM)


class _BatchNorm(nn.BatchNorm1d):
    """BatchNorm of [B, D] that writes no buffer: it keeps the statistics of the batch until `_take_statistics` returns them."""

    seen: dict[str, Tensor]

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        out, mean, rstd = torch.native_batch_norm(x, self.weight, self.bias, None, None, True, _MOMENTUM, self.eps)
        unbiased = (rstd.detach().square().reciprocal() - self.eps) * (len(x) / (len(x) - 1))
        self.seen = {"running_mean": mean.detach(), "running_var": unbiased}
        return out


def allows_chunks(probe: HeadModule) -> bool:
    """Whether the scores of a sample are independent of the other samples of the batch."""
    return not any(isinstance(module, nn.BatchNorm1d) for module in probe.modules())


def _without_writes(probe: HeadModule) -> HeadModule:
    """The module without weights, which come with each call, and with BatchNorms that write nothing."""
    skeleton = copy.deepcopy(probe).to("meta")
    for parent in list(skeleton.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm1d):
                assert child.momentum == _MOMENTUM
                norm = _BatchNorm(child.num_features, eps=child.eps, affine=child.affine, device="meta")
                setattr(parent, name, norm)
    return skeleton


def _take_statistics(skeleton: nn.Module) -> dict[str, Tensor]:
    """Statistics of each BatchNorm of the last call, by the name of the buffer."""
    taken: dict[str, Tensor] = {}
    for path, module in skeleton.named_modules():
        if isinstance(module, _BatchNorm):
            taken |= {f"{path}.{name}": statistic for name, statistic in module.seen.items()}
            del module.seen
    return taken


def _check(probes: Sequence[HeadModule], dropouts: Sequence[float] | None) -> list[float]:
    """The dropout rates [P]."""
    heads = {(probe.kind, *probe.sizes.items()) for probe in probes}
    if len(heads) != 1:
        kinds = sorted({(probe.kind, *probe.sizes.values()) for probe in probes}, key=str)
        raise SettingError("probes.mixed_heads", heads=kinds)
    rates = check_dropouts("ModuleBank", len(probes), dropouts)
    if any(rates) and not probes[0].has_dropout:
        raise SettingError("probes.no_dropout", kind=probes[0].kind, rates=rates)
    return rates
