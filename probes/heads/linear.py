"""The linear probe: the reading copy, the export format, and what the tests compare `LinearBank` with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import SettingError
from ..seeds import make_generator


class LinearProbe(nn.Module):
    """logits = X W + b on the concatenated tokens of an image.

    Args:
        num_features: F, the width of the concatenation.
        num_classes: C.
        seed: of the initial weights, PyTorch's default for Linear.

    Raises:
        SettingError: a size is not positive.
    """

    def __init__(self, num_features: int, num_classes: int, *, seed: int = 0) -> None:
        super().__init__()
        if num_features < 1 or num_classes < 1:
            raise SettingError(
                where="LinearProbe",
                expected="num_features >= 1 and num_classes >= 1",
                got=f"num_features {num_features}, num_classes {num_classes}",
                todo="Check that the tokens are not empty.",
            )
        self.num_features, self.num_classes = num_features, num_classes
        self.classifier = make_linear(num_features, num_classes, make_generator(seed, "initial weights"))

    def forward(self, features: Tensor) -> Tensor:
        """[B, F] L2-normalised and concatenated -> logits [B, C]."""
        logits: Tensor = self.classifier(features)
        return logits


def make_linear(in_features: int, out_features: int, generator: torch.Generator, *, bias: bool = True) -> nn.Linear:
    """PyTorch's default for Linear, U(-1/sqrt(in), 1/sqrt(in)), from an explicit generator."""
    linear = nn.Linear(in_features, out_features, bias=bias, device="meta").to_empty(device="cpu")
    for parameter in linear.parameters():
        nn.init.uniform_(parameter, -(in_features**-0.5), in_features**-0.5, generator=generator)
    return linear
