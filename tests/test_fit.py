"""Training many probes together is training each alone; schedule, jitter, clipping are the protocol's."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from fits import GRID, PROTOCOL, ROWS, largest_difference, make_probe, make_source
from messages import raises
from torch import Tensor, nn

from layerbank.probes.banks.bank import AttentiveBank, Bank
from layerbank.probes.banks.linear_bank import LinearBank
from layerbank.probes.banks.stack import AdamW, Stack
from layerbank.probes.data.rows import add_jitter
from layerbank.probes.data.token_source import ArraySource
from layerbank.probes.errors import SettingError
from layerbank.probes.events import Progress
from layerbank.probes.fit import cosine_lr, fit_bank
from layerbank.probes.heads.linear import LinearProbe
from layerbank.probes.protocol import Setting, TrainingProtocol
from layerbank.probes.seeds import make_generator
from layerbank.probes.tasks import Task
from layerbank.probes.tasks.multiclass import class_weights


def make_bank(kind: str, settings: list[Setting], seeds: list[int], dtype: torch.dtype = torch.float32) -> Bank:
    probes: list[Any] = [make_probe(kind, seed) for seed in seeds]
    if kind == "attentive":
        dropouts = [setting.dropout for setting in settings]
        return AttentiveBank(probes, dropouts, dtype=dtype, group_size=3, chunk_size=16)
    return LinearBank(probes, dtype=dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("kind", ["attentive", "linear"])
def test_training_together_is_training_alone(kind: str, dtype: torch.dtype, tolerance: float) -> None:
    source, seeds = make_source(kind), [0, 0, 0, 0, 1, 1, 2, 2]
    together = make_bank(kind, GRID, seeds, dtype)
    assert fit_bank(together, source, ROWS, GRID, PROTOCOL).plan.num_steps == 50
    for index, setting in enumerate(GRID):
        alone = make_bank(kind, [setting], seeds[index : index + 1], dtype)
        fit_bank(alone, source, ROWS, [setting], PROTOCOL)
        assert largest_difference(together.probe(index), alone.probe(0)) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_at_a_large_learning_rate_the_first_steps_are_equal(dtype: torch.dtype, tolerance: float) -> None:
    """Training at 0.1 is chaotic: a last bit grows tenfold within a few steps, so only the first five can be compared."""
    source = make_source("attentive")
    settings = [Setting(lr=0.1, weight_decay=0.1, dropout=rate) for rate in (0.0, 0.1, 0.3) * 3]
    together = make_bank("attentive", settings, [0] * 9, dtype)
    fit_bank(together, source, ROWS, settings, PROTOCOL, max_steps=5)
    for index in range(3):
        alone = make_bank("attentive", settings[index : index + 1], [0], dtype)
        fit_bank(alone, source, ROWS, settings[index : index + 1], PROTOCOL, max_steps=5)
        assert largest_difference(together.probe(index), alone.probe(0)) < tolerance


def train_plainly(kind: str, probe: nn.Module, source: ArraySource, setting: Setting) -> nn.Module:
    """The protocol as anyone would write it: one module, autograd, torch's AdamW, scheduler, clipping and
    loss."""
    probe = probe.double().train()
    optimizer = torch.optim.AdamW(probe.parameters(), lr=setting.lr, weight_decay=setting.weight_decay)
    plan = fit_bank(make_bank(kind, [setting], [0]), source, ROWS, [setting], PROTOCOL, max_steps=1).plan
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, plan.num_steps, eta_min=PROTOCOL.min_lr)
    loss_of = nn.CrossEntropyLoss(weight=class_weights(source.targets, 4))
    zero = {"norm_k.bias", "proj.bias"} | ({"norm_v.bias"} if setting.dropout == 0 else set())
    for step, batch in enumerate(plan.batches(PROTOCOL.seed)):
        tokens = source.take(batch)
        add_jitter(tokens, PROTOCOL, step)
        inputs = [tokens.double()]
        if setting.dropout > 0:
            generator = make_generator(PROTOCOL.seed, "attention dropout", 4, step)
            noise = torch.rand(len(batch), 5, 4, generator=generator)
            inputs.append(((noise >= setting.dropout).double() / (1 - setting.dropout)).transpose(1, 2))
        optimizer.zero_grad()
        loss_of(probe(*inputs), source.targets[batch]).backward()
        for name, parameter in probe.named_parameters():
            if name in zero and parameter.grad is not None:
                parameter.grad.zero_()  # rounding noise, of which AdamW would make steps of size lr
        nn.utils.clip_grad_norm_(probe.parameters(), PROTOCOL.clip_norm)
        optimizer.step()
        schedule.step()
    return probe


@pytest.mark.parametrize("setting", GRID[:3])
def test_training_an_attentive_bank_is_training_the_plain_module(setting: Setting) -> None:
    source = make_source("attentive")
    bank = make_bank("attentive", GRID, [0] * len(GRID), torch.float64)
    fit_bank(bank, source, ROWS, GRID, PROTOCOL)
    plain = train_plainly("attentive", make_probe("attentive", 0), source, setting)
    assert largest_difference(bank.probe(GRID.index(setting)), plain) < 1e-9


def test_training_a_linear_bank_is_training_the_plain_module() -> None:
    source = make_source("linear")
    settings = [Setting(lr=1e-2, weight_decay=0.1), Setting(lr=1e-3, weight_decay=1e-4)]
    bank = make_bank("linear", settings, [0, 0], torch.float64)
    fit_bank(bank, source, ROWS, settings, PROTOCOL)
    for index, setting in enumerate(settings):
        plain = train_plainly("linear", make_probe("linear", 0), source, setting)
        assert largest_difference(bank.probe(index), plain) < 1e-9


@pytest.mark.parametrize("kind", ["attentive", "linear"])
def test_a_probe_that_diverges_changes_no_bit_of_its_neighbours(kind: str) -> None:
    source = make_source(kind)
    wild = [*GRID[:3], Setting(lr=1e38, weight_decay=1.0, dropout=0.3), *GRID[4:]]
    calm_bank, wild_bank = make_bank(kind, GRID, [0] * 8), make_bank(kind, wild, [0] * 8)
    calm, outcome = (
        fit_bank(bank, source, ROWS, settings, PROTOCOL) for bank, settings in ((calm_bank, GRID), (wild_bank, wild))
    )
    assert not calm.diverged.any()
    assert outcome.diverged.nonzero().flatten().tolist() == [3]
    for index in (0, 1, 2, 4, 5, 6, 7):
        untouched, beside = calm_bank.probe(index).state_dict(), wild_bank.probe(index).state_dict()
        assert all(torch.equal(untouched[name], beside[name]) for name in untouched)


@pytest.mark.parametrize("kind", ["attentive", "linear"])
def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(kind: str) -> None:
    source = make_source(kind)
    banks = [make_bank(kind, GRID, [0] * 8) for _ in range(3)]
    for bank, seed in zip(banks, (0, 0, 1), strict=True):
        torch.rand(3)  # the global generator does not matter
        fit_bank(bank, source, ROWS, GRID, TrainingProtocol(epochs=2, min_steps=0, batch_size=40, seed=seed))
    one, again, other = (bank.probe(1).state_dict() for bank in banks)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["classifier.weight"], other["classifier.weight"])


def test_training_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    fit_bank(make_bank("attentive", GRID, [0] * 8), make_source("attentive"), ROWS, GRID, PROTOCOL, max_steps=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_zero_gradients_leave_only_weight_decay() -> None:
    bank = make_bank("attentive", GRID[:1], [0], torch.float64)
    before = bank.probe(0).state_dict()["proj.bias"]
    fit_bank(bank, make_source("attentive"), ROWS, GRID[:1], PROTOCOL)
    after = bank.probe(0).state_dict()
    assert not after["norm_k.bias"].any()
    assert not after["norm_v.bias"].any()
    rates = [cosine_lr(step, 50, GRID[0].lr, PROTOCOL.min_lr) for step in range(50)]
    decay = torch.tensor(rates, dtype=torch.float64).mul(-GRID[0].weight_decay).add(1).prod()
    torch.testing.assert_close(after["proj.bias"], before * decay)


def test_each_probe_is_clipped_by_its_own_norm() -> None:
    settings = [GRID[0]] * 2
    for clip_norm in (1e-3, float("inf")):
        protocol = TrainingProtocol(epochs=1, min_steps=0, batch_size=40, clip_norm=clip_norm)
        bank = make_bank("attentive", settings, [0, 1])
        fit_bank(bank, make_source("attentive"), ROWS, settings, protocol, max_steps=1)
        for row in range(2):
            norm = torch.cat([grad[row].flatten() for grad in bank.stacks[0].grads.values()]).norm().item()
            assert norm == pytest.approx(1e-3, rel=1e-2) if clip_norm == 1e-3 else norm > 1e-2


def test_jitter_hits_half_of_the_samples_wholly_with_the_given_deviation() -> None:
    protocol = TrainingProtocol()
    tokens = torch.zeros(4000, 6, 10)
    add_jitter(tokens, protocol, step=7)
    hit = tokens.flatten(1).ne(0)
    assert hit.any(1).float().mean().item() == pytest.approx(0.5, abs=0.04)
    assert torch.equal(hit.any(1), hit.all(1))
    noise = tokens[hit.any(1)]
    assert noise.std().item() == pytest.approx(0.05, rel=0.02)
    assert noise.mean().item() == pytest.approx(0, abs=1e-3)
    another = torch.zeros(4000, 6, 10)
    add_jitter(another, protocol, step=8)
    assert not torch.equal(another, tokens)


def test_without_deviation_or_probability_nothing_is_jittered() -> None:
    for protocol in (TrainingProtocol(jitter_std=0.0), TrainingProtocol(jitter_probability=0.0)):
        tokens = torch.ones(50, 3)
        add_jitter(tokens, protocol, step=0)
        assert tokens.eq(1).all()


def test_training_does_not_write_into_the_source() -> None:
    source = make_source("attentive")
    before = source.tokens.clone()
    fit_bank(make_bank("attentive", GRID, [0] * 8), source, ROWS, GRID, PROTOCOL, max_steps=3)
    assert torch.equal(source.tokens, before)


def test_the_cosine_is_the_one_of_torch() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30, eta_min=1e-6)
    for step in range(30):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(cosine_lr(step, 30, 0.1, 1e-6), rel=1e-9)
        optimizer.step()
        schedule.step()


def test_progress_is_reported_first_last_and_a_few_times_a_second() -> None:
    events: list[Progress] = []
    bank = make_bank("linear", GRID, [0] * 8)
    fit_bank(bank, make_source("linear"), ROWS, GRID, PROTOCOL, phase="select", on_event=events.append)
    assert [events[0].step, events[-1].step] == [0, 50]
    assert {(event.phase, event.num_steps, event.num_probes) for event in events} == {("select", 50, 8)}
    assert events[0].loss is None
    assert 0 < (events[-1].loss or 0) < 2
    assert len(events) < 10


def test_a_bank_needs_one_setting_a_probe() -> None:
    with raises("probes.wrong_num_settings", SettingError, num_probes=8, num_settings=2):
        fit_bank(make_bank("linear", GRID, [0] * 8), make_source("linear"), ROWS, GRID[:2], PROTOCOL)


def test_tokens_reach_the_bank_in_the_order_of_the_plan() -> None:
    """The labels and the tokens of a step belong to the same rows, also for a subset of the rows."""
    seen: list[tuple[Tensor, Tensor]] = []

    class Watcher(LinearBank):
        def compute_gradients(
            self, tokens: Tensor, targets: Tensor, weights: Tensor, noise: dict[int, Tensor], task: Task
        ) -> Tensor:
            seen.append((tokens[:, 0].long(), targets))
            return super().compute_gradients(tokens, targets, weights, noise, task)

    labels = torch.arange(100) % 7
    source = ArraySource(labels.float().view(-1, 1), labels, 7)
    rows = torch.arange(0, 100, 3)
    protocol = TrainingProtocol(epochs=2, min_steps=0, batch_size=7, jitter_std=0.0)
    outcome = fit_bank(Watcher([LinearProbe(1, 7)]), source, rows, GRID[:1], protocol)
    assert all(torch.equal(tokens, labels) for tokens, labels in seen)
    expected = list(islice(outcome.plan.batches(0), 2))
    assert torch.equal(seen[1][1], labels[rows[expected[1]]])


def test_the_fused_kernel_called_directly_gives_the_bits_of_torchs_optimiser() -> None:
    modules = [make_probe("linear", seed) for seed in range(3)]
    settings = [
        Setting(lr=1e-1, weight_decay=1.0),
        Setting(lr=1e-3, weight_decay=0.0),
        Setting(lr=1e-1, weight_decay=1.0),
    ]
    stack = Stack(modules, range(3), torch.float32, torch.device("cpu"))
    optimizer = AdamW([stack], settings)
    theirs = [
        torch.optim.AdamW(module.parameters(), lr=one.lr, weight_decay=one.weight_decay, fused=True)
        for module, one in zip(modules, settings, strict=True)
    ]
    generator = torch.Generator().manual_seed(0)
    for step in range(5):
        for grad in stack.grads.values():
            grad.normal_(generator=generator)
        for row, (module, other) in enumerate(zip(modules, theirs, strict=True)):
            for name, parameter in module.named_parameters():
                parameter.grad = stack.grads[name][row].clone()
            other.param_groups[0]["lr"] = settings[row].lr / (step + 1)
            other.step()
        optimizer.step({one.lr: one.lr / (step + 1) for one in settings})
    for row, module in enumerate(modules):
        assert all(torch.equal(parameter, stack.values[name][row]) for name, parameter in module.named_parameters())
