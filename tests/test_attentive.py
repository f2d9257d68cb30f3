"""The reading copy is the equation, with the parameters the paper counts."""

from __future__ import annotations

import pytest
import torch
from messages import raises
from torch.nn.functional import layer_norm

from layerbank.probes.attention import attention_mass
from layerbank.probes.data.token_source import ArraySource, stack_tokens
from layerbank.probes.errors import DataError, SettingError
from layerbank.probes.heads.attentive import AttentiveProbe
from layerbank.probes.heads.linear import LinearProbe


@pytest.mark.parametrize(
    ("embed_dim", "num_heads", "count"), [(384, 24, 1_183_488), (768, 24, 4_726_272), (1024, 48, 8_267_776)]
)
def test_parameters_before_the_classifier_are_those_of_the_paper(embed_dim: int, num_heads: int, count: int) -> None:
    probe = AttentiveProbe(embed_dim, num_heads, 10)
    inner_dim = num_heads * 2 * (embed_dim // num_heads)
    assert count == 4 * embed_dim * inner_dim + 10 * embed_dim
    counted = sum(parameter.numel() for parameter in probe.parameters())
    assert counted - 10 * (embed_dim + 1) == count


def test_the_module_is_the_equation_written_head_by_head() -> None:
    """Against loops over samples and heads, without batching or einsum."""
    probe = AttentiveProbe(10, 3, 4, seed=1).double().eval()
    tokens = stack_tokens([torch.randn(5, 6, 10, generator=torch.Generator().manual_seed(0))]).double()
    head_dim = 6  # 2 floor(10/3)
    query = probe.to_q.weight @ layer_norm(probe.query[0], (10,))
    expected = torch.zeros(5, 4, dtype=torch.float64)
    for sample in range(5):
        heads = []
        for head in range(3):
            rows = slice(head * head_dim, (head + 1) * head_dim)
            keys = layer_norm(tokens[sample], (10,)) @ probe.to_k.weight[rows].T
            values = layer_norm(tokens[sample], (10,)) @ probe.to_v.weight[rows].T
            attention = torch.softmax(keys @ query[rows] / head_dim**0.5, 0)
            torch.testing.assert_close(attention, probe.attention(tokens)[sample, head])
            heads.append(attention @ values)
        y = probe.proj.weight @ torch.cat(heads) + probe.proj.bias
        y = y / (1 + 1e-5) ** 0.5  # BatchNorm that has seen nothing
        expected[sample] = probe.classifier.weight @ y + probe.classifier.bias
    torch.testing.assert_close(probe(tokens), expected)


def test_initial_weights_are_those_of_torch_and_depend_on_the_seed_alone() -> None:
    one, again, other = (AttentiveProbe(64, 4, 5, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    assert not torch.equal(one.to_q.weight, other.to_q.weight)
    assert one.query.std().item() == pytest.approx(0.02, rel=0.3)
    assert one.to_q.weight.abs().max().item() == pytest.approx(64**-0.5, rel=1e-2)
    assert one.proj.bias.abs().max().item() == pytest.approx(128**-0.5, rel=0.2)
    assert one.norm_k.weight.eq(1).all()
    assert not one.norm_k.bias.any()


def test_making_a_probe_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    AttentiveProbe(12, 3, 4)
    LinearProbe(12, 4)
    assert torch.equal(torch.get_rng_state(), before)


def test_attention_mass_is_the_mean_over_images_and_sums_to_one() -> None:
    probe = AttentiveProbe(12, 3, 4)
    tokens = stack_tokens([torch.randn(600, 5, 12, generator=torch.Generator().manual_seed(0))])
    mass = attention_mass(probe, ArraySource(tokens, torch.zeros(600, dtype=torch.int64), 4))
    assert mass.shape == (3, 5)
    torch.testing.assert_close(mass.sum(1), torch.ones(3, dtype=torch.float64), rtol=1e-6, atol=0)
    torch.testing.assert_close(mass, probe.attention(tokens).detach().double().mean(0), rtol=1e-6, atol=0)


def test_attention_of_no_images_is_refused() -> None:
    source = ArraySource(torch.zeros(0, 5, 12), torch.zeros(0, dtype=torch.int64), 4)
    with raises("probes.no_images_for_attention", DataError):
        attention_mass(AttentiveProbe(12, 3, 4), source)


def test_sizes_that_make_no_probe_are_refused() -> None:
    with raises("probes.more_heads_than_channels", SettingError, head="AttentiveProbe", num_heads=9, embed_dim=8):
        AttentiveProbe(8, 9, 3)
    with raises("probes.sizes_not_positive", SettingError, sizes="embed_dim 8, num_heads 2, num_classes 0"):
        AttentiveProbe(8, 2, 0)
    with raises("probes.sizes_not_positive", SettingError, sizes="num_features 0, num_classes 3"):
        LinearProbe(0, 3)


@pytest.mark.parametrize(
    ("mask", "dtype", "shape", "num_tokens"),
    [
        (torch.zeros(3, dtype=torch.bool), "torch.bool", "[3]", 0),
        (torch.ones(3), "torch.float32", "[3]", 3),
        (torch.ones(1, 3, dtype=torch.bool), "torch.bool", "[1, 3]", 3),
    ],
)
def test_a_mask_without_tokens_is_refused(mask: torch.Tensor, dtype: str, shape: str, num_tokens: int) -> None:
    with raises("probes.token_mask", SettingError, dtype=dtype, shape=shape, num_tokens=num_tokens):
        AttentiveProbe(8, 2, 3, token_mask=mask)
