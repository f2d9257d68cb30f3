"""Linear probes that train as one program: the outputs of all probes are columns of one matrix product."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..heads.linear import LinearProbe
from ..matmul import Matmul
from ..tasks.task import Task
from ..workspace import Workspace
from .stack import Stack, check_one_shape, extract_module


class LinearBank:
    """Linear probes on the same features.

    Args:
        probes: P plain modules of one shape; a module may occur several times.
        dtype: of the arithmetic.
        device: of the arithmetic.
        compute: matmul precision, see `matmul.py`.

    Raises:
        SettingError: there are no probes, or their shapes differ.
    """

    noise_heads: Sequence[int] = ()

    def __init__(
        self,
        probes: Sequence[LinearProbe],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        compute: str = "float32",
    ) -> None:
        check_one_shape("LinearBank", [(probe.num_features, probe.num_classes) for probe in probes])
        self._stack = Stack(probes, range(len(probes)), dtype, torch.device(device))
        self._workspace = Workspace(dtype, torch.device(device))
        self._matmul = Matmul(compute, dtype, torch.device(device))

    @property
    def num_probes(self) -> int:
        return len(self._stack.members)

    @property
    def stacks(self) -> list[Stack]:
        return [self._stack]

    def compute_gradients(
        self, tokens: Tensor, targets: Tensor, weights: Tensor, noise: dict[int, Tensor], task: Task
    ) -> Tensor:
        tokens = self._matmul.factor(tokens.to(self._stack.dtype))
        grads = self._stack.grads
        with self._matmul.active():
            loss, dlogits = task.loss_and_grad(self._logits(tokens), targets, weights, batch_first=True)
            torch.sum(dlogits, 0, out=grads["classifier.bias"])
            self._matmul.multiply(dlogits.flatten(1).t(), tokens, out=grads["classifier.weight"].flatten(0, 1))
        return loss

    def logits(self, tokens: Tensor) -> Tensor:
        with self._matmul.active(training=False):
            of_samples = self._logits(self._matmul.factor(tokens.to(self._stack.dtype)))
        return of_samples.transpose(0, 1).clone(memory_format=torch.contiguous_format)

    def _logits(self, tokens: Tensor) -> Tensor:
        """Logits [B, P, C], valid until the next call."""
        weight, bias = self._stack.values["classifier.weight"], self._stack.values["classifier.bias"]
        logits = self._workspace.empty("logits", len(tokens), *bias.shape)
        self._matmul.multiply(tokens, weight.flatten(0, 1).t(), out=logits.flatten(1))
        return logits.add_(bias)

    def probe(self, index: int) -> nn.Module:
        return extract_module(self.stacks, index)
