"""Where probes look, in numbers: every statistic equals a few naive lines over images, heads and tokens."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from layerbank.probes import (
    AlfEmbedProbe,
    ArraySource,
    AttentiveProbe,
    CaeProbe,
    FusionHead,
    attention_mass,
    attention_statistics,
    stack_tokens,
)
from layerbank.probes.attention import entropy, mass_80

N, T, D, H = 37, 6, 12, 4
GROUPS = torch.tensor([0, 1, 1, 2, 3, 3])  # two levels, of which each has a cls and two cells

MAKERS: dict[str, Callable[[], FusionHead]] = {
    "attentive": lambda: AttentiveProbe(D, H, 3, seed=1),
    "cae": lambda: CaeProbe(D, H, 3, seed=1),
    "alf-embed": lambda: AlfEmbedProbe(D, H, 2, T, 3, seed=1),
}


def make_source(num_samples: int = N) -> ArraySource:
    tokens = torch.randn(num_samples, T, D, generator=torch.Generator().manual_seed(0))
    return ArraySource(stack_tokens([tokens]), torch.zeros(num_samples, dtype=torch.int64), 3)


def make_probe(kind: str) -> FusionHead:
    """With a query large enough that attention is far from even."""
    probe = MAKERS[kind]()
    with torch.no_grad():
        probe.query.normal_(generator=torch.Generator().manual_seed(2))
        probe.to_k.weight.mul_(20)
    return probe


@pytest.mark.parametrize("kind", list(MAKERS))
def test_every_statistic_is_that_of_a_few_naive_lines(kind: str) -> None:
    probe, source = make_probe(kind), make_source()
    found = attention_statistics(probe, source, GROUPS)
    attention = probe.attention(source.tokens).detach().double()  # [N, H, T]

    def naive_entropy(p: list[float]) -> float:
        return -sum(x * math.log(x) for x in p if x > 0)

    def naive_mass_80(p: list[float]) -> int:
        return next(k for k in range(1, T + 1) if sum(sorted(p)[-k:]) >= 0.8 - 1e-6)

    for image in range(N):
        mean = [sum(attention[image, head, token].item() for head in range(H)) / H for token in range(T)]
        for group in range(4):
            wanted = sum(mean[token] for token in range(T) if GROUPS[token] == group)
            assert found.mass[image, group].item() == pytest.approx(wanted, abs=1e-9)
        assert found.entropy[image].item() == pytest.approx(naive_entropy(mean))
        assert found.mass_80[image].item() == naive_mass_80(mean)
        for head in range(H):
            row = attention[image, head].tolist()
            assert found.entropy_of_head[image, head].item() == pytest.approx(naive_entropy(row), abs=1e-9)
            assert found.mass_80_of_head[image, head].item() == naive_mass_80(row)
    assert len({*found.mass_80.tolist()}) > 1, "a case that tells the images apart"
    torch.testing.assert_close(found.mass_of_token, attention.mean(0))
    of_groups = [attention[:, :, group == GROUPS].sum(2).mean(0) for group in range(4)]
    torch.testing.assert_close(found.mass_of_head, torch.stack(of_groups, 1))


def test_shares_sum_to_one_and_what_is_averaged_differently_agrees() -> None:
    found = attention_statistics(make_probe("attentive"), make_source(), GROUPS)
    torch.testing.assert_close(found.mass.sum(1), torch.ones(N, dtype=torch.float64), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.mass.mean(0), found.mass_of_head.mean(0))
    assert (found.entropy >= found.entropy_of_head.mean(1) - 1e-9).all(), "entropy is concave"


def test_images_are_read_in_parts_that_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    probe, source = make_probe("attentive"), make_source()
    whole = attention_statistics(probe, source, GROUPS)
    monkeypatch.setattr("layerbank.probes.attention.BATCH", 5)
    parts = attention_statistics(probe, source, GROUPS)
    for name in ("mass", "entropy", "mass_80", "mass_of_head", "mass_of_token", "entropy_of_head", "mass_80_of_head"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(attention_mass(probe, source), whole.mass_of_token)


def test_one_token_or_all_alike_are_the_ends_of_the_scale() -> None:
    one, even = torch.tensor([0.0, 1.0, 0.0, 0.0]), torch.full((10,), 0.1)
    assert (entropy(one).item(), mass_80(one).item()) == (0, 1)
    assert entropy(even).exp().item() == pytest.approx(10)
    assert mass_80(even).item() == 8
