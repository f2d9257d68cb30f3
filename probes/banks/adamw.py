"""AdamW of all probes of a bank, each with a learning rate and weight decay of its own.

torch's fused kernel makes one pass over weight, gradient and both moments instead of a dozen, but `torch.optim.AdamW` takes more
time in Python for a group of parameters than the kernel takes for a linear probe. So the kernel is called here, once for all probes
of equal learning rate and weight decay. It is the same kernel: the same bits as the optimiser's (tests/test_fit.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..protocol import Setting
from .stack import Stack

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8

_Rate = tuple[float, float]  # peak learning rate, weight decay
_Lists = tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]  # weights, gradients, first and second moments


class AdamW:
    """Moments of some stacks, beside their weights and gradients.

    Args:
        stacks: of one bank, on one device.
        settings: [P] of the bank's probes.
    """

    def __init__(self, stacks: Sequence[Stack], settings: Sequence[Setting]) -> None:
        self._step = torch.zeros((), device=stacks[0].device)  # float32, as the kernel wants it
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
        """Move the weights along the gradients.

        Args:
            lrs: learning rate of this step, by that of the setting.
        """
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
