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


def round_tokens(tokens: torch.Tensor, storage_dtype: str) -> Rounded:
    """Round tokens [n, *row_shape] of any float dtype and device to the storage dtype.

    >>> values, num_saturated, num_nonfinite = round_tokens(torch.tensor([[1.0, 7e4, float("nan")]]), "float16")
    >>> values.tolist(), num_saturated, num_nonfinite
    ([[1.0, 65504.0, nan]], 1, 1)
    """
    dtype = STORAGE_DTYPES[storage_dtype]
    limit = torch.finfo(dtype).max
    num_saturated = num_nonfinite = 0
    rounded = tokens.to(dtype)
    if not bool(torch.isfinite(rounded).all()):
        finite = torch.isfinite(tokens)
        beyond = finite & ~torch.isfinite(rounded)
        num_nonfinite = int((~finite).sum())
        num_saturated = int(beyond.sum())
        rounded = torch.where(beyond, tokens.sign().to(dtype) * limit, rounded)
    rounded = rounded.cpu().contiguous()
    if dtype is torch.bfloat16:
        rounded = rounded.view(torch.uint16)
    return Rounded(rounded.numpy(), num_saturated, num_nonfinite)


def float_tokens(values: np.ndarray[Any, Any], logical_dtype: str) -> torch.Tensor:
    """What `round_tokens` wrote, as a tensor that shares the array's memory, in the logical dtype.

    >>> float_tokens(round_tokens(torch.tensor([1.5]), "bfloat16").values, "bfloat16")
    tensor([1.5000], dtype=torch.bfloat16)
    """
    tensor = torch.from_numpy(values)
    return tensor.view(torch.bfloat16) if logical_dtype == "bfloat16" else tensor
