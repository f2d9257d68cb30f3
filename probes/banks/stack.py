"""P modules of one shape as one set of stacked tensors, each with its gradient, and AdamW for them.

`values["proj.weight"]` is [P, D, I] where the module's own is [D, I]. The optimiser sees one row for each probe, the
arithmetic all rows at once. Nothing here calls autograd: the bank writes gradients into `grads`.

torch's fused kernel makes one pass over weight, gradient and both moments instead of a dozen, but `torch.optim.AdamW` spends more
time in Python on a group of parameters than the kernel spends on a linear probe. So the kernel is called here directly, once for
all probes of equal learning rate and weight decay, with the same bits as the optimiser (tests/test_fit.py).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import SettingError
from ..protocol import Setting

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8

_Rate = tuple[float, float]  # peak learning rate, weight decay
_Lists = tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]  # weights, gradients, first and second moments


class Stack:
    """Stacked parameters, gradients and statistics of some probes of a bank.

    Args:
        modules: P probes with equal shapes; their weights are copied.
        members: [P] index of each row's probe in the bank.
        dtype: of the arithmetic.
        device: of the arithmetic.

    Attributes:
        index: [P] int64, the members on the device.
        values: parameter name -> [P, *shape].
        grads: parameter name -> [P, *shape]; zero until written, so a gradient that is never written is exactly zero.
        statistics: buffer name -> [P, *shape], the floating-point buffers (running statistics of BatchNorm).
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        members: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.members, self.dtype, self.device = tuple(members), dtype, device
        self.index = torch.tensor(self.members, device=device)
        self._modules = tuple(modules)

        def stacked(name: str) -> Tensor:
            rows = [module.state_dict()[name] for module in modules]
            return torch.stack(rows).to(device, dtype)

        first = modules[0]
        self.values = {name: stacked(name) for name, _ in first.named_parameters()}
        self.grads = {name: torch.zeros_like(value) for name, value in self.values.items()}
        self.statistics = {name: stacked(name) for name, buffer in first.named_buffers() if buffer.is_floating_point()}

    def clip_grads(self, max_norm: float) -> None:
        """Scale the whole gradient of each probe to a norm of at most max_norm, independently of other probes."""
        norms = [torch.linalg.vector_norm(grad.flatten(1), dim=1) for grad in self.grads.values()]
        factors = (max_norm / (torch.linalg.vector_norm(torch.stack(norms), dim=0) + 1e-6)).clamp(max=1)  # [P]
        if self.device.type == "cpu" and not bool((factors < 1).any()):
            return  # multiplying by 1 changes no bit but reads and writes every gradient
        for grad in self.grads.values():
            grad.mul_(factors.view(-1, *(1,) * (grad.dim() - 1)))

    def module(self, row: int) -> nn.Module:
        """A copy of one probe as a plain module, on the CPU, in evaluation mode."""
        module = copy.deepcopy(self._modules[row]).eval().cpu()
        trained = {name: tensor[row].cpu() for name, tensor in (self.values | self.statistics).items()}
        dtype = next(iter(trained.values())).dtype
        module.to(dtype).load_state_dict(module.state_dict() | trained)
        return module


class AdamW:
    """Optimiser of the stacks of a bank.

    Args:
        stacks: of one bank, on one device.
        settings: [P] of the bank's probes.
    """

    def __init__(self, stacks: Sequence[Stack], settings: Sequence[Setting]) -> None:
        self._step = torch.zeros((), device=stacks[0].device)  # float32, as the kernel requires
        self._lists: dict[_Rate, _Lists] = {}
        for stack in stacks:
            for row, member in enumerate(stack.members):
                rate = settings[member].lr, settings[member].weight_decay
                weights, grads, first, second = self._lists.setdefault(rate, ([], [], [], []))
                weights.extend(value[row] for value in stack.values.values())
                grads.extend(grad[row] for grad in stack.grads.values())
                for moments in (first, second):
                    moments.extend(torch.zeros_like(value[row]) for value in stack.values.values())

    def step(self, lrs: dict[float, float]) -> None:
        """Update the weights; `lrs` maps the peak learning rate of a setting to that of this step."""
        self._step += 1
        for (lr, weight_decay), (weights, grads, first, second) in self._lists.items():
            torch._fused_adamw_(
                weights,
                grads,
                first,
                second,
                [],
                [self._step] * len(weights),
                lr=lrs[lr],
                beta1=BETA1,
                beta2=BETA2,
                weight_decay=weight_decay,
                eps=EPS,
                amsgrad=False,
                maximize=False,
            )


def extract_module(stacks: Sequence[Stack], index: int) -> nn.Module:
    """A copy of one probe of a bank as a plain module."""
    return next(stack.module(stack.members.index(index)) for stack in stacks if index in stack.members)


def check_one_shape(bank: str, shapes: Sequence[tuple[int, int]]) -> None:
    """Raise SettingError unless there are probes and all have the same (width, number of classes)."""
    if len(set(shapes)) != 1:
        raise SettingError("probes.mixed_shapes", bank=bank, shapes=sorted(set(shapes)))
