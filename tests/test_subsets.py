"""Choices trained for real: levels as token masks in one bank, and ensembles of a bank's best settings."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.results import Row
from pipeline.study.selection import best_members, ensemble, smallest_levels
from pipeline.study.subsets import setting_of_row, train_members, train_on_levels
from probes import (
    QUICK,
    ArraySource,
    AttentiveBank,
    AttentiveProbe,
    Head,
    LinearProbe,
    Setting,
    compute_logits,
    fit_bank,
    run_sweep,
    split_rows,
)

LEVELS = ("block.1", "block.2", "block.3", "final")
PROTOCOL = replace(QUICK, epochs=4, min_steps=60, jitter_probability=0.0)
SETTING = Setting(lr=1e-2, weight_decay=1e-4)


def source(num_images: int = 300, seed: int = 0) -> ArraySource:
    """Three classes that only the two tokens of block.2 tell apart; the other levels are noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (num_images,), generator=generator)
    tokens = torch.randn(num_images, 8, 12, generator=generator)
    tokens[:, 2:4, :3] += 2.5 * torch.nn.functional.one_hot(labels, 3)[:, None]
    return ArraySource(torch.nn.functional.normalize(tokens, dim=-1), labels, 3)


def test_the_level_that_knows_is_chosen_and_is_enough() -> None:
    found = smallest_levels(LEVELS, train_on_levels(source(), LEVELS, 4, SETTING, PROTOCOL))
    assert found.chosen.levels == ("block.2",)
    assert found.chosen.accuracy > 0.7
    assert found.num_trained == 10


def test_a_candidate_of_a_round_is_the_probe_trained_alone_on_the_tokens_of_its_levels() -> None:
    images = source()
    train = train_on_levels(images, LEVELS, 4, SETTING, PROTOCOL)
    candidates = [("block.1",), ("block.2", "final"), LEVELS]
    fit_rows, validation_rows = split_rows(images, PROTOCOL.validation_fraction, PROTOCOL.seed)
    for held, found in zip(candidates, train(candidates), strict=True):
        tokens = [2 * LEVELS.index(level) + offset for level in held for offset in (0, 1)]
        alone = ArraySource(images.tokens[:, tokens].contiguous(), images.labels, 3)
        bank = AttentiveBank([AttentiveProbe(12, 4, 3, seed=PROTOCOL.seed)])
        fit_bank(bank, alone, fit_rows, [SETTING], PROTOCOL)
        logits = torch.cat(list(compute_logits(bank, alone, validation_rows)), dim=1)[0]
        hits = (logits.argmax(1) == images.labels[validation_rows]).numpy()
        assert found.levels == held
        assert (found.hits == hits).mean() > 0.98  # trained alike to rounding
        np.testing.assert_array_equal(found.labels, images.labels[validation_rows].numpy())


def test_a_candidate_that_diverges_is_right_about_nothing() -> None:
    wild = Setting(lr=float("inf"), weight_decay=0.0)
    [found] = train_on_levels(source(), LEVELS, 4, wild, PROTOCOL)([LEVELS])
    assert found.accuracy == 0


@pytest.mark.parametrize("head", [Head(kind="attentive", num_heads=4), Head(kind="linear")])
def test_the_first_member_of_an_ensemble_is_the_probe_that_the_protocol_chooses(head: Head) -> None:
    train, test = source(), source(seed=1)
    if head.kind == "linear":
        train, test = (ArraySource(one.tokens.flatten(1), one.labels, 3) for one in (train, test))
    protocol = replace(PROTOCOL, lrs=(1e-2, 1e-3), weight_decays=(1e-4, 1e-2), dropouts=(0.0, 0.3))
    result = run_sweep(head, train, lambda: test, protocol)
    members = best_members([score.validation for score in result.scores], 3)
    settings = [score.setting for score in result.scores]
    chosen = [setting for index in members if isinstance(setting := settings[index], Setting)]
    assert chosen[0] == result.chosen
    width = train.token_shape[-1]
    initial = LinearProbe(width, 3) if head.kind == "linear" else AttentiveProbe(width, 4, 3)
    logits = train_members(initial, train, test, chosen, protocol)
    assert logits.shape == (3, 300, 3)
    assert result.test_logits is not None
    np.testing.assert_allclose(logits[0], result.test_logits.numpy(), atol=1e-3)
    assert np.isfinite(ensemble(logits)).all()


def test_a_row_says_what_it_was_trained_with() -> None:
    protocol = replace(PROTOCOL, seed=7)
    row: Row = {"chosen": asdict(SETTING), "protocol": _as_json(asdict(protocol))}
    assert setting_of_row(row) == (SETTING, protocol)


def _as_json(values: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
