"""P modules of one shape as one set of stacked tensors, each with its gradient.

`values["proj.weight"]` is [P, D, I] where the module's own is [D, I]. An optimiser sees one row a probe; the
arithmetic sees all rows at once. Nothing here calls autograd: whoever computes the gradients writes them into
`grads`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import SettingError


class Stack:
    """Stacked parameters, gradients and statistics of some probes of a bank.

    Args:
        modules: P probes with equal shapes; their weights are copied.
        members: [P] which probe of the bank each row is.
        dtype: of the arithmetic.
        device: of the arithmetic.

    Attributes:
        index: [P] int64, the members on the device.
        values: parameter name -> [P, *shape].
        grads: parameter name -> [P, *shape]; zero until written, so an entry nobody writes is an exact zero.
        statistics: buffer name -> [P, *shape], the floating-point buffers (BatchNorm's running ones).
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
        """Shorten each probe's whole gradient to at most max_norm, whatever its neighbours' are."""
        norms = [torch.linalg.vector_norm(grad.flatten(1), dim=1) for grad in self.grads.values()]
        factors = (max_norm / (torch.linalg.vector_norm(torch.stack(norms), dim=0) + 1e-6)).clamp(max=1)  # [P]
        if self.device.type == "cpu" and not bool((factors < 1).any()):
            return  # multiplying by 1 changes no bit but reads and writes every gradient
        for grad in self.grads.values():
            grad.mul_(factors.view(-1, *(1,) * (grad.dim() - 1)))

    def module(self, row: int) -> nn.Module:
        """One probe as a plain module of its own, on the CPU, in evaluation mode."""
        module = copy.deepcopy(self._modules[row]).eval().cpu()
        trained = {name: tensor[row].cpu() for name, tensor in (self.values | self.statistics).items()}
        dtype = next(iter(trained.values())).dtype
        module.to(dtype).load_state_dict(module.state_dict() | trained)
        return module


def extract_module(stacks: Sequence[Stack], index: int) -> nn.Module:
    """A copy of one probe of a bank as a plain module."""
    return next(stack.module(stack.members.index(index)) for stack in stacks if index in stack.members)


def check_one_shape(where: str, shapes: Sequence[tuple[int, int]]) -> None:
    """Raise SettingError unless there are probes and all have the same (width, number of classes)."""
    if len(set(shapes)) != 1:
        raise SettingError(
            where=where,
            expected="at least one probe, all of the same width and number of classes",
            got=f"(width, classes) {sorted(set(shapes))}",
            todo="Put probes of different shapes into banks of their own.",
        )
