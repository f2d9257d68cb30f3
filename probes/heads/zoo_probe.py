"""What `ModuleBank` and a checkpoint need of a head, and the checks that all heads share."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from ..errors import SettingError
from ..protocol import HEAD_KINDS


class ZooProbe(nn.Module):
    """A plain module from tokens [B, T, D] to logits [B, C]; heads with attention dropout also take `keep` [B, H, T].

    Abstract: a head sets `kind`, has a `classifier`, and computes without random numbers or in-place writes
    (BatchNorm excepted), so that `torch.func` can run it for many probes.

    Args:
        sizes: the constructor's arguments but the seed; a checkpoint keeps them.

    Attributes:
        kind: as in `Head`.
        still: parameters that cannot change the loss but whose gradient autograd computes as rounding noise.
        still_without_dropout: parameters of which that is true where nothing is dropped.
    """

    kind: ClassVar[str]
    still: ClassVar[tuple[str, ...]] = ()
    still_without_dropout: ClassVar[tuple[str, ...]] = ()
    classifier: nn.Linear

    def __init__(self, **sizes: int) -> None:
        super().__init__()
        if min(sizes.values()) < 1:
            raise SettingError(
                where=type(self).__name__,
                expected=", ".join(f"{name} >= 1" for name in sizes),
                got=", ".join(f"{name} {size}" for name, size in sizes.items()),
                todo="Correct the sizes.",
            )
        self.sizes = sizes

    @property
    def has_dropout(self) -> bool:
        """Whether the head has attention dropout."""
        return HEAD_KINDS[self.kind].dropout

    def check_divides(self, divisor: str, size: str) -> None:
        """Raise SettingError unless one size divides the other."""
        if self.sizes[size] % self.sizes[divisor]:
            raise SettingError(
                where=type(self).__name__,
                expected=f"{divisor} that divides {size}",
                got=f"{divisor} {self.sizes[divisor]}, {size} {self.sizes[size]}",
                todo=f"Choose another {divisor}.",
            )
