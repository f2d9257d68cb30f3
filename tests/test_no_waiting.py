"""On a GPU a training step only queues work: the host waits for no value and for no copy.

Tested for the banks with hand-written gradients; autograd, which `ModuleBank` uses, needs a driver.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from absent_gpu import absent_gpu

from layerbank.probes import (
    ArraySource,
    AttentiveBank,
    AttentiveProbe,
    Bank,
    LinearBank,
    LinearProbe,
    Setting,
    TrainingProtocol,
    fit_bank,
)

SETTINGS = [Setting(lr=lr, weight_decay=0.1, dropout=rate) for lr, rate in ((0.1, 0.0), (0.01, 0.3), (0.1, 0.1))]
RATES = [setting.dropout for setting in SETTINGS]
MASK = torch.arange(5) < 3
BANKS: dict[str, Callable[..., Any]] = {
    "attentive": lambda **how: AttentiveBank([AttentiveProbe(24, 4, 3)] * 3, RATES, group_size=2, chunk_size=16, **how),
    "masked": lambda **how: AttentiveBank([AttentiveProbe(24, 4, 3, token_mask=MASK)] * 3, RATES, **how),
    "linear": lambda **how: LinearBank([LinearProbe(24, 3)] * 3, **how),
}


def train(bank: Bank, source: ArraySource, num_steps: int) -> None:
    protocol = TrainingProtocol(epochs=4, min_steps=0, batch_size=20)
    fit_bank(bank, source, torch.arange(len(source.targets)), SETTINGS, protocol, max_steps=num_steps)


@pytest.mark.parametrize("name", BANKS)
def test_a_step_on_a_gpu_waits_for_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of waits, for weights at the start and results at the end, does not depend on the number of steps."""
    tokens = torch.randn(100, 24) if name == "linear" else torch.randn(100, 5, 24)
    waits, calls = [], []
    for num_steps in (1, 4):
        with absent_gpu(monkeypatch) as gpu:
            source = ArraySource(tokens.to("cuda"), torch.arange(100) % 3, 3)
            bank = BANKS[name](device="cuda")
            gpu.waits.clear()
            train(bank, source, num_steps)
            waits.append(gpu.waits)
            calls.append(gpu.num_calls)
    assert waits[1] == waits[0] == ["aten._to_copy.default from the GPU"] * 3  # which diverged, the losses, the curves
    assert calls[1] > 2 * calls[0]  # it has looked at the steps


@pytest.mark.parametrize("read", ["item", "bool", "nonzero", "mask", "list", "copy", "number"])
def test_the_absent_gpu_notices_what_would_wait(read: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ways: dict[str, Callable[[torch.Tensor], object]] = {
        "item": lambda x: x.sum().item(),
        "bool": lambda x: bool((x > 0).any()),
        "nonzero": lambda x: (x > 0).nonzero(),
        "mask": lambda x: x[x > 0],
        "list": lambda x: x[[0, 2]],
        "copy": lambda x: x.copy_(torch.ones(4)),
        "number": lambda x: x.add_(torch.tensor([1.0], device="cuda")),
    }
    with absent_gpu(monkeypatch) as gpu:
        x = torch.randn(4, device="cuda")
        assert not gpu.waits
        try:
            ways[read](x)
        except RuntimeError as error:
            gpu.waits.append(type(error).__name__)
        assert gpu.waits
