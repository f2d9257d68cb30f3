"""A bank of P probes is P lone probes: the same function and the same gradients, whatever the grouping."""

from __future__ import annotations

import pytest
import torch
from messages import raises
from torch import Tensor

from layerbank.probes.banks.bank import AttentiveBank
from layerbank.probes.banks.linear_bank import LinearBank
from layerbank.probes.errors import SettingError
from layerbank.probes.heads.attentive import AttentiveProbe
from layerbank.probes.heads.linear import LinearProbe
from layerbank.probes.tasks.multiclass import TASK

ZERO_GRADIENT = {"norm_k.bias", "proj.bias"}  # softmax and BatchNorm remove them


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_probe(
    embed_dim: int, num_heads: int, num_classes: int, seed: int, mask: Tensor | None = None
) -> AttentiveProbe:
    """A probe whose every parameter is far from its initial value, so that no term of a gradient vanishes."""
    probe = AttentiveProbe(embed_dim, num_heads, num_classes, seed=seed, token_mask=mask).double()
    with torch.no_grad():
        for number, parameter in enumerate(probe.parameters()):
            parameter.add_(draw(*parameter.shape, seed=1000 * seed + number), alpha=0.3)
    return probe


def sample_weights(labels: Tensor) -> Tensor:
    weights = 0.5 + torch.arange(len(labels), dtype=torch.float64) % 3
    return weights / weights.sum()


def plain_gradients(
    probe: torch.nn.Module, tokens: Tensor, labels: Tensor, keep: Tensor | None
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    probe.train()
    logits = probe(tokens) if keep is None else probe(tokens, keep)
    nll = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    loss = (nll * sample_weights(labels)).sum()
    names, parameters = zip(*probe.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, parameters)
    return logits.detach(), loss.detach(), dict(zip(names, gradients, strict=True))


def keep_mask(noise: Tensor, rate: float) -> Tensor | None:
    return None if rate == 0 else ((noise >= rate).double() / (1 - rate)).transpose(1, 2)


def assert_bank_equals_modules(
    probes: list[AttentiveProbe], rates: list[float], tokens: Tensor, num_classes: int, **grouping: int
) -> None:
    batch = len(tokens)
    labels = torch.arange(batch) % num_classes
    noise = {
        heads: draw(batch, tokens.shape[1], heads, seed=heads).abs().remainder(1).float()
        for heads in {probe.num_heads for probe in probes}
    }
    bank = AttentiveBank(probes, rates, dtype=torch.float64, **grouping)
    losses = bank.compute_gradients(tokens, labels, sample_weights(labels), noise, TASK)
    rows = {member: (stack, row) for stack in bank.stacks for row, member in enumerate(stack.members)}
    for index, (probe, rate) in enumerate(zip(probes, rates, strict=True)):
        _, loss, gradients = plain_gradients(probe, tokens, labels, keep_mask(noise[probe.num_heads], rate))
        stack, row = rows[index]
        torch.testing.assert_close(losses[index], loss, rtol=1e-10, atol=1e-10)
        for name, gradient in gradients.items():
            torch.testing.assert_close(
                stack.grads[name][row], gradient, rtol=1e-10, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}"
            )
        for name, statistic in stack.statistics.items():
            torch.testing.assert_close(statistic[row], probe.get_buffer(name), rtol=1e-10, atol=1e-10)
    logits = bank.logits(tokens)
    for index, probe in enumerate(probes):
        torch.testing.assert_close(logits[index], probe.eval()(tokens).detach(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rates", [[0.0] * 7, [0.3] * 7, [0.0, 0.3, 0.1, 0.3, 0.0, 0.1, 0.3]])
@pytest.mark.parametrize(("group_size", "chunk_size"), [(1000, 1000), (2, 5), (1, 1), (3, 7)])
def test_outputs_and_gradients_equal_the_plain_module_probe_by_probe(
    rates: list[float], group_size: int, chunk_size: int
) -> None:
    probes = [make_probe(12, 4, 3, seed) for seed in range(7)]
    assert_bank_equals_modules(probes, rates, draw(11, 6, 12), 3, group_size=group_size, chunk_size=chunk_size)


@pytest.mark.parametrize(("group_size", "chunk_size"), [(1000, 1000), (3, 5)])
def test_probes_of_different_dropout_rates_are_computed_together(group_size: int, chunk_size: int) -> None:
    probes = [make_probe(12, 4, 3, seed) for seed in range(7)]
    rates = [0.0, 0.3, 0.1, 0.3, 0.0, 0.1, 0.3]
    grouping = {"group_size": group_size, "chunk_size": chunk_size, "mixed_dropout": True}
    assert_bank_equals_modules(probes, rates, draw(11, 6, 12), 3, **grouping)
    bank = AttentiveBank(probes, rates, group_size=1000, mixed_dropout=True)
    labels = torch.arange(9) % 3
    bank.compute_gradients(
        draw(9, 6, 12).float(), labels, sample_weights(labels).float(), {4: draw(9, 6, 4).float()}, TASK
    )
    (stack,) = bank.stacks
    is_zero = (stack.grads["norm_v.bias"] == 0).all(1)
    assert is_zero.tolist() == [rate == 0 for rate in rates]


@pytest.mark.parametrize(("embed_dim", "num_heads"), [(10, 3), (7, 2), (9, 9), (5, 1)])
def test_heads_that_do_not_divide_the_width_are_equal_too(embed_dim: int, num_heads: int) -> None:
    probes = [make_probe(embed_dim, num_heads, 4, seed) for seed in range(7)]
    assert_bank_equals_modules(probes, [0.0, 0.2] * 3 + [0.2], draw(9, 5, embed_dim), 4, chunk_size=4)


def test_probes_with_different_numbers_of_heads_share_a_bank() -> None:
    probes = [make_probe(12, heads, 3, seed) for seed, heads in enumerate([4, 2, 5, 4, 2, 5, 1])]
    assert_bank_equals_modules(probes, [0.1, 0.0, 0.1, 0.0, 0.3, 0.1, 0.0], draw(8, 6, 12), 3, group_size=2)


def test_zero_padding_is_part_of_the_width() -> None:
    tokens = draw(9, 6, 12)
    tokens[:, 3:, 8:] = 0
    tokens[0, 1] = 0  # a token without any content
    assert_bank_equals_modules([make_probe(12, 4, 3, seed) for seed in range(7)], [0.0] * 7, tokens, 3)


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_a_token_mask_is_the_same_as_leaving_the_tokens_out(rate: float) -> None:
    masks = [torch.arange(6) % 3 != skipped for skipped in range(3)]
    masks += [torch.arange(6) == 5, torch.ones(6, dtype=torch.bool)]
    probes = [make_probe(12, 4, 3, seed, mask) for seed, mask in enumerate(masks)]
    probes += [make_probe(12, 4, 3, seed) for seed in (5, 6)]
    tokens = draw(9, 6, 12)
    assert_bank_equals_modules(probes, [rate] * 7, tokens, 3, group_size=3, chunk_size=4)
    masked, unmasked = make_probe(12, 4, 3, 0, masks[0]).eval(), make_probe(12, 4, 3, 0).eval()
    torch.testing.assert_close(masked(tokens), unmasked(tokens[:, masks[0]]))


def test_parameters_that_cannot_matter_have_gradient_zero_exactly() -> None:
    probes = [make_probe(12, 4, 3, seed) for seed in range(4)]
    bank = AttentiveBank(probes, [0.0, 0.0, 0.5, 0.5])
    labels = torch.arange(9) % 3
    bank.compute_gradients(draw(9, 6, 12), labels, sample_weights(labels).float(), {4: torch.rand(9, 6, 4)}, TASK)
    for stack in bank.stacks:
        zero = {name for name, gradient in stack.grads.items() if not gradient.any()}
        assert zero == ZERO_GRADIENT | ({"norm_v.bias"} if stack.members == (0, 1) else set())


def test_linear_bank_equals_the_plain_module_probe_by_probe() -> None:
    probes = [LinearProbe(13, 5, seed=seed).double() for seed in range(7)]
    tokens, labels = draw(9, 13), torch.arange(9) % 5
    bank = LinearBank(probes, dtype=torch.float64)
    losses = bank.compute_gradients(tokens, labels, sample_weights(labels), {}, TASK)
    for index, probe in enumerate(probes):
        logits, loss, gradients = plain_gradients(probe, tokens, labels, None)
        torch.testing.assert_close(losses[index], loss, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(bank.logits(tokens)[index], logits, rtol=1e-10, atol=1e-10)
        for name, gradient in gradients.items():
            torch.testing.assert_close(bank.stacks[0].grads[name][index], gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("num_probes", [1, 2])
@pytest.mark.parametrize("linear", [True, False])
def test_scores_are_not_overwritten_by_the_next_call(num_probes: int, linear: bool) -> None:
    """Evaluation collects the scores of many calls: a buffer that is used again would repeat the last one's."""
    bank: AttentiveBank | LinearBank
    if linear:
        bank, shape = LinearBank([LinearProbe(6, 3)] * num_probes), (4, 6)
    else:
        bank, shape = AttentiveBank([AttentiveProbe(6, 2, 3)] * num_probes), (4, 5, 6)
    first = bank.logits(torch.randn(shape))
    kept = first.clone()
    bank.logits(torch.randn(shape))
    assert torch.equal(first, kept)


def test_a_probe_comes_back_as_the_plain_module_it_went_in() -> None:
    probes = [make_probe(12, heads, 3, seed) for seed, heads in enumerate([4, 2, 4])]
    bank = AttentiveBank(probes, [0.0, 0.0, 0.1], dtype=torch.float64)
    for index, probe in enumerate(probes):
        returned = bank.probe(index)
        assert isinstance(returned, AttentiveProbe)
        assert returned.num_heads == probe.num_heads
        assert not returned.training
        for name, tensor in probe.state_dict().items():
            assert torch.equal(returned.state_dict()[name], tensor)


def test_scratch_memory_is_stated_and_does_not_grow_with_the_number_of_groups() -> None:
    labels = torch.arange(9) % 3
    sizes = []
    for num_probes in (2, 6):
        bank = AttentiveBank([make_probe(12, 4, 3, 0)] * num_probes, group_size=2, chunk_size=4)
        bank.compute_gradients(draw(9, 6, 12), labels, sample_weights(labels).float(), {}, TASK)
        sizes.append(bank.scratch_bytes)
    assert sizes[0] == sizes[1] > 0


def test_probes_of_different_shapes_are_refused() -> None:
    with raises("probes.mixed_shapes", SettingError, bank="AttentiveBank", shapes=[(10, 3), (12, 3)]):
        AttentiveBank([make_probe(12, 4, 3, 0), make_probe(10, 2, 3, 0)])
    with raises("probes.mixed_shapes", SettingError, bank="LinearBank", shapes=[]):
        LinearBank([])


@pytest.mark.parametrize("rates", [[0.1], [0.1, 1.0], [-0.1, 0.0]])
def test_dropout_rates_that_do_not_fit_are_refused(rates: list[float]) -> None:
    with raises("probes.wrong_dropouts", SettingError, bank="AttentiveBank", num_probes=2, rates=rates):
        AttentiveBank([make_probe(12, 4, 3, 0)] * 2, rates)


def test_token_masks_of_different_lengths_are_refused() -> None:
    masks = [torch.ones(length, dtype=torch.bool) for length in (5, 6)]
    with raises("probes.mixed_mask_lengths", SettingError, lengths=[5, 6]):
        AttentiveBank([make_probe(12, 4, 3, seed, mask) for seed, mask in enumerate(masks)])
