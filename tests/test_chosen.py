"""What is chosen already is trained as the protocol would have trained it, and an ensemble is the mean of its members."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from layerbank.probes import (
    QUICK,
    ArraySource,
    Candidate,
    Choice,
    ColumnBlock,
    Ensemble,
    Head,
    LinearProbe,
    Setting,
    balanced_accuracy,
    join_members,
    load_probe,
    make_probe,
    mean_of_members,
    run_sweeps,
    save_probe,
    score_held_out,
    split_rows,
    train_chosen,
)

PROTOCOL = replace(QUICK, lrs=(1e-2, 1e-3), weight_decays=(1e-4,), dropouts=(0.0, 0.3), epochs=2, min_steps=30)
LEVELS = ("block.1", "block.2", "final")
HEAD = Head(kind="attentive", num_heads=4)


def source(seed: int = 0, num_images: int = 200) -> ArraySource:
    """Three classes that block.2 tells apart, a little."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (num_images,), generator=generator)
    tokens = torch.randn(num_images, 6, 8, generator=generator)
    tokens[:, 2:4, :3] += 1.5 * torch.nn.functional.one_hot(labels, 3)[:, None]
    blocks = tuple(
        ColumnBlock(name=f"{level}/{kind}", num_tokens=1, width=8) for level in LEVELS for kind in ("cls", "ap")
    )
    tokens = torch.nn.functional.normalize(tokens, dim=-1)
    return ArraySource(tokens.flatten(1), labels, 3, blocks=blocks)


def reader(*levels: str, head: Head = HEAD) -> Candidate:
    return Candidate(head=head, blocks=tuple(f"{level}/{kind}" for level in levels for kind in ("cls", "ap")))


@pytest.mark.parametrize("head", [HEAD, Head(kind="linear"), Head(kind="alf-embed", num_heads=4, num_levels=3)])
def test_the_choice_of_a_sweep_trained_again_is_its_probe_to_the_last_bit(head: Head) -> None:
    train, test = source(), source(1)
    candidate = reader(*LEVELS, head=head)
    (swept,) = run_sweeps([[candidate]], train, lambda: test, PROTOCOL)
    assert isinstance(swept.chosen, Setting)
    others = [Setting(lr=1e-3, weight_decay=0.1), Setting(lr=1e-2, weight_decay=0.5)]
    choices = [Choice(candidate=candidate, setting=one) for one in (others[0], swept.chosen, others[1])]
    trained = train_chosen(choices, train, lambda: test, PROTOCOL)[1]
    assert swept.test_logits is not None
    assert trained.test_logits is not None
    assert torch.equal(trained.test_logits, swept.test_logits)
    assert trained.test == swept.test


def test_held_out_scores_are_of_the_images_that_the_sweep_holds_out_and_of_the_same_training() -> None:
    train, candidate = source(), reader(*LEVELS)
    (swept,) = run_sweeps([[candidate]], train, lambda: source(1), PROTOCOL)
    settings = [one.setting for one in swept.scores if isinstance(one.setting, Setting)]
    _, rows = split_rows(train, PROTOCOL.validation_fraction, PROTOCOL.seed)
    logits = torch.full((len(settings), len(rows), 3), torch.nan)

    def see(number: int, stretch: slice, scores: torch.Tensor) -> None:
        logits[number, stretch] = scores

    left = score_held_out([Choice(candidate=candidate, setting=one) for one in settings], train, PROTOCOL, see)
    assert [bool(one.diverged[0]) for one in left] == [False] * 4
    found = balanced_accuracy(logits.argmax(2), train.targets[rows], 3)
    np.testing.assert_allclose(found, [one.validation for one in swept.scores], atol=0.03)  # alike to rounding


def test_company_and_memory_change_nothing() -> None:
    """One pass or several, with whom: a probe on some levels is the one trained by itself."""
    train, setting = source(), Setting(lr=1e-2, weight_decay=1e-4)
    sets = [("final",), ("block.2", "final"), LEVELS]

    def scores(which: list[tuple[str, ...]], memory_bytes: int | None = None) -> list[torch.Tensor]:
        seen: list[list[torch.Tensor]] = [[] for _ in which]
        choices = [Choice(candidate=reader(*levels), setting=setting) for levels in which]
        score_held_out(
            choices,
            train,
            PROTOCOL,
            lambda number, stretch, logits: seen[number].append(logits),
            memory_bytes=memory_bytes,
        )
        return [torch.cat(parts) for parts in seen]

    together = scores(sets)
    for number, levels in enumerate(sets):
        assert torch.equal(scores([levels])[0], together[number])
    one_by_one = scores(sets, memory_bytes=20_000_000)
    assert all(torch.equal(one, other) for one, other in zip(one_by_one, together, strict=True))


def test_a_choice_that_diverges_is_not_shown_and_no_member() -> None:
    train, test = source(), source(1)
    wild, tame = Setting(lr=float("inf"), weight_decay=0.0), Setting(lr=1e-2, weight_decay=0.0)
    choices = [Choice(candidate=reader("final"), setting=one) for one in (wild, tame)]
    seen: list[int] = []
    left = score_held_out(choices, train, PROTOCOL, lambda number, stretch, logits: seen.append(number))
    assert [bool(one.diverged[0]) for one in left] == [True, False]
    assert set(seen) == {1}
    trained = train_chosen(choices, train, lambda: test, PROTOCOL)
    joined = join_members(trained, lambda: test)
    assert isinstance(joined.probe, Ensemble)
    assert len(joined.probe.members) == 1

    def forbidden() -> ArraySource:
        raise AssertionError("there is nothing to test")

    diverged = train_chosen(choices[:1], train, forbidden, PROTOCOL)
    assert join_members(diverged, forbidden).probe is None


def test_an_ensemble_is_the_mean_of_the_probabilities_and_is_saved_as_such(tmp_path: Path) -> None:
    train, test = source(), source(1)
    settings = [Setting(lr=lr, weight_decay=1e-4) for lr in (1e-1, 1e-2, 1e-3)]
    trained = train_chosen(
        [Choice(candidate=reader(*LEVELS), setting=one) for one in settings], train, lambda: test, PROTOCOL
    )
    joined = join_members(trained, lambda: test)
    members = np.stack([one.test_logits.numpy() for one in trained if one.test_logits is not None]).astype(np.float64)
    wide = np.exp(members) / np.exp(members).sum(-1, keepdims=True)
    assert joined.test_logits is not None
    assert joined.test is not None
    np.testing.assert_allclose(joined.test_logits.exp(), wide.mean(0), rtol=1e-5)
    right = wide.mean(0).argmax(1) == test.targets.numpy()
    assert joined.test["top1"] == pytest.approx(right.mean())
    assert isinstance(joined.probe, Ensemble)
    save_probe(tmp_path, joined.probe, {"name": "three"})
    loaded, config = load_probe(tmp_path)
    assert config == {"name": "three"}
    with torch.inference_mode():
        answer = loaded(test.tokens.view(200, 6, 8))
    np.testing.assert_allclose(answer, joined.test_logits, atol=1e-5)


def test_an_ensemble_of_linear_probes_keeps_its_members_apart(tmp_path: Path) -> None:
    probe = Ensemble([LinearProbe(4, 3, seed=0), LinearProbe(4, 3, seed=1)])
    save_probe(tmp_path, probe, {})
    loaded, _ = load_probe(tmp_path)
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded(x), probe(x))
    expected = mean_of_members(torch.stack([make_probe(Head(kind="linear"), (4,), 3, seed=seed)(x) for seed in (0, 1)]))
    assert torch.equal(probe(x), expected)


def test_large_scores_overflow_nothing() -> None:
    logits = torch.tensor([[[3e4, 0.0, -3e4]], [[-3e4, 0.0, 3e4]]])
    np.testing.assert_allclose(mean_of_members(logits).exp(), [[0.5, 0.0, 0.5]])
