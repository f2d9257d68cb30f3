"""Heads of other studies: each is its equation, with the parameters PROTOCOL counts, and a bank of P is P lone modules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from messages import raises
from torch import Tensor, nn
from torch.nn.functional import batch_norm, cross_entropy, gelu, layer_norm

from layerbank.probes.banks.bank import AttentiveBank
from layerbank.probes.banks.linear_bank import LinearBank
from layerbank.probes.banks.module_bank import ModuleBank
from layerbank.probes.checkpoint import load_probe, save_probe
from layerbank.probes.data.rows import add_jitter
from layerbank.probes.data.token_source import ArraySource, concat_tokens, stack_tokens
from layerbank.probes.errors import SettingError
from layerbank.probes.fit import cosine_lr, fit_bank
from layerbank.probes.heads import HEADS, Head, HeadModule
from layerbank.probes.heads import make_probe as make_untrained
from layerbank.probes.heads.abmilp import AbmilpProbe
from layerbank.probes.heads.aim import AimProbe
from layerbank.probes.heads.alf_embed import AlfEmbedProbe
from layerbank.probes.heads.attentive import AttentiveProbe
from layerbank.probes.heads.cae import CaeProbe
from layerbank.probes.heads.ep import EpProbe
from layerbank.probes.heads.linear import LinearProbe
from layerbank.probes.heads.map import MapProbe
from layerbank.probes.heads.scalar_mix import ScalarMixProbe
from layerbank.probes.heads.simpool import SimPoolProbe
from layerbank.probes.heads.vjepa import VJepaProbe
from layerbank.probes.protocol import PAPER, Setting, TrainingProtocol
from layerbank.probes.seeds import make_generator
from layerbank.probes.sweep import run_sweep
from layerbank.probes.tasks.multiclass import TASK, class_weights

D, T, C, L = 12, 6, 3, 3
MAKERS: dict[str, Callable[[int], HeadModule]] = {
    "cae": lambda seed: CaeProbe(D, 4, C, seed=seed),
    "alf-embed": lambda seed: AlfEmbedProbe(D, 5, L, T, C, seed=seed),
    "aim": lambda seed: AimProbe(D, 3, C, seed=seed),
    "aim with two queries": lambda seed: AimProbe(D, 3, C, num_queries=2, seed=seed),
    "ep": lambda seed: EpProbe(D, 4, C, seed=seed),
    "ep reduced": lambda seed: EpProbe(D, 3, C, reduction=2, seed=seed),
    "abmilp": lambda seed: AbmilpProbe(D, C, seed=seed),
    "simpool": lambda seed: SimPoolProbe(D, C, seed=seed),
    "vjepa": lambda seed: VJepaProbe(D, 3, C, seed=seed),
    "map": lambda seed: MapProbe(D, 3, C, seed=seed),
    "scalar-mix": lambda seed: ScalarMixProbe(D, L, T, C, seed=seed),
}
# what cannot change the loss: what adds the same to all scores of a softmax, a constant before BatchNorm
NEVER_MOVES = {
    "cae": {"norm_k.bias", "proj.bias"},
    "alf-embed": {"norm_k.bias", "proj.bias"},
    "vjepa": {"to_k.bias"},
    "map": {"to_k.bias"},
    "abmilp": {"score.bias"},
}
every_head = pytest.mark.parametrize("name", MAKERS)
BY_HAND = ("cae", "alf-embed")  # folded; the others are differentiated


def bank_of(
    probes: list[HeadModule], rates: list[float], *, dtype: torch.dtype = torch.float32, group_size: int = 3
) -> AttentiveBank | ModuleBank:
    """Probes in the bank that trains their kind, by samples in several chunks."""
    if probes[0].kind in BY_HAND:
        return AttentiveBank(probes, rates, dtype=dtype, group_size=group_size, chunk_size=4)
    return ModuleBank(probes, rates, dtype=dtype, group_size=group_size)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_probe(name: str, seed: int) -> HeadModule:
    """A probe whose every parameter is far from its initial value, so that no term of a gradient vanishes."""
    probe = MAKERS[name](seed).double()
    with torch.no_grad():
        for number, parameter in enumerate(probe.parameters()):
            parameter.add_(draw(*parameter.shape, seed=1000 * seed + number), alpha=0.3)
    return probe


def make_rates(name: str, count: int) -> list[float]:
    return ([0.0, 0.3, 0.1, 0.3, 0.0] if make_probe(name, 0).has_dropout else [0.0] * 5)[:count]


def keep_mask(noise: Tensor, rate: float) -> Tensor | None:
    return None if rate == 0 else ((noise >= rate).double() / (1 - rate)).transpose(1, 2)


def zero_gradient(probe: HeadModule, rate: float) -> set[str]:
    return {*probe.zero_gradient, *(() if rate else probe.zero_gradient_without_dropout)}


# -- the equations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("embed_dim", [384, 768])
def test_parameters_before_the_classifier_are_those_of_the_protocol(embed_dim: int) -> None:
    d = embed_dim
    counted = {
        CaeProbe(d, 8, C): 4 * d**2 + 8 * d,
        AimProbe(d, 12, C): 2 * d**2 + d,
        AimProbe(d, 12, C, num_queries=5): 2 * d**2 + 5 * d,
        EpProbe(d, 32, C): 32 * d + d**2,
        EpProbe(d, 32, C, reduction=4): 32 * d + d**2 // 4,
        VJepaProbe(d, 12, C): 11 * d**2 + 13 * d,
        MapProbe(d, 12, C): 12 * d**2 + 12 * d,
        AbmilpProbe(d, C): d**2 + 2 * d + 1,
        SimPoolProbe(d, C): 2 * d**2 + 2 * d,
        ScalarMixProbe(d, 12, 24, C): 12 + 1,
        AlfEmbedProbe(d, 24, 12, 24, C): 4 * d * (24 * 2 * (d // 24)) + 10 * d + 12 * d + 2 * d,
    }
    for probe, count in counted.items():
        classifier = sum(parameter.numel() for parameter in probe.classifier.parameters())
        assert sum(parameter.numel() for parameter in probe.parameters()) - classifier == count, probe.kind


def normed(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    return layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)


def attend_plainly(queries: Tensor, keys: Tensor, values: Tensor, num_heads: int) -> Tensor:
    """softmax(q K^T / sqrt h) V with keys and values made, head by head: [D], [T, D], [T, D] -> [D]."""
    parts = []
    for q, k, v in zip(queries.chunk(num_heads), keys.chunk(num_heads, 1), values.chunk(num_heads, 1), strict=True):
        parts.append((k @ q / len(q) ** 0.5).softmax(0) @ v)
    return torch.cat(parts)


def normalize_batch(y: Tensor, norm: nn.Module) -> Tensor:
    assert isinstance(norm, nn.BatchNorm1d)
    return batch_norm(y, None, None, norm.weight, norm.bias, True, eps=norm.eps)


def equation(probe: Any, x: Tensor) -> Tensor:
    """What the head computes of a training batch [B, T, D], one image at a time, nothing folded: what enters the classifier."""
    if isinstance(probe, CaeProbe):
        query = probe.to_q(normed(probe.query, probe.norm_q))[0]
        keys, values = probe.to_k(normed(x, probe.norm_k)), probe.to_v(normed(x, probe.norm_v))
        y = torch.stack([attend_plainly(query, k, v, 4) for k, v in zip(keys, values, strict=True)])
        return normalize_batch(probe.proj(y), probe.bn)
    if isinstance(probe, AlfEmbedProbe):
        query = probe.to_q(normed(probe.query, probe.norm_q))[0]
        place = torch.stack([probe.of_level[t // 2] + probe.of_type[t % 2] for t in range(T)])
        keys, values = probe.to_k(normed(x, probe.norm_k) + place), probe.to_v(normed(x, probe.norm_v))
        y = torch.stack([attend_plainly(query, k, v, 5) for k, v in zip(keys, values, strict=True)])
        return normalize_batch(probe.proj(y), probe.bn)
    if isinstance(probe, AimProbe):
        x = (x - x.mean((0, 1))) / (x.var((0, 1), correction=0) + 1e-6).sqrt()
        return torch.stack(
            [
                torch.stack([attend_plainly(q, probe.to_k(one), probe.to_v(one), 3) for q in probe.queries]).mean(0)
                for one in x
            ]
        )
    if isinstance(probe, EpProbe):
        values = probe.to_v(x)
        y = [
            torch.cat(
                [
                    (one @ q / D**0.5).softmax(0) @ part
                    for q, part in zip(probe.queries, v.chunk(len(probe.queries), 1), strict=True)
                ]
            )
            for one, v in zip(x, values, strict=True)
        ]
        return normalize_batch(torch.stack(y), probe.bn)
    if isinstance(probe, AbmilpProbe):
        scores = [probe.score(probe.hidden(one).tanh())[:, 0] for one in x]
        return torch.stack([s.softmax(0) @ one for s, one in zip(scores, x, strict=True)])
    if isinstance(probe, SimPoolProbe):
        keys = probe.to_k(normed(x, probe.norm))
        rows = zip(x, keys, normed(x, probe.norm), strict=True)
        return torch.stack([attend_plainly(probe.to_q(one.mean(0)), k, v, 1) for one, k, v in rows])
    if isinstance(probe, VJepaProbe):
        inside = normed(x, probe.norm1)
        keys, values, query = probe.to_k(inside), probe.to_v(inside), probe.to_q(probe.query)[0]
        y = torch.stack([attend_plainly(query, k, v, 3) for k, v in zip(keys, values, strict=True)])
        y = probe.query + y
        return y + probe.fc2(gelu(probe.fc1(normed(y, probe.norm2))))
    if isinstance(probe, MapProbe):
        keys, values, query = probe.to_k(x), probe.to_v(x), probe.to_q(probe.query)[0]
        y = probe.proj(torch.stack([attend_plainly(query, k, v, 3) for k, v in zip(keys, values, strict=True)]))
        return y + probe.fc2(gelu(probe.fc1(normed(y, probe.norm)), approximate="tanh"))
    assert isinstance(probe, ScalarMixProbe)
    shares = probe.weights.exp() / probe.weights.exp().sum()
    cls, ap = (sum(shares[level] * x[:, 2 * level + kind] for level in range(L)) for kind in (0, 1))
    return probe.scale * torch.cat([cls, ap], 1)


@every_head
def test_a_head_is_its_equation_with_keys_and_values_made(name: str) -> None:
    probe = make_probe(name, 1).train()
    tokens = draw(7, T, D)
    expected = probe.classifier(equation(probe, tokens))
    torch.testing.assert_close(probe(tokens), expected, rtol=1e-10, atol=1e-10)


def test_the_embedding_starts_as_the_fusion_head() -> None:
    """Same seed, same weights, same logits: alf-embed differs from alf only in what it learns."""
    plain, embedded = AttentiveProbe(D, 5, C, seed=3), AlfEmbedProbe(D, 5, L, T, C, seed=3)
    state = embedded.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in plain.state_dict().items())
    tokens = draw(4, T, D).float()
    torch.testing.assert_close(plain.eval()(tokens), embedded.eval()(tokens))
    torch.testing.assert_close(plain.attention(tokens), embedded.attention(tokens))


def test_cae_starts_as_the_mean_of_the_tokens() -> None:
    attention = MAKERS["cae"](0)
    assert isinstance(attention, CaeProbe)
    torch.testing.assert_close(attention.attention(draw(2, T, D).float()), torch.full((2, 4, T), 1 / T))


@every_head
def test_initial_weights_depend_on_the_seed_alone(name: str) -> None:
    before = torch.get_rng_state()
    one, again, other = (MAKERS[name](seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    assert not torch.equal(one.classifier.weight, other.classifier.weight)


# -- the bank --------------------------------------------------------------------------------------------------------


@every_head
@pytest.mark.parametrize("group_size", [1, 2, 5])
def test_outputs_and_gradients_equal_the_plain_module_probe_by_probe(name: str, group_size: int) -> None:
    probes, rates = [make_probe(name, seed) for seed in range(5)], make_rates(name, 5)
    tokens, labels = draw(9, T, D), torch.arange(9) % C
    weights = (0.5 + torch.arange(9, dtype=torch.float64) % 3) / 13.5
    heads = probes[0].sizes.get("num_heads", 1)
    noise = {heads: draw(9, T, heads, seed=9).abs().remainder(1).float()}
    bank = bank_of(probes, rates, dtype=torch.float64, group_size=group_size)
    losses = bank.compute_gradients(tokens, labels, weights, noise, TASK)
    rows = {member: (stack, row) for stack in bank.stacks for row, member in enumerate(stack.members)}
    for index, (probe, rate) in enumerate(zip(probes, rates, strict=True)):
        keep = keep_mask(noise[heads], rate)
        logits = probe.train()(tokens) if keep is None else probe.train()(tokens, keep)
        loss = (cross_entropy(logits, labels, reduction="none") * weights).sum()
        names, parameters = zip(*probe.named_parameters(), strict=True)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        stack, row = rows[index]
        torch.testing.assert_close(losses[index], loss.detach(), rtol=1e-10, atol=1e-10)
        for parameter, gradient in zip(names, gradients, strict=True):
            torch.testing.assert_close(
                stack.grads[parameter][row], gradient, rtol=1e-10, atol=1e-10, msg=lambda m, n=parameter: f"{n}: {m}"
            )
        for buffer, statistic in stack.statistics.items():
            torch.testing.assert_close(statistic[row], probe.get_buffer(buffer), rtol=1e-10, atol=1e-10)
    logits = bank.logits(tokens)
    for index, probe in enumerate(probes):
        torch.testing.assert_close(logits[index], probe.eval()(tokens).detach(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["abmilp", "simpool", "vjepa", "map", "scalar-mix"])
def test_a_batch_in_chunks_is_the_batch_where_samples_do_not_depend_on_each_other(name: str) -> None:
    probes, tokens, labels = [make_probe(name, seed) for seed in range(3)], draw(9, T, D), torch.arange(9) % C
    weights = (0.5 + torch.arange(9, dtype=torch.float64) % 3) / 13.5
    whole, parted = (ModuleBank(probes, dtype=torch.float64, chunk_size=size) for size in (None, 4))
    losses = [bank.compute_gradients(tokens, labels, weights, {}, TASK) for bank in (whole, parted)]
    torch.testing.assert_close(*losses, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(whole.logits(tokens), parted.logits(tokens), rtol=1e-10, atol=1e-10)
    for one, other in zip(whole.stacks, parted.stacks, strict=True):
        for parameter, gradient in one.grads.items():
            torch.testing.assert_close(other.grads[parameter], gradient, rtol=1e-10, atol=1e-10)


@every_head
def test_parameters_that_cannot_matter_have_gradient_zero_exactly(name: str) -> None:
    probes = [make_probe(name, seed) for seed in range(3)]
    rates = [*make_rates(name, 2), 0.0]
    labels, heads = torch.arange(9) % C, probes[0].sizes.get("num_heads", 1)
    bank = bank_of(probes, rates)
    bank.compute_gradients(draw(9, T, D), labels, torch.full((9,), 1 / 9), {heads: torch.rand(9, T, heads)}, TASK)
    rows = {member: (stack, row) for stack in bank.stacks for row, member in enumerate(stack.members)}
    for index, rate in enumerate(rates):
        stack, row = rows[index]
        quiet = {parameter for parameter, gradient in stack.grads.items() if not gradient[row].any()}
        without_dropout = {"norm_v.bias"} if probes[0].has_dropout and rate == 0 else set()
        assert quiet == NEVER_MOVES.get(name, set()) | without_dropout


@pytest.mark.parametrize("name", BY_HAND)
def test_by_autograd_and_by_hand_are_two_ways_to_the_same_gradients(name: str) -> None:
    probes = [make_probe(name, seed) for seed in range(3)]
    tokens, labels, weights = draw(9, T, D), torch.arange(9) % C, torch.full((9,), 1 / 9, dtype=torch.float64)
    heads = probes[0].sizes["num_heads"]
    noise = {heads: torch.rand(9, T, heads, generator=torch.Generator().manual_seed(0))}
    by_hand = AttentiveBank(probes, [0.2] * 3, dtype=torch.float64)
    by_autograd = ModuleBank(probes, [0.2] * 3, dtype=torch.float64, group_size=3)
    losses = [bank.compute_gradients(tokens, labels, weights, noise, TASK) for bank in (by_hand, by_autograd)]
    torch.testing.assert_close(*losses, rtol=1e-10, atol=1e-10)
    for parameter, gradient in by_hand.stacks[0].grads.items():
        torch.testing.assert_close(by_autograd.stacks[0].grads[parameter], gradient, rtol=1e-10, atol=1e-10)


def test_the_fusion_head_and_its_kin_ride_in_one_bank() -> None:
    probes = [AttentiveProbe(D, 5, C), AlfEmbedProbe(D, 5, L, T, C), CaeProbe(D, 4, C), AttentiveProbe(D, 5, C, seed=1)]
    tokens, labels, weights = draw(9, T, D), torch.arange(9) % C, torch.full((9,), 1 / 9, dtype=torch.float64)
    together = AttentiveBank(probes, dtype=torch.float64)
    losses = together.compute_gradients(tokens, labels, weights, {}, TASK)
    rows = {member: (stack, row) for stack in together.stacks for row, member in enumerate(stack.members)}
    for index, probe in enumerate(probes):
        alone = AttentiveBank([probe], dtype=torch.float64)
        torch.testing.assert_close(alone.compute_gradients(tokens, labels, weights, {}, TASK)[0], losses[index])
        stack, row = rows[index]
        for parameter, gradient in alone.stacks[0].grads.items():
            torch.testing.assert_close(stack.grads[parameter][row], gradient[0])


# -- training --------------------------------------------------------------------------------------------------------

PROTOCOL = TrainingProtocol(epochs=4, min_steps=0, batch_size=40)  # 5 batches of 40 of 200 samples: 20 steps
ROWS = torch.arange(200)
GRID = [Setting(lr=1e-2, weight_decay=1e-4), Setting(lr=1e-3, weight_decay=1.0, dropout=0.3)]
GRID += [Setting(lr=1e-3, weight_decay=1e-2, dropout=0.1), Setting(lr=1e-2, weight_decay=1e-6, dropout=0.3)]


def make_source(num_samples: int = 200, seed: int = 1) -> ArraySource:
    """Samples of 3 classes that can be told apart, but not perfectly."""
    centres = torch.randn(C, T, D, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(num_samples) % C
    noise = torch.randn(num_samples, T, D, generator=torch.Generator().manual_seed(seed))
    return ArraySource(stack_tokens([centres[labels] + noise]), labels, C)


def make_bank(
    name: str, settings: list[Setting], dtype: torch.dtype, seeds: list[int], group_size: int
) -> AttentiveBank | ModuleBank:
    probes = [MAKERS[name](seed) for seed in seeds]
    rates = [setting.dropout if probes[0].has_dropout else 0.0 for setting in settings]
    return bank_of(probes, rates, dtype=dtype, group_size=group_size)


def largest_difference(one: nn.Module, other: nn.Module) -> float:
    """Of two probes' weights and statistics, relative to the largest entry of each tensor."""
    ours, theirs = one.state_dict(), other.state_dict()
    return max(
        ((ours[name] - theirs[name]).abs().max() / theirs[name].abs().max().clamp(min=1e-3)).item()
        for name in ours
        if not name.endswith("num_batches_tracked")
    )


@every_head
def test_training_together_is_training_alone(name: str) -> None:
    source, seeds = make_source(), [0, 0, 1, 2]
    together = make_bank(name, GRID, torch.float64, seeds, group_size=3)
    assert fit_bank(together, source, ROWS, GRID, PROTOCOL).plan.num_steps == 20
    for index, setting in enumerate(GRID):
        alone = make_bank(name, [setting], torch.float64, seeds[index : index + 1], group_size=3)
        fit_bank(alone, source, ROWS, [setting], PROTOCOL)
        assert largest_difference(together.probe(index), alone.probe(0)) < 1e-9


@every_head
def test_training_a_bank_is_training_the_plain_module(name: str) -> None:
    """The protocol as anyone would write it: one module, autograd, torch's AdamW, clipping and loss."""
    source, setting = make_source(), GRID[1]
    bank = make_bank(name, GRID, torch.float64, [0] * 4, group_size=3)
    plan = fit_bank(bank, source, ROWS, GRID, PROTOCOL).plan
    probe = MAKERS[name](0).double().train()
    rate = setting.dropout if probe.has_dropout else 0.0
    optimizer = torch.optim.AdamW(probe.parameters(), lr=setting.lr, weight_decay=setting.weight_decay)
    loss_of = nn.CrossEntropyLoss(weight=class_weights(source.targets, C))
    for step, batch in enumerate(plan.batches(PROTOCOL.seed)):
        tokens = source.take(batch)
        add_jitter(tokens, PROTOCOL, step)
        inputs = [tokens.double()]
        if rate > 0:
            heads = probe.sizes["num_heads"]
            generator = make_generator(PROTOCOL.seed, "attention dropout", heads, step)
            keep = keep_mask(torch.rand(len(batch), T, heads, generator=generator), rate)
            assert keep is not None
            inputs.append(keep)
        for parameter in probe.parameters():
            parameter.grad = torch.zeros_like(parameter)  # one that is not used is decayed all the same
        loss_of(probe(*inputs), source.targets[batch]).backward()
        for parameter in zero_gradient(probe, rate):
            gradient = probe.get_parameter(parameter).grad
            assert gradient is not None
            gradient.zero_()  # rounding noise, of which AdamW would make steps of size lr
        nn.utils.clip_grad_norm_(probe.parameters(), PROTOCOL.clip_norm)
        optimizer.param_groups[0]["lr"] = cosine_lr(step, plan.num_steps, setting.lr, PROTOCOL.min_lr)
        optimizer.step()
    assert largest_difference(bank.probe(1), probe) < 1e-9


@every_head
def test_a_probe_that_diverges_changes_no_bit_of_its_neighbours(name: str) -> None:
    source = make_source()
    wild = [GRID[0], Setting(lr=1e38, weight_decay=1.0), *GRID[2:]]
    calm = [GRID[0], Setting(lr=1e-3, weight_decay=1.0), *GRID[2:]]
    banks = [make_bank(name, settings, torch.float32, [0] * 4, group_size=3) for settings in (calm, wild)]
    outcomes = [
        fit_bank(bank, source, ROWS, settings, PROTOCOL) for bank, settings in zip(banks, (calm, wild), strict=True)
    ]
    assert not outcomes[0].diverged.any()
    assert outcomes[1].diverged.tolist() == [False, True, False, False]
    for index in (0, 2, 3):
        untouched, beside = (bank.probe(index).state_dict() for bank in banks)
        assert all(torch.equal(untouched[tensor], beside[tensor]) for tensor in untouched)


@pytest.mark.parametrize(
    "kind",
    [name for name in HEADS if name in MAKERS],
)
def test_a_sweep_chooses_refits_tests_and_saves(kind: str, tmp_path: Path) -> None:
    head_type = HEADS[kind]
    head = Head(kind=kind, num_heads=4 if head_type.has_heads else 0, num_levels=L if head_type.has_levels else 0)
    protocol = TrainingProtocol(
        lrs=(1e-1, 1e-2), weight_decays=(1e-4,), dropouts=(0.0, 0.3), epochs=4, min_steps=40, batch_size=32
    )
    test = make_source(60, seed=2)
    result = run_sweep(head, make_source(150), lambda: test, protocol)
    assert len(result.scores) == (4 if head_type.has_dropout else 2)
    assert not result.diverged
    assert result.test is not None
    assert result.test["balanced_accuracy"] > 0.8
    assert isinstance(result.probe, head_type.module)
    assert result.test_logits is not None
    torch.testing.assert_close(result.probe(test.tokens), result.test_logits, rtol=1e-4, atol=1e-4)
    save_probe(tmp_path, result.probe, {})
    loaded, _ = load_probe(tmp_path)
    torch.testing.assert_close(loaded(test.tokens), result.probe(test.tokens), rtol=0, atol=0)


@every_head
def test_a_saved_head_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    for probe in (MAKERS[name](5), make_probe(name, 5)):
        save_probe(tmp_path, probe, {"number": 1})
        loaded, config = load_probe(tmp_path)
        assert config == {"number": 1}
        assert type(loaded) is type(probe)
        assert not loaded.training
        state = loaded.state_dict()
        assert all(torch.equal(tensor, state[key]) for key, tensor in probe.state_dict().items())


@every_head
def test_a_probe_comes_back_as_the_plain_module_it_went_in(name: str) -> None:
    probes = [make_probe(name, seed) for seed in range(3)]
    bank = bank_of(probes, [0.0] * 3, dtype=torch.float64, group_size=2)
    for index, probe in enumerate(probes):
        returned = bank.probe(index)
        assert type(returned) is type(probe)
        assert not returned.training
        assert all(torch.equal(tensor, returned.state_dict()[key]) for key, tensor in probe.state_dict().items())


def test_the_dinov2_linear_suite_is_a_linear_bank_for_each_of_its_inputs() -> None:
    """As probes/README.md says: cls of the last n blocks, with or without the mean patch, each for many rates."""
    cls, ap = draw(4, 200, 1, D), draw(200, 1, D, seed=1)
    labels = torch.arange(200) % C
    settings = [Setting(lr=lr, weight_decay=0.0) for lr in (0.1, 0.01, 0.001)]
    widths = []
    for parts in ([cls[3]], [*cls], [cls[3], ap], [*cls, ap]):
        source = ArraySource(concat_tokens(parts), labels, C)
        bank = LinearBank([LinearProbe(source.token_shape[0], C)] * len(settings))
        assert not fit_bank(bank, source, ROWS, settings, PROTOCOL).diverged.any()
        widths.append(source.token_shape[0])
    assert widths == [D, 4 * D, 2 * D, 5 * D]


# -- what is refused -------------------------------------------------------------------------------------------------


def test_only_heads_with_attention_dropout_have_dropout_rates_in_their_grid() -> None:
    for kind, head_type in HEADS.items():
        if head_type.is_solved:
            continue  # a grid of its own
        head = Head(kind=kind, num_heads=int(head_type.has_heads), num_levels=int(head_type.has_levels))
        assert len(PAPER.settings(head)) == (63 if kind in ("attentive", "cae", "alf-embed") else 21)


def test_probes_of_different_heads_or_sizes_are_refused() -> None:
    with raises("probes.mixed_heads", SettingError, heads=[("abmilp", 12, 3), ("simpool", 12, 3)]):
        ModuleBank([AbmilpProbe(D, C), SimPoolProbe(D, C)])
    with raises("probes.mixed_heads", SettingError, heads=[]):
        ModuleBank([])


def test_dropout_rates_that_do_not_fit_are_refused() -> None:
    with raises("probes.no_dropout", SettingError, kind="abmilp", rates=[0.0, 0.1]):
        ModuleBank([AbmilpProbe(D, C)] * 2, [0.0, 0.1])
    with raises("probes.wrong_dropouts", SettingError, bank="ModuleBank", num_probes=2, rates=[0.1]):
        ModuleBank([CaeProbe(D, 4, C)] * 2, [0.1])


@pytest.mark.parametrize(
    ("make", "key", "values"),
    [
        (
            lambda: CaeProbe(12, 5, 3),
            "probes.size_not_divisible",
            {"head": "CaeProbe", "divisor": "num_heads", "divisor_value": 5, "size": "embed_dim", "size_value": 12},
        ),
        (
            lambda: ScalarMixProbe(12, 4, 6, 3),
            "probes.size_not_divisible",
            {"divisor": "num_levels", "divisor_value": 4, "size": "num_tokens", "size_value": 6},
        ),
        (
            lambda: AbmilpProbe(0, 3),
            "probes.sizes_not_positive",
            {"head": "AbmilpProbe", "sizes": "embed_dim 0, num_classes 3"},
        ),
        (
            lambda: EpProbe(12, 4, 3, reduction=2),
            "probes.ep_slices",
            {"embed_dim": 12, "num_heads": 4, "reduction": 2},
        ),
        (
            lambda: AlfEmbedProbe(4, 5, 3, 6, 3),
            "probes.more_heads_than_channels",
            {"head": "AlfEmbedProbe", "embed_dim": 4, "num_heads": 5},
        ),
    ],
)
def test_sizes_that_make_no_head_are_refused(
    make: Callable[[], HeadModule], key: str, values: dict[str, object]
) -> None:
    with raises(key, SettingError, **values):
        make()


def test_a_head_has_the_numbers_that_its_kind_needs() -> None:
    with raises("layerbank.unknown_part", noun="head", name="alff", advice="Choose one of them."):
        Head(kind="alff")
    with raises("probes.head_numbers", SettingError, head="cae", heads_rule=">= 1", levels_rule="0", num_heads=0):
        Head(kind="cae")
    with raises("probes.head_numbers", SettingError, heads_rule="0", levels_rule=">= 1", num_heads=2, num_levels=3):
        Head(kind="scalar-mix", num_heads=2, num_levels=3)


def test_knn_cannot_be_made_without_its_training_tokens() -> None:
    with pytest.raises(ValueError, match="knn keeps its training tokens"):
        make_untrained(Head(kind="knn"), (12,), 3)
