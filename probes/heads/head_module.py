"""The base class of all heads: a plain module with named sizes, which banks can stack and a checkpoint can restore."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from ..errors import SettingError


class HeadModule(nn.Module):
    """A plain module from tokens [B, T, D] or features [B, F] to logits [B, C]; abstract.

    A subclass sets `kind` and has a `classifier`. One that is trained computes without random numbers and in-place writes (except
    in BatchNorm), so that `torch.func` can run many probes at once. With attention dropout, `forward` also takes `keep` [B, H, T].

    Args:
        sizes: the arguments of the constructor except the seed; a saved probe keeps them.

    Attributes:
        kind: the name in the registry.
        has_dropout: the head has attention dropout.
        zero_gradient: parameters that cannot change the loss, whose gradient autograd computes as rounding noise.
        zero_gradient_without_dropout: parameters for which this is true at dropout rate 0.

    Raises:
        SettingError: a size is not positive.
    """

    kind: ClassVar[str]
    has_dropout: ClassVar[bool] = False
    zero_gradient: ClassVar[tuple[str, ...]] = ()
    zero_gradient_without_dropout: ClassVar[tuple[str, ...]] = ()
    classifier: nn.Linear

    def __init__(self, **sizes: int) -> None:
        super().__init__()
        self.sizes = sizes
        if min(sizes.values()) < 1:
            raise SettingError(
                "probes.sizes_not_positive",
                head=type(self).__name__,
                names=", ".join(sizes),
                sizes=", ".join(f"{name} {size}" for name, size in sizes.items()),
            )

    @classmethod
    def restore(cls, sizes: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Self:
        """A module of saved sizes that can load the saved weights."""
        return cls(**sizes)

    def describe(self) -> dict[str, Any]:
        """The kind, and the sizes for `restore`: JSON values."""
        return {"kind": self.kind, **self.sizes}

    def check_divides(self, divisor: str, size: str) -> None:
        """Raise SettingError unless the size `divisor` divides the size `size`."""
        if self.sizes[size] % self.sizes[divisor]:
            raise SettingError(
                "probes.size_not_divisible",
                head=type(self).__name__,
                divisor=divisor,
                divisor_value=self.sizes[divisor],
                size=size,
                size_value=self.sizes[size],
            )
