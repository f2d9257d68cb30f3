"""Tokens from the compute dtype to the storage dtype, with a count of what did not fit.

Finite values beyond the dtype's range are stored as its largest number of that sign; infinities and NaNs are stored as they are.
Both are counted, so that an overflow is never silent. bfloat16 travels as its bit pattern in uint16, because numpy has no bfloat16.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

STORAGE_DTYPES = {"float16": torch.float16, "float32": torch.float32, "bfloat16": torch.bfloat16}


class Rounded(NamedTuple):
    """Tokens ready to be written.

    Attributes:
        values: C-contiguous [n, *row_shape]; uint16 bit patterns when the storage dtype is bfloat16.
        num_saturated: finite values that were beyond the range of the storage dtype.
        num_nonfinite: infinities and NaNs that the model itself produced.
    """

    values: np.ndarray[Any, Any]
    num_saturated: int
    num_nonfinite: int


class DeviceRounded(NamedTuple):
    """Rounded tokens on the model's device.

    Attributes:
        values: [n, *row_shape] in the storage dtype.
        counts: int64 [2], num_saturated and num_nonfinite.
    """

    values: torch.Tensor
    counts: torch.Tensor


def round_tokens(tokens: torch.Tensor, storage_dtype: str) -> Rounded:
    """Round tokens [n, *row_shape] of any float dtype and device to the storage dtype.

    >>> values, num_saturated, num_nonfinite = round_tokens(torch.tensor([[1.0, 7e4, float("nan")]]), "float16")
    >>> values.tolist(), num_saturated, num_nonfinite
    ([[1.0, 65504.0, nan]], 1, 1)
    """
    rounded = round_on_device(tokens, storage_dtype)
    return as_rounded(rounded.values.cpu(), rounded.counts.cpu())


def round_on_device(tokens: torch.Tensor, storage_dtype: str, *, look_first: bool | None = None) -> DeviceRounded:
    """Round on the device of the tokens.

    Args:
        tokens: [n, *row_shape] of any float dtype.
        storage_dtype: one of STORAGE_DTYPES.
        look_first: count only if a first check finds a value that is not finite. On a CPU the check is cheaper than the count; on
            any other device it would wait for everything queued there. None decides by the device.
    """
    dtype = STORAGE_DTYPES[storage_dtype]
    rounded = tokens.to(dtype)
    if look_first is None:
        look_first = tokens.device.type == "cpu"
    if look_first and bool(torch.isfinite(rounded).all()):
        return DeviceRounded(rounded, torch.zeros(2, dtype=torch.int64, device=tokens.device))
    finite = torch.isfinite(tokens)
    beyond = finite & ~torch.isfinite(rounded)
    rounded = torch.where(beyond, tokens.sign().to(dtype) * torch.finfo(dtype).max, rounded)
    return DeviceRounded(rounded, torch.stack([beyond.sum(), (~finite).sum()]))


def as_rounded(values: torch.Tensor, counts: torch.Tensor) -> Rounded:
    """Tensors on the host as arrays to write; shares their memory."""
    values = values.contiguous()
    if values.dtype is torch.bfloat16:
        values = values.view(torch.uint16)
    return Rounded(values.numpy(), int(counts[0]), int(counts[1]))


def float_tokens(values: np.ndarray[Any, Any], logical_dtype: str) -> torch.Tensor:
    """Values of `round_tokens` as a tensor in the logical dtype; shares their memory.

    >>> float_tokens(round_tokens(torch.tensor([1.5]), "bfloat16").values, "bfloat16")
    tensor([1.5000], dtype=torch.bfloat16)
    """
    tensor = torch.from_numpy(values)
    return tensor.view(torch.bfloat16) if logical_dtype == "bfloat16" else tensor
