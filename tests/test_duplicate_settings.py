"""Settings whose weight decay vanishes in float32 train to the same bits, so they are trained once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sweeps import ATTENTIVE, LINEAR, SMALL, make_source

from layerbank.probes import (
    PAPER,
    AttentiveBank,
    AttentiveProbe,
    Head,
    LinearBank,
    LinearProbe,
    Setting,
    fit_bank,
    run_sweep,
)
from layerbank.probes.protocol import NO_DECAY, first_duplicates


@settings(deadline=None)  # the first call loads the optimiser
@given(
    st.lists(st.floats(2.0**-40, 2.0**40, width=32) | st.floats(-(2.0**40), -(2.0**-40), width=32), min_size=1),
    st.floats(1e-7, 1.0),
    st.floats(0.0, 1.0, exclude_max=True),
)
def test_a_decay_below_the_limit_changes_no_bit_of_any_weight(weights: list[float], lr: float, share: float) -> None:
    decay = share * NO_DECAY / lr
    parameter = torch.tensor(weights)
    parameter.grad = torch.zeros_like(parameter)
    before = parameter.clone()
    torch.optim.AdamW([parameter], lr=lr, weight_decay=decay, fused=True).step()
    assert torch.equal(parameter, before)


def test_a_decay_above_the_limit_changes_weights() -> None:
    parameter = torch.rand(1000) + 0.5
    parameter.grad = torch.zeros_like(parameter)
    before = parameter.clone()
    torch.optim.AdamW([parameter], lr=0.1, weight_decay=1e-6, fused=True).step()
    assert not torch.equal(parameter, before)


@pytest.mark.parametrize("kind", ["attentive", "linear"])
def test_duplicate_settings_train_to_the_same_bits(kind: str) -> None:
    grid = [Setting(lr=1e-3, weight_decay=decay) for decay in (1e-6, 1e-5, 1e-4)]
    source = make_source(ATTENTIVE if kind == "attentive" else LINEAR, 150, 0)
    for setting in grid:
        bank = AttentiveBank([AttentiveProbe(16, 4, 3)]) if kind == "attentive" else LinearBank([LinearProbe(64, 3)])
        fit_bank(bank, source, torch.arange(150), [setting], SMALL)
        if setting is grid[0]:
            first = bank.probe(0).state_dict()
        same = all(torch.equal(value, first[name]) for name, value in bank.probe(0).state_dict().items())
        assert same == (setting is not grid[2])


def test_the_grid_of_the_paper_has_one_duplicate_for_each_dropout_rate() -> None:
    for head, num_duplicates in ((ATTENTIVE, 3), (LINEAR, 1)):
        settings = PAPER.settings(head)
        duplicates = [
            (settings[first], settings[index])
            for index, first in enumerate(first_duplicates(settings))
            if first != index
        ]
        assert len(duplicates) == num_duplicates
        for first, other in duplicates:
            assert (first.lr, first.weight_decay) == (1e-3, 1e-6)
            assert other == replace(first, weight_decay=1e-5)


@pytest.mark.parametrize("sweep", ["full", "halving"])
def test_duplicate_settings_are_trained_once_and_have_equal_scores(sweep: str) -> None:
    protocol = replace(SMALL, lrs=(1e-3,), weight_decays=(1e-6, 1e-5, 1e-2), dropouts=(0.0,), sweep=sweep)
    test = make_source(LINEAR, 60, 1)
    result = run_sweep(Head(kind="linear"), make_source(LINEAR, 150, 0), lambda: test, protocol)
    assert result.rungs[0].num_settings == 2
    one, duplicate, other = result.scores
    assert (one.validation, one.num_steps) == (duplicate.validation, duplicate.num_steps)
    assert [score.setting for score in result.scores] == list(protocol.settings(LINEAR))
    assert result.chosen is not None
    assert result.chosen.weight_decay != 1e-5  # the first of equals wins
    assert result.curves is not None
    assert torch.equal(result.curves.losses[0], result.curves.losses[1])
    assert not torch.equal(result.curves.losses[0], result.curves.losses[2])
    assert other.validation is not None
