"""The protocol: choose on held-out training images, train the choice on all of them, open the test once, last."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from messages import raises
from sweeps import ATTENTIVE, LINEAR, SMALL, make_source
from torch import Tensor

from layerbank import probes
from layerbank.errors import Message
from layerbank.probes.banks.bank import AttentiveBank
from layerbank.probes.data.split import split_stratified
from layerbank.probes.data.token_source import ArraySource
from layerbank.probes.errors import DataError, ProbeError, SettingError
from layerbank.probes.evaluate import compute_logits
from layerbank.probes.events import Progress
from layerbank.probes.fit import fit_bank, fit_banks
from layerbank.probes.heads.attentive import AttentiveProbe
from layerbank.probes.metrics import balanced_accuracy
from layerbank.probes.outcome import SettingScore, choose
from layerbank.probes.protocol import PAPER, QUICK, Head, Setting, TrainingProtocol
from layerbank.probes.sweep import run_sweep
from layerbank.probes.tasks.multiclass import Multiclass


class Watched(ArraySource):
    """A source that remembers how often it was opened and read."""

    opened = 0
    taken = 0

    def take(self, rows: Tensor) -> Tensor:
        type(self).taken += len(rows)
        return super().take(rows)


@pytest.mark.parametrize("head", [ATTENTIVE, LINEAR])
def test_a_sweep_chooses_refits_and_tests(head: Head) -> None:
    train, test = make_source(head, 150, 0), make_source(head, 60, 1)
    result = run_sweep(head, train, lambda: test, SMALL)
    assert len(result.scores) == (8 if head is ATTENTIVE else 4)
    assert not result.diverged
    assert result.chosen is not None
    assert result.test is not None
    assert result.test["balanced_accuracy"] > 0.8
    assert result.test["top1"] <= result.test["top5"] == 1
    assert result.probe is not None
    assert result.test_logits is not None
    torch.testing.assert_close(result.probe(test.tokens), result.test_logits, rtol=1e-4, atol=1e-4)
    assert result.num_parameters == sum(parameter.numel() for parameter in result.probe.parameters())
    before = 4 * 16 * 32 + 10 * 16 if head is ATTENTIVE else 0
    assert result.num_parameters_before_classifier == before
    assert list(result.seconds) == ["select", "validate", "refit", "test"]
    assert (result.selection.num_samples, result.refit and result.refit.num_samples) == (120, 150)


def test_settings_scored_on_jittered_images_change_the_choice_and_no_training_and_no_test() -> None:
    one = replace(SMALL, lrs=(1e-2,), weight_decays=(1e-4,), dropouts=(0.0,), jitter_std=0.3)
    train, test = make_source(ATTENTIVE, 150, 0), make_source(ATTENTIVE, 60, 1)
    plain = run_sweep(ATTENTIVE, train, lambda: test, one)
    quirky = run_sweep(ATTENTIVE, train, lambda: test, replace(one, jitter_validation=True))
    assert plain.test_logits is not None
    assert quirky.test_logits is not None
    assert torch.equal(plain.test_logits, quirky.test_logits)
    assert plain.test == quirky.test

    kept, held_out = split_stratified(train.targets, 0.2, one.seed)
    bank = AttentiveBank([AttentiveProbe(16, 4, 3, seed=one.seed)])
    fit_bank(bank, train, kept, list(one.settings(ATTENTIVE)), one)
    clean = torch.cat(list(compute_logits(bank, train, held_out)), 1)
    noisy = torch.cat(list(compute_logits(bank, train, held_out, jitter=one)), 1)
    again = torch.cat(list(compute_logits(bank, train, held_out, jitter=one)), 1)
    assert torch.equal(noisy, again)
    untouched = (clean == noisy).all(-1).float().mean().item()
    assert untouched == pytest.approx(1 - one.jitter_probability, abs=0.25)
    for result, logits in ((plain, clean), (quirky, noisy)):
        assert result.validation == balanced_accuracy(logits.argmax(2), train.targets[held_out], 3).item()


def test_the_sweep_is_the_protocol_written_out() -> None:
    """Split, train each setting alone, choose, train the choice from the same initial weights on everything."""
    train, test = make_source(ATTENTIVE, 150, 0), make_source(ATTENTIVE, 60, 1)
    result = run_sweep(ATTENTIVE, train, lambda: test, SMALL)
    kept, held_out = split_stratified(train.targets, 0.2, SMALL.seed)
    for score in result.scores[:3]:
        bank = AttentiveBank([AttentiveProbe(16, 4, 3, seed=SMALL.seed)], [score.setting.dropout])
        fit_bank(bank, train, kept, [score.setting], SMALL)
        predictions = torch.cat(list(compute_logits(bank, train, held_out)), 1).argmax(2)
        alone = balanced_accuracy(predictions[0], train.targets[held_out], 3)
        assert score.validation == pytest.approx(alone.item(), abs=0.1)
    assert result.chosen is not None
    assert result.validation == max(score.validation or 0 for score in result.scores)
    bank = AttentiveBank([AttentiveProbe(16, 4, 3, seed=SMALL.seed)], [result.chosen.dropout])
    fit_bank(bank, train, torch.arange(150), [result.chosen], SMALL)
    assert result.probe is not None
    expected = bank.probe(0).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in result.probe.state_dict().items())


def test_the_test_images_are_opened_once_and_last() -> None:
    events: list[Progress] = []

    def open_test() -> ArraySource:
        assert [event.phase for event in events][-1] == "refit"
        assert events[-1].step == events[-1].num_steps
        Watched.opened += 1
        source = make_source(LINEAR, 60, 1)
        return Watched(source.tokens, source.targets, 3)

    Watched.opened = Watched.taken = 0
    run_sweep(LINEAR, make_source(LINEAR, 150, 0), open_test, SMALL, on_event=events.append)
    assert (Watched.opened, Watched.taken) == (1, 60)
    phases = list(dict.fromkeys(event.phase for event in events))
    assert phases == ["select", "validate", "refit", "test"]
    for phase in phases:
        steps = [event.step for event in events if event.phase == phase]
        assert steps == sorted(steps)
        assert steps[0] == 0
        assert steps[-1] == next(event.num_steps for event in events if event.phase == phase)


@pytest.mark.parametrize("head", [ATTENTIVE, LINEAR])
def test_a_setting_that_diverges_says_so_and_is_not_chosen(head: Head) -> None:
    protocol = TrainingProtocol(
        lrs=(1e38, 1e-2), weight_decays=(1.0,), dropouts=(0.0,), epochs=1, min_steps=10, batch_size=32
    )
    test = make_source(head, 60, 1)
    result = run_sweep(head, make_source(head, 150, 0), lambda: test, protocol)
    assert [score.diverged for score in result.scores] == [True, False]
    assert result.chosen == Setting(lr=1e-2, weight_decay=1.0)
    assert not result.diverged


def never_open() -> ArraySource:
    raise AssertionError("the test images were opened")


def test_if_every_setting_diverges_the_result_says_so_and_the_test_stays_closed() -> None:
    protocol = TrainingProtocol(
        lrs=(1e38,), weight_decays=(1.0, 2.0), dropouts=(0.0,), epochs=1, min_steps=10, batch_size=32
    )
    result = run_sweep(ATTENTIVE, make_source(ATTENTIVE, 150, 0), never_open, protocol)
    assert result.diverged
    assert all(score.diverged for score in result.scores)
    assert result.chosen is result.validation is result.test is result.test_logits is result.probe is None
    assert list(result.seconds) == ["select", "validate"]
    assert result.num_parameters == 4 * 16 * 32 + 10 * 16 + 3 * 17


def test_if_the_final_training_diverges_the_result_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    real_fit: Callable[..., list[probes.FitResult]] = fit_banks

    def fit_that_fails(*arguments: object, **options: object) -> list[probes.FitResult]:
        results = real_fit(*arguments, **options)
        results[0].diverged.fill_(True)
        return results

    monkeypatch.setattr("layerbank.probes.chosen.fit_banks", fit_that_fails)
    result = run_sweep(LINEAR, make_source(LINEAR, 150, 0), never_open, SMALL)
    assert result.diverged
    assert result.chosen is not None
    assert result.test is result.probe is None


def test_the_first_setting_wins_ties() -> None:
    settings = PAPER.settings(Head(kind="linear"))
    assert settings[0] == Setting(lr=0.1, weight_decay=1e-6)
    scores = tuple(
        SettingScore(setting=setting, validation=value, num_steps=1)
        for setting, value in zip(settings, [None, 0.5, 0.7, 0.7, None, 0.7], strict=False)
    )
    assert choose(scores) == scores[2]
    assert choose(scores[:1]) is None
    zeros = tuple(SettingScore(setting=setting, validation=0.0, num_steps=1) for setting in settings)
    assert choose(zeros) == zeros[0]


def test_the_same_seed_gives_the_same_result() -> None:
    train, test = make_source(ATTENTIVE, 90, 0), make_source(ATTENTIVE, 60, 1)
    one, again = (run_sweep(ATTENTIVE, train, lambda: test, SMALL) for _ in range(2))
    assert one.scores == again.scores
    assert one.test_logits is not None
    assert again.test_logits is not None
    assert torch.equal(one.test_logits, again.test_logits)


def test_too_few_images_to_hold_some_out_are_refused() -> None:
    with raises("probes.nothing_to_hold_out", DataError, num_images=2, num_classes=2):
        run_sweep(LINEAR, ArraySource(torch.zeros(2, 4), torch.tensor([0, 1]), 2), never_open, SMALL)


def test_tokens_of_the_wrong_shape_are_refused() -> None:
    with raises("probes.tokens_not_flat", SettingError, head="linear", shape=(4, 16)):
        run_sweep(LINEAR, make_source(ATTENTIVE, 30, 0), never_open, SMALL)
    with raises("probes.tokens_not_stacked", SettingError, head="attentive", shape=(64,)):
        run_sweep(ATTENTIVE, make_source(LINEAR, 30, 0), never_open, SMALL)


def test_test_images_unlike_the_training_images_are_refused() -> None:
    other = ArraySource(torch.zeros(5, 7), torch.zeros(5, dtype=torch.int64), 2)
    with raises(
        "probes.test_tokens_differ",
        DataError,
        train_shape=(64,),
        train_task=Multiclass(num_classes=3),
        test_shape=(7,),
        test_task=Multiclass(num_classes=2),
    ):
        run_sweep(LINEAR, make_source(LINEAR, 60, 0), lambda: other, SMALL)


def test_the_grid_of_the_paper_has_63_attentive_and_21_linear_settings() -> None:
    settings = PAPER.settings(ATTENTIVE)
    assert len(settings) == len(set(settings)) == 63
    assert len(PAPER.settings(LINEAR)) == 21
    assert settings[:2] == (
        Setting(lr=0.1, weight_decay=1e-6, dropout=0.0),
        Setting(lr=0.1, weight_decay=1e-6, dropout=0.1),
    )
    assert len(QUICK.settings(ATTENTIVE)) <= 12


def test_a_protocol_with_several_wrong_values_is_refused_with_all_of_them() -> None:
    with raises(
        "probes.wrong_protocol",
        SettingError,
        rules="lrs at least one, all > 0; dropouts at least one, all in [0, 1); epochs an integer >= 1; "
        "batch_size an integer >= 2; seed an integer in [0, 2^63)",
        values="lrs (); dropouts (1.0,); epochs 0; batch_size 1; seed -1",
    ):
        TrainingProtocol(lrs=(), dropouts=(1.0,), epochs=0, batch_size=1, seed=-1)


@pytest.mark.parametrize("name", ["epochs", "min_steps", "batch_size", "seed"])
@pytest.mark.parametrize("value", [1.5, True, 10**40, 8.0])
def test_a_number_that_is_no_integer_of_64_bits_is_refused(name: str, value: object) -> None:
    with raises("probes.wrong_protocol", SettingError, values=f"{name} {value}"):
        TrainingProtocol(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "num_heads", "num_levels", "heads_rule", "levels_rule"),
    [
        ("attentive", 0, 0, ">= 1", "0"),
        ("attentive", 4, 3, ">= 1", "0"),
        ("linear", 3, 0, "0", "0"),
        ("scalar-mix", 0, 0, "0", ">= 1"),
    ],
)
def test_a_head_with_wrong_numbers_is_refused(
    kind: str, num_heads: int, num_levels: int, heads_rule: str, levels_rule: str
) -> None:
    numbers = {"num_heads": num_heads, "num_levels": num_levels}
    rules = {"heads_rule": heads_rule, "levels_rule": levels_rule}
    with raises("probes.head_numbers", SettingError, **numbers, **rules):
        Head(kind=kind, **numbers)


def test_a_head_of_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    names = "linear, ridge, logreg, knn, attentive, cae, aim, ep, vjepa, map, abmilp, simpool, alf-embed, scalar-mix"
    with raises("layerbank.unknown_part", name="conv", names=names):
        Head(kind="conv", num_heads=1)


def test_a_trained_head_has_no_grid_of_a_solver() -> None:
    with raises("probes.not_solved", SettingError, kind="linear"):
        PAPER.solved_settings(LINEAR)


def test_errors_are_one_tree_with_four_parts() -> None:
    error = SettingError(Message(where="here", expected="this", got="that", todo="Do it."))
    assert str(error) == "here: expected this, got that. Do it."
    assert (error.where, error.expected, error.got, error.todo) == ("here", "this", "that", "Do it.")
    for kind in (SettingError, DataError, probes.CheckpointError, probes.CheckpointMissing):
        assert issubclass(kind, ProbeError)
        assert issubclass(kind, ValueError)
    assert issubclass(probes.CheckpointMissing, FileNotFoundError)


def test_the_table_of_contents_is_exact() -> None:
    public = {name for name in vars(probes) if not name.startswith("_")}
    modules = {name for name in public if type(getattr(probes, name)).__name__ == "module"}
    assert set(probes.__all__) == public - modules
    assert len(set(probes.__all__)) == len(probes.__all__)
