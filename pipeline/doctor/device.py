"""Accelerators: whether torch can compute on them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..errors import first_line
from ..quantities import size
from .finding import OK, PROBLEM, WARNING, Finding


def check_gpu(torch: Any = None, dev: Path = Path("/dev")) -> list[Finding]:
    """Check that torch can compute on every GPU; if there is one that it cannot use, say why.

    Args:
        torch: the module; None imports it.
        dev: folder of the system's devices.
    """
    if torch is None:
        import torch
    if torch.cuda.is_available():
        return [_try_gpu(torch, number) for number in range(torch.cuda.device_count())]
    if hasattr(torch.backends, "mps") and torch.backends.mps.is_available():
        todo = "Nothing was measured there; without --device mps layerbank computes on the CPU."
        return [Finding("GPU", OK, "Apple's (mps)", todo)]
    if not any((dev / name).exists() for name in ("nvidiactl", "nvidia0", "dxg", "kfd")):
        return [Finding("GPU", OK, "none seen, computing on the CPU")]
    if torch.version.cuda is None and getattr(torch.version, "hip", None) is None:
        found = f"there is one, but torch {torch.__version__} is a build without CUDA"
        return [Finding("GPU", WARNING, found, "Install a torch built for it.")]
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and hidden.strip() in ("", "-1"):
        return [Finding("GPU", WARNING, f"hidden by CUDA_VISIBLE_DEVICES={hidden!r}", "Unset it to use the GPU.")]
    try:
        torch.cuda.init()
        why = "torch does not say why"
    except (RuntimeError, AssertionError) as error:
        why = first_line(error)
    todo = f"The driver has to be new enough for CUDA {torch.version.cuda}: update it, or install a torch for an older CUDA."
    return [Finding("GPU", PROBLEM, f"there is one that torch cannot use: {why}", todo)]


def _try_gpu(torch: Any, number: int) -> Finding:
    """Multiply on the GPU: only this finds a build without code for it."""
    properties = torch.cuda.get_device_properties(number)
    found = f"{properties.name}, {size(properties.total_memory)}, CUDA {torch.version.cuda}"
    name = f"GPU cuda:{number}"
    try:
        ones = torch.ones(8, 8, device=f"cuda:{number}")
        right = float((ones @ ones).sum()) == 512
    except RuntimeError as error:
        todo = "This torch has no code for this GPU, or another program has taken it: install a torch built for it."
        return Finding(name, PROBLEM, f"{found}: {first_line(error)}", todo)
    if not right:
        return Finding(name, PROBLEM, f"{found}: a product came out wrong", "Do not trust this GPU.")
    return Finding(name, OK, found)
