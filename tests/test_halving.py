"""Successive halving: fewer settings for more steps, each rung an ordinary training, the last one the full grid's."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from messages import raises

from layerbank.probes import ArraySource, Head, Rung, Setting, SettingError, TrainingProtocol, run_sweep, stack_tokens
from layerbank.probes.banks.bank import AttentiveBank
from layerbank.probes.data.split import split_stratified
from layerbank.probes.evaluate import compute_logits
from layerbank.probes.fit import cosine_lr, fit_bank
from layerbank.probes.heads.attentive import AttentiveProbe
from layerbank.probes.metrics import balanced_accuracy
from layerbank.probes.select import keep_best, plan_rungs

HEAD = Head(kind="attentive", num_heads=2)
FULL = TrainingProtocol(
    lrs=(1e-1, 1e-2, 1e-3), weight_decays=(1e-4, 1e-2), dropouts=(0.0, 0.3), epochs=4, min_steps=45, batch_size=32
)
HALVING = replace(FULL, sweep="halving")


def make_source(num_samples: int, seed: int) -> ArraySource:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(3, 4, 12, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(num_samples) % 3
    tokens = 0.5 * centres[labels] + torch.randn(num_samples, 4, 12, generator=generator)
    return ArraySource(stack_tokens([tokens]), labels, 3)


@given(st.integers(1, 200), st.integers(1, 5000))
def test_rungs_shrink_by_three_and_the_last_goes_the_whole_way(num_settings: int, num_steps: int) -> None:
    rungs = plan_rungs("halving", num_settings, num_steps)
    assert rungs[0].num_settings == num_settings
    assert rungs[-1].num_steps == num_steps
    for before, after in pairwise(rungs):
        assert 0 <= 3 * after.num_settings - before.num_settings <= 6
        assert 0 <= 3 * before.num_steps - after.num_steps <= 6
    assert plan_rungs("full", num_settings, num_steps) == (Rung(num_settings=num_settings, num_steps=num_steps),)


def test_the_grid_of_the_paper_costs_a_third() -> None:
    rungs = plan_rungs("halving", 63, 1000)
    assert sum(rung.probe_steps for rung in rungs) == 63 * 112 + 21 * 334 + 7 * 1000 == 21070


@given(st.lists(st.none() | st.sampled_from([0.1, 0.5, 0.9]), min_size=1, max_size=12), st.integers(1, 12))
def test_the_best_go_on_the_first_of_equals_and_none_that_diverged(accuracies: list[float | None], count: int) -> None:
    candidates = [10 + index for index in range(len(accuracies))]
    kept = keep_best(candidates, accuracies, count)
    assert kept == sorted(kept)
    finished = {index: one for index, one in zip(candidates, accuracies, strict=True) if one is not None}
    assert len(kept) == min(count, len(finished))
    for index in kept:
        for other in finished.keys() - set(kept):
            assert (finished[index], -index) > (finished[other], -other)


def test_a_halving_sweep_is_its_rungs_written_out() -> None:
    train, test = make_source(150, 0), make_source(60, 1)
    result = run_sweep(HEAD, train, lambda: test, HALVING)
    settings = HALVING.settings(HEAD)
    assert [(rung.num_settings, rung.num_steps) for rung in result.rungs] == [(12, 5), (4, 15), (2, 45)]
    kept, held_out = split_stratified(train.targets, 0.2, 0)
    alive = list(range(12))
    for rung in result.rungs:
        probes = [AttentiveProbe(12, 2, 3)] * len(alive)
        bank = AttentiveBank(probes, [settings[index].dropout for index in alive])
        fit_bank(bank, train, kept, [settings[index] for index in alive], HALVING, schedule_steps=rung.num_steps)
        predictions = torch.cat(list(compute_logits(bank, train, held_out)), 1).argmax(2)
        accuracies = balanced_accuracy(predictions, train.targets[held_out], 3).tolist()
        dropped = alive if rung is result.rungs[-1] else list(set(alive) - set(next_alive(alive, accuracies)))
        for index, accuracy in zip(alive, accuracies, strict=True):
            if index in dropped:
                assert result.scores[index].validation == accuracy
                assert result.scores[index].num_steps == rung.num_steps
        alive = next_alive(alive, accuracies) if rung is not result.rungs[-1] else alive
    finalists = [score for score in result.scores if score.num_steps == 45]
    assert [score.setting for score in result.scores] == list(settings)
    assert result.chosen == max(finalists, key=lambda score: score.validation or 0).setting
    assert result.refit is not None
    assert result.refit.num_steps >= 45  # the choice is trained in full


def next_alive(alive: list[int], accuracies: list[float]) -> list[int]:
    return keep_best(alive, accuracies, -(-len(alive) // 3))


def test_a_shorter_schedule_is_a_whole_cosine_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    reported = []

    def remember(step: int, num_steps: int, peak_lr: float, min_lr: float) -> float:
        reported.append((step, num_steps))
        return cosine_lr(step, num_steps, peak_lr, min_lr)

    monkeypatch.setattr("layerbank.probes.fit.cosine_lr", remember)
    bank = AttentiveBank([AttentiveProbe(12, 2, 3)])
    setting = Setting(lr=1e-2, weight_decay=0.0)
    fitted = fit_bank(bank, make_source(150, 0), torch.arange(150), [setting], FULL, schedule_steps=7)
    assert reported == [(step, 7) for step in range(7)]
    assert fitted.plan.num_steps >= 45


def test_settings_that_diverge_do_not_go_on_and_a_rung_without_settings_ends_the_sweep() -> None:
    train = make_source(150, 0)
    some = replace(HALVING, lrs=(1e38, 1e-2), weight_decays=(1.0,), dropouts=(0.0,))
    result = run_sweep(HEAD, train, lambda: train, some)
    assert [score.diverged for score in result.scores] == [True, False]
    assert [rung.num_settings for rung in result.rungs] == [2, 1, 1]
    assert result.chosen == Setting(lr=1e-2, weight_decay=1.0)
    nothing = run_sweep(HEAD, train, lambda: train, replace(some, lrs=(1e38,)))
    assert nothing.diverged
    assert nothing.chosen is nothing.test is None
    assert [rung.num_settings for rung in nothing.rungs] == [1]


def test_an_unknown_sweep_is_refused() -> None:
    with raises("probes.wrong_protocol", SettingError, rules="sweep 'full' or 'halving'", values="sweep racing"):
        replace(FULL, sweep="racing")
