"""To the device, through the model, back to the host: decoded images in, tokens in the storage dtype on their way out.

On a CPU the three are one call. Knows neither stores nor sources.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from cache import ArraySpec

from .backbones import Tokens
from .rounding import DeviceRounded, Rounded, as_rounded, round_on_device
from .write_behind import Arriving


class Transfer(Protocol):
    """One way through a device."""

    def __call__(self, images: Tensor, arrays: Sequence[ArraySpec], bad: Sequence[int]) -> Arriving:
        """Begin with a batch.

        Args:
            images: [n, 3, H, W] on the host, as the backbone's geometry makes them.
            arrays: the tokens to keep.
            bad: indices of images that could not be read: their tokens are zeros.
        """
        ...


def open_transfer(forward: Callable[[Tensor], Tokens], device: torch.device, storage_dtype: str) -> Transfer:
    """The way through a device."""
    return HostTransfer(forward, storage_dtype)


class HostTransfer:
    """A model on this machine's CPU."""

    def __init__(self, forward: Callable[[Tensor], Tokens], storage_dtype: str) -> None:
        self._forward, self._storage_dtype = forward, storage_dtype

    def __call__(self, images: Tensor, arrays: Sequence[ArraySpec], bad: Sequence[int]) -> Arriving:
        rounded = rounded_tokens(self._forward(images), arrays, bad, self._storage_dtype)
        return Arrived({name: as_rounded(r.values, r.counts) for name, r in rounded.items()})


class Arrived:
    """Tokens that are there."""

    def __init__(self, tokens: dict[str, Rounded]) -> None:
        self._tokens = tokens

    def wait(self) -> dict[str, Rounded]:
        return self._tokens

    def release(self) -> None:
        pass


def rounded_tokens(
    tokens: Tokens, arrays: Sequence[ArraySpec], bad: Sequence[int], storage_dtype: str
) -> dict[str, DeviceRounded]:
    """Array name -> what is stored of it, where the model runs."""
    rounded = {}
    for array in arrays:
        values = tokens[array.level][array.kind]
        if bad:
            values = values.clone()
            values[list(bad)] = 0
        rounded[array.name] = round_on_device(values, storage_dtype)
    return rounded
