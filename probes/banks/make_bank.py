"""Choose the bank for a head: with hand-written gradients where there are some, else by `torch.func`."""

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
        probe: the initial or trained weights.
        settings: [P]; the bank needs their dropout rates.
        memory: number of probes and samples computed together.
        device: of the arithmetic.
        compute: matmul precision, see `matmul.py`.

    Raises:
        SettingError: the device does not support the precision.
    """
    dropouts = [setting.dropout for setting in settings]
    bank = HEADS[probe.kind].bank
    if bank == "linear":
        assert isinstance(probe, LinearProbe)
        return LinearBank([probe] * len(settings), device=device, compute=compute)
    if bank == "folded":
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
