"""Learning curves: losses and learning rates of a training at up to a hundred steps."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sweeps import ATTENTIVE, LINEAR, SMALL, make_source

from layerbank.probes import (
    AttentiveBank,
    AttentiveProbe,
    LearningCurves,
    LinearBank,
    LinearProbe,
    Progress,
    fit_bank,
    run_sweep,
)
from layerbank.probes.fit import cosine_lr
from layerbank.probes.outcome import NUM_POINTS, join_curves, sampled_steps

ROWS = torch.arange(150)


@given(st.integers(1, 100_000))
def test_the_first_and_last_step_and_at_most_a_hundred_evenly_between_are_kept(num_steps: int) -> None:
    steps = sampled_steps(num_steps)
    assert steps[0] == 0
    assert steps[-1] == num_steps - 1
    assert len(steps) == len(set(steps)) == min(num_steps, NUM_POINTS)
    gaps = [after - before for before, after in pairwise(steps)]
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_a_curve_holds_the_loss_of_the_batch_and_the_learning_rate_of_the_step() -> None:
    """Training stopped at a step has had that step's loss as its last."""
    source = make_source(ATTENTIVE, 150, 0)
    settings = list(SMALL.settings(ATTENTIVE))

    def fit(max_steps: int | None) -> tuple[LearningCurves, torch.Tensor]:
        bank = AttentiveBank([AttentiveProbe(16, 4, 3)] * len(settings), [one.dropout for one in settings])
        result = fit_bank(bank, source, ROWS, settings, SMALL, max_steps=max_steps)
        return result.curves, result.final_loss

    whole, final_loss = fit(None)
    num_steps = len(whole.steps)
    assert whole.steps.tolist() == list(range(num_steps))
    assert torch.equal(whole.losses[:, -1], final_loss)
    for number in (1, 5):
        part, last = fit(number)
        assert torch.equal(part.losses, whole.losses[:, :number])
        assert torch.equal(last, whole.losses[:, number - 1])
    for member, setting in enumerate(settings):
        wanted = [cosine_lr(step, num_steps, setting.lr, SMALL.min_lr) for step in range(num_steps)]
        assert whole.lrs[member].tolist() == pytest.approx(wanted)


def test_the_loss_falls() -> None:
    setting = SMALL.settings(LINEAR)[0]
    bank = LinearBank([LinearProbe(64, 3)])
    losses = fit_bank(bank, make_source(LINEAR, 150, 0), ROWS, [setting], SMALL).curves.losses[0]
    assert losses[-1] < losses[0] / 2


def test_a_probe_that_diverges_shows_where() -> None:
    protocol = replace(SMALL, lrs=(1e38, 1e-2), weight_decays=(1.0,), dropouts=(0.0,))
    source = make_source(LINEAR, 150, 0)
    result = run_sweep(LINEAR, source, lambda: source, protocol)
    assert result.curves is not None
    assert result.curves.losses[0, 0].isfinite()
    assert not result.curves.losses[0, -1].isfinite()
    assert result.curves.losses[1].isfinite().all()


def test_a_result_has_the_curves_of_every_setting_in_its_order_and_of_the_final_training() -> None:
    source = make_source(ATTENTIVE, 150, 0)
    result = run_sweep(ATTENTIVE, source, lambda: source, SMALL)
    assert result.curves is not None
    assert result.refit_curves is not None
    assert result.curves.losses.shape == (len(result.scores), len(result.curves.steps))
    peaks = [score.setting.lr for score in result.scores]  # type: ignore[union-attr]
    assert result.curves.lrs[:, 0].tolist() == pytest.approx(peaks)
    assert result.refit_curves.losses.shape == (1, len(result.refit_curves.steps))


def test_in_a_halving_sweep_a_setting_has_the_curve_of_its_last_rung() -> None:
    source = make_source(LINEAR, 150, 0)
    result = run_sweep(LINEAR, source, lambda: source, replace(SMALL, sweep="halving"))
    assert result.curves is not None
    for row, score in enumerate(result.scores):
        known = result.curves.steps[result.curves.losses[row].isfinite()]
        assert known.tolist() == sampled_steps(score.num_steps)


def test_curves_of_parts_are_joined_by_probe_and_step_and_the_later_part_counts() -> None:
    def curves(steps: list[int], losses: list[list[float]]) -> LearningCurves:
        return LearningCurves(steps=torch.tensor(steps), losses=torch.tensor(losses), lrs=torch.tensor(losses))

    short, long = curves([0, 3], [[1.0, 2.0], [3.0, 4.0]]), curves([0, 2], [[5.0, 6.0]])
    whole = join_curves([([2, 0], short), ([2], long)], 3)
    assert whole.steps.tolist() == [0, 2, 3]
    nan = torch.nan
    wanted = torch.tensor([[3.0, nan, 4.0], [nan, nan, nan], [5.0, 6.0, nan]])
    assert torch.equal(whole.losses.nan_to_num(-1), wanted.nan_to_num(-1))


def test_curves_cost_no_report() -> None:
    events: list[Progress] = []
    bank = LinearBank([LinearProbe(64, 3)])
    fit_bank(bank, make_source(LINEAR, 150, 0), ROWS, [SMALL.settings(LINEAR)[0]], SMALL, on_event=events.append)
    assert len(events) < 20
