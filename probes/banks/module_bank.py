"""A bank of any head: P plain modules as one program by `torch.func`, gradients by autograd.

The attentive and the linear bank have their algebra written out; each head of the zoo has an algebra of its own, and
none is trained by the hundred thousand, so here the module itself is the program: its parameters are stacked, vmap
runs all rows, grad differentiates. Gradients land in the `Stack` that the trainer already knows.

BatchNorm writes its running statistics in place, which grad does not allow: inside the bank a BatchNorm without
writes takes its place, and the batch's statistics come out beside the loss. Autograd also gives rounding noise where
a gradient is zero by algebra; AdamW would make steps of size lr of it, so what a head declares `zero_gradient` is not written.

The loss is a sum over the samples, so a batch may go through in chunks whose gradients are added; where a head has a
BatchNorm each sample depends on all others, and the whole batch goes through at once.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.functional import cross_entropy

from ..errors import SettingError
from ..heads import HeadModule
from ..matmul import Products
from .bank import split_evenly
from .folded import chunks
from .stack import Stack, extract_module

# Probes that go through together. On a CPU one at a time is the fastest: vmap copies the tokens for every probe of a
# group (tests/benchmarks/zoo.py); probes/README.md has the figures.
GROUP_SIZE = 1
_SHARE = (
    8  # of the tokens is what a product of a head takes, roughly, when it is asked whether oneDNN's code for it pays
)


class ModuleBank:
    """Heads of the zoo on the same tokens; weights and dropout are each probe's own.

    Args:
        probes: P plain modules of one head and the same sizes; the same one may come many times.
        dropouts: [P] rates of the attention dropout in [0, 1); all 0 by default, and all 0 for a head without it.
        dtype: of the arithmetic.
        device: of the arithmetic.
        compute: numbers of the matrix products, see `matmul.py`. They are torch's own: bfloat16 is tf32 on a GPU, float32
            elsewhere.
        group_size: how many probes go through together.
        chunk_size: how many samples do, for heads without BatchNorm; None is the whole batch.

    Raises:
        SettingError: no probes, probes of different heads or sizes, or rates that do not fit.
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
        rates = [0.0] * len(probes) if dropouts is None else list(dropouts)
        _check(probes, rates)
        self._head, self._rates = probes[0], tuple(rates)
        self._dtype, self._device = dtype, torch.device(device)
        self._products = Products(compute, dtype, self._device)
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

    def compute_gradients(self, tokens: Tensor, labels: Tensor, weights: Tensor, noise: dict[int, Tensor]) -> Tensor:
        tokens = tokens.to(self._dtype)
        of_heads = noise[self.noise_heads[0]] if any(self._rates) else None
        losses = tokens.new_empty(self.num_probes)
        with self._products.chosen(), self._products.of_size(tokens.nbytes // _SHARE):
            for stack in self._stacks:
                of_stack = [
                    self._compute_group(
                        stack,
                        tokens[rows],
                        labels[rows],
                        weights[rows],
                        None if of_heads is None else of_heads[rows],
                        first=rows.start == 0,
                    )
                    for rows in chunks(len(tokens), self._chunk_size or len(tokens))
                ]
                losses.index_copy_(0, stack.index, torch.stack(of_stack).sum(0))
        return losses

    def logits(self, tokens: Tensor) -> Tensor:
        tokens = tokens.to(self._dtype)
        self._skeleton.eval()

        def of_one(values: dict[str, Tensor], statistics: dict[str, Tensor], part: Tensor) -> Tensor:
            logits: Tensor = functional_call(self._skeleton, (values, statistics), (part,))
            return logits

        of_all = vmap(of_one, in_dims=(0, 0, None))
        parts = [tokens[rows] for rows in chunks(len(tokens), self._chunk_size or len(tokens))]
        with self._products.chosen(training=False):
            of_parts = [
                torch.cat([of_all(stack.values, stack.statistics, part) for stack in self._stacks]) for part in parts
            ]
        return torch.cat(of_parts, 1)

    def probe(self, index: int) -> nn.Module:
        return extract_module(self._stacks, index)

    def _compute_group(
        self, stack: Stack, tokens: Tensor, labels: Tensor, weights: Tensor, noise: Tensor | None, *, first: bool
    ) -> Tensor:
        """Loss [P] of one stack and chunk; gradients are in the stack, or added to what is; running statistics have moved."""
        self._skeleton.train()

        def loss_of_one(
            values: dict[str, Tensor], statistics: dict[str, Tensor], rate: Tensor
        ) -> tuple[Tensor, dict[str, Tensor]]:
            inputs = [tokens]
            if noise is not None:
                keep = (noise >= rate.to(noise.dtype)).to(tokens.dtype) / (1 - rate).to(tokens.dtype)
                inputs.append(keep.mT)  # [B, H, T]
            logits = functional_call(self._skeleton, (values, statistics), tuple(inputs))
            loss = (cross_entropy(logits, labels, reduction="none") * weights).sum()
            return loss, _take_statistics(self._skeleton)

        of_all = vmap(grad_and_value(loss_of_one, has_aux=True))
        rates = self._rates_on_device.index_select(0, stack.index)
        gradients, (losses, seen) = of_all(stack.values, stack.statistics, rates)
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
        of_probes: Tensor = losses
        return of_probes


_MOMENTUM = 0.1  # of torch's BatchNorm


class _BatchNorm(nn.BatchNorm1d):
    """BatchNorm of [B, D] that writes no buffer: it keeps what it saw until `_take_statistics` takes it."""

    seen: dict[str, Tensor]

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        out, mean, rstd = torch.native_batch_norm(x, self.weight, self.bias, None, None, True, _MOMENTUM, self.eps)
        unbiased = (rstd.detach().square().reciprocal() - self.eps) * (len(x) / (len(x) - 1))
        self.seen = {"running_mean": mean.detach(), "running_var": unbiased}
        return out


def allows_chunks(probe: HeadModule) -> bool:
    """Whether a sample's scores are the same whichever others are in its batch."""
    return not any(isinstance(module, nn.BatchNorm1d) for module in probe.modules())


def _without_writes(probe: HeadModule) -> HeadModule:
    """The module as a program: its weights come with each call, and BatchNorm writes nothing."""
    skeleton = copy.deepcopy(probe).to("meta")
    for parent in list(skeleton.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm1d):
                assert child.momentum == _MOMENTUM
                norm = _BatchNorm(child.num_features, eps=child.eps, affine=child.affine, device="meta")
                setattr(parent, name, norm)
    return skeleton


def _take_statistics(skeleton: nn.Module) -> dict[str, Tensor]:
    """What each BatchNorm of the last call saw, by the name of the buffer it belongs to."""
    taken: dict[str, Tensor] = {}
    for path, module in skeleton.named_modules():
        if isinstance(module, _BatchNorm):
            taken |= {f"{path}.{name}": statistic for name, statistic in module.seen.items()}
            del module.seen
    return taken


def _check(probes: Sequence[HeadModule], rates: Sequence[float]) -> None:
    heads = {(probe.kind, *probe.sizes.items()) for probe in probes}
    if len(heads) != 1:
        raise SettingError(
            where="ModuleBank",
            expected="at least one probe, all of one head and the same sizes",
            got=str(sorted({(probe.kind, *probe.sizes.values()) for probe in probes}, key=str)),
            todo="Put probes of different heads or sizes into banks of their own.",
        )
    has_dropout = probes[0].has_dropout
    if len(rates) != len(probes) or not all(0 <= rate < 1 and (has_dropout or rate == 0) for rate in rates):
        raise SettingError(
            where="ModuleBank dropouts",
            expected=f"{len(probes)} rates " + ("in [0, 1)" if has_dropout else f"of 0: {probes[0].kind} has none"),
            got=str(list(rates)),
            todo="Give every probe one rate.",
        )
