"""Which bank trains a probe: by hand where the algebra is written out, by `torch.func` where it is not."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..heads import HEADS, HeadModule
from ..heads.attention import FusionHead
from ..heads.linear import LinearProbe
from ..protocol import Setting
from .bank import AttentiveBank, Bank
from .budget import MemoryPlan
from .linear_bank import LinearBank
from .module_bank import ModuleBank


def make_bank(
    probe: HeadModule,
    settings: Sequence[Setting],
    memory: MemoryPlan,
    *,
    device: torch.device | str = "cpu",
    compute: str = "auto",
) -> Bank:
    """A bank of one probe for each setting, all of which start from the same weights.

    Args:
        probe: what `make_probe` made.
        settings: [P]; the bank needs their dropout rates.
        memory: how many probes and samples go through together.
        device: of the arithmetic.
        compute: numbers of the matrix products: see `matmul.py`.

    Raises:
        SettingError: the device cannot compute so.
    """
    dropouts = [setting.dropout for setting in settings]
    kind = HEADS[probe.kind].bank
    if kind == "linear":
        assert isinstance(probe, LinearProbe)
        return LinearBank([probe] * len(settings), device=device, compute=compute)
    if kind == "folded":
        assert isinstance(probe, FusionHead)
        return AttentiveBank(
            [probe] * len(settings),
            dropouts,
            device=device,
            compute=compute,
            group_size=memory.group_size,
            chunk_size=memory.chunk_size,
        )
    return ModuleBank(
        [probe] * len(settings), dropouts, device=device, compute=compute, chunk_size=memory.chunk_size or None
    )
