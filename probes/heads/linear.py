"""The linear probe: for reading, for export, and as the oracle of `LinearBank`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..seeds import make_generator
from .head_module import HeadModule
from .head_type import HeadType


class LinearProbe(HeadModule):
    """logits = X W + b on the concatenated tokens of an image.

    Args:
        num_features: F, the width of the concatenation.
        num_classes: C.
        seed: for the initial weights, PyTorch's default for Linear.

    Raises:
        SettingError: a size is not positive.
    """

    kind = "linear"

    def __init__(self, num_features: int, num_classes: int, *, seed: int = 0) -> None:
        super().__init__(num_features=num_features, num_classes=num_classes)
        self.num_features, self.num_classes = num_features, num_classes
        self.classifier = make_linear(num_features, num_classes, make_generator(seed, "initial weights"))

    def forward(self, features: Tensor) -> Tensor:
        """[B, F] L2-normalised and concatenated -> logits [B, C]."""
        logits: Tensor = self.classifier(features)
        return logits

    @classmethod
    @torch.no_grad()
    def of_weights(cls, weight: Tensor, bias: Tensor) -> LinearProbe:
        """A probe in float32 from weight [C, F] and bias [C] of any dtype."""
        probe = cls(weight.shape[1], weight.shape[0])
        probe.classifier.weight.copy_(weight)
        probe.classifier.bias.copy_(bias)
        return probe


def make_linear(in_features: int, out_features: int, generator: torch.Generator, *, bias: bool = True) -> nn.Linear:
    """PyTorch's default for Linear, U(-1/sqrt(in), 1/sqrt(in)), from an explicit generator."""
    linear = nn.Linear(in_features, out_features, bias=bias, device="meta").to_empty(device="cpu")
    for parameter in linear.parameters():
        nn.init.uniform_(parameter, -(in_features**-0.5), in_features**-0.5, generator=generator)
    return linear


HEAD = HeadType(name="linear", module=LinearProbe, flat=True, removable_levels=True, bank="linear")
