"""Linear probes that train as one program: the classes of all of them are columns of one matrix product."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .classifier import cross_entropy
from .linear import LinearProbe
from .products import Products
from .stack import Stack, check_one_shape, extract_module
from .workspace import Workspace


class LinearBank:
    """Linear probes on the same features.

    Args:
        probes: P plain modules of one shape; the same one may come many times.
        dtype: of the arithmetic.
        device: of the arithmetic.
        compute: numbers of the matrix products: see `products.py`.

    Raises:
        SettingError: no probes, or probes of different shapes.
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
        self._products = Products(compute, dtype, torch.device(device))

    @property
    def num_probes(self) -> int:
        return len(self._stack.members)

    @property
    def stacks(self) -> list[Stack]:
        return [self._stack]

    def compute_gradients(self, tokens: Tensor, labels: Tensor, weights: Tensor, noise: dict[int, Tensor]) -> Tensor:
        tokens = self._products.factor(tokens.to(self._stack.dtype))
        loss, dlogits = cross_entropy(self.logits(tokens), labels, weights)
        grads = self._stack.grads
        torch.sum(dlogits, 1, out=grads["classifier.bias"])
        dcolumns = self._workspace.empty("dlogits", len(tokens), self.num_probes, dlogits.shape[2])
        dcolumns.copy_(dlogits.transpose(0, 1))
        with self._products.chosen():
            self._products.mm(dcolumns.flatten(1).t(), tokens, out=grads["classifier.weight"].flatten(0, 1))
        return loss

    def logits(self, tokens: Tensor) -> Tensor:
        """One GEMM: the classes of all probes are its columns."""
        weight, bias = self._stack.values["classifier.weight"], self._stack.values["classifier.bias"]
        tokens = self._products.factor(tokens.to(weight.dtype))
        logits = weight.new_empty(len(tokens), weight.shape[0] * weight.shape[1])
        with self._products.chosen():
            self._products.mm(tokens, weight.flatten(0, 1).t(), out=logits).add_(bias.flatten())
        return logits.view(len(tokens), *weight.shape[:2]).transpose(0, 1).contiguous()

    def probe(self, index: int) -> nn.Module:
        return extract_module(self.stacks, index)
