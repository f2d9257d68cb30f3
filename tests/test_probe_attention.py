"""What a run keeps of where its probe looks: every number again from the plain attention, in a few naive lines."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from layerbank.models.layers import layer_set
from layerbank.probes import ArraySource, AttentiveProbe, stack_tokens
from layerbank.probing.attention import THIRDS, keep_attention, third_of_depth
from layerbank.probing.probe_spec import ProbeSpec, parse_probe

N, D, H = 23, 16, 3
IDS = [f"häuser/{number}.png" for number in range(N)]


@pytest.fixture(scope="module")
def named() -> ProbeSpec:
    return parse_probe("alf-grid2-quarterly", 12)  # block.3, block.6, block.9, final x cls, grid2


@pytest.fixture(scope="module")
def attention() -> np.ndarray[Any, Any]:
    """[N, H, 4 levels x (1 + 4) tokens]."""
    probe, source = make()
    return probe.attention(source.tokens).detach().double().numpy()


@pytest.fixture(scope="module")
def kept(named: ProbeSpec, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("row")
    return folder, keep_attention(*make(), named, [1, 4], IDS, folder, "alf-grid2-quarterly on nothing")


def make() -> tuple[AttentiveProbe, ArraySource]:
    probe = AttentiveProbe(D, H, 3, seed=1)
    with torch.no_grad():
        probe.query.normal_(generator=torch.Generator().manual_seed(2))
        probe.to_k.weight.mul_(15)
    tokens = torch.randn(N, 20, D, generator=torch.Generator().manual_seed(0))
    return probe, ArraySource(stack_tokens([tokens]), torch.zeros(N, dtype=torch.int64), 3)


def test_the_key_numbers_are_those_of_naive_lines(
    kept: tuple[Path, dict[str, Any]], attention: np.ndarray[Any, Any]
) -> None:
    found = kept[1]
    mean = attention.mean(1)  # [N, 20]
    cls = mean[:, [0, 5, 10, 15]].sum(1)
    entropy = np.array([-sum(p * math.log(p) for p in image) for image in mean])
    wanted = {
        "entropy": entropy,
        "effective_tokens": np.exp(entropy),
        "mass_80": np.array([1 + (np.cumsum(sorted(image, reverse=True)) < 0.8).sum() for image in mean]),
        "entropy_of_a_head": np.array(
            [np.mean([-sum(p * math.log(p) for p in head if p) for head in image]) for image in attention]
        ),
    }
    for name, values in wanted.items():
        assert found[name] == pytest.approx({"mean": values.mean(), "std": values.std()}), name
    assert found["share_of_kind"]["cls"] == pytest.approx({"mean": cls.mean(), "std": cls.std()})
    assert found["share_of_kind"]["grid2"]["mean"] == pytest.approx(1 - cls.mean())
    thirds = {"early": mean[:, :5], "middle": mean[:, 5:10], "late": mean[:, 10:]}  # 3 | 6 | 9 and final, of 12 blocks
    for third, tokens in thirds.items():
        values = tokens.sum(1)
        assert found["share_of_third"][third] == pytest.approx({"mean": values.mean(), "std": values.std()})


def test_the_files_hold_every_head_and_every_image(
    kept: tuple[Path, dict[str, Any]], attention: np.ndarray[Any, Any], named: ProbeSpec
) -> None:
    folder, found = kept
    assert sorted(path.name for path in folder.iterdir()) == [
        "attention.csv",
        "attention.json",
        "attention.npz",
        "attention.png",
    ]
    stated = json.loads((folder / "attention.json").read_text())
    assert {name: stated[name] for name in found} == json.loads(json.dumps(found))
    assert (stated["levels"], stated["kinds"], stated["num_samples"]) == (list(named.levels), ["cls", "grid2"], N)
    by_group = attention.reshape(N, H, 4, 5)
    by_group = np.stack([by_group[..., 0], by_group[..., 1:].sum(3)], 3)  # [N, H, L, K]
    for head, record in enumerate(stated["heads"]):
        np.testing.assert_allclose(record["mass"], by_group[:, head].mean(0), atol=1e-9)
        entropy = [-sum(p * math.log(p) for p in image[head] if p) for image in attention]
        assert record["entropy"]["mean"] == pytest.approx(np.mean(entropy))
    with np.load(folder / "attention.npz", allow_pickle=False) as arrays:
        assert arrays["sample_ids"].tolist() == IDS
        np.testing.assert_allclose(arrays["mass"], by_group.mean(1), atol=1e-6)
        np.testing.assert_allclose(arrays["mass_of_head"], by_group.mean(0), atol=1e-9)
        np.testing.assert_allclose(arrays["mass_of_token"], attention.mean(0), atol=1e-9)
        assert arrays["entropy"].mean() == pytest.approx(found["entropy"]["mean"], rel=1e-5)
        assert arrays["mass_80"].mean() == pytest.approx(found["mass_80"]["mean"])
    with (folder / "attention.csv").open(newline="") as file:
        for line in csv.DictReader(file):
            of_images = by_group.mean(1)[:, named.levels.index(line["level"]), named.kinds.index(line["kind"])]
            assert float(line["share"]) == pytest.approx(of_images.mean(), abs=1e-6)
            assert float(line["std"]) == pytest.approx(of_images.std(), abs=1e-6)


@pytest.mark.parametrize("depth", [12, 24])
def test_the_set_of_all_levels_falls_into_three_equal_thirds(depth: int) -> None:
    levels = layer_set("all", depth)
    assert [third_of_depth(level, depth) for level in levels] == [third for third in THIRDS for _ in range(depth // 3)]


def test_without_a_depth_there_are_no_thirds(tmp_path: Path) -> None:
    named = ProbeSpec(name="mine", head="attentive", levels=("final",), kinds=("patch",))
    assert keep_attention(*make(), named, [20], IDS, tmp_path, "mine")["share_of_third"] is None
