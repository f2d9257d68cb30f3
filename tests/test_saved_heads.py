"""A saved probe read again on a store: the same predictions, attention head by head, and what is left without some tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from extractions import extract
from messages import raises
from photos import VIT_TINY

from layerbank import RequestError, WorkError
from layerbank.data.sources import open_source
from layerbank.extraction.extract import ExtractConfig
from layerbank.models.request import ModelRequest
from layerbank.probes import QUICK, AttentiveProbe
from layerbank.probing.probe import probe
from layerbank.probing.probe_spec import parse_probe
from layerbank.probing.rows.row_files import row_folder
from layerbank.probing.tokens.split_tokens import SplitRequest
from layerbank.report.saved import SavedHead, prune_tokens
from layerbank.statistics.attention import AttentionMap, mean_map, read_attention, spread_of
from layerbank.statistics.predictions import accuracies, read_predictions, require_same_images

KINDS = ("cls", "ap", "grid2")
PROTOCOL = replace(QUICK, lrs=(1e-2,), weight_decays=(1e-4,), epochs=3, min_steps=20)


class Study:
    """Two stores and a few rows on them."""

    def __init__(self, photos: Path, root: Path) -> None:
        self.root = root
        self.train, self.test = (self.store(photos, split, seed=0) for split in ("train", "test"))
        self.foreign = self.store(photos, "test", seed=1)
        names = ("alf", "linear-all", "alf-grid2", "alf-embed")
        named = [parse_probe(name, 12) for name in names]
        rows = probe(self.train, self.test, named, PROTOCOL, root / "runs")
        self.rows: dict[str, dict[str, Any]] = dict(zip(names, rows, strict=True))

    def store(self, photos: Path, split: str, seed: int) -> SplitRequest:
        backbone = ModelRequest(model=VIT_TINY, weights="random", seed=seed, image_size=32).open("cpu")
        arrays = tuple((level, kind) for level in backbone.levels for kind in KINDS)
        config = ExtractConfig(arrays=arrays, batch_size=16, num_workers=0)
        return extract(backbone, open_source(f"folder:{photos}", split), config, self.root / "caches")

    def folder(self, name: str) -> Path:
        return row_folder(self.root / "runs", self.rows[name])


@pytest.fixture(scope="module")
def study(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    return Study(photos, tmp_path_factory.mktemp("study"))


@pytest.mark.parametrize("name", ["alf", "linear-all", "alf-grid2", "alf-embed"])
def test_a_saved_probe_says_again_what_it_said_when_it_was_tested(study: Study, name: str) -> None:
    saved = read_predictions(study.folder(name))
    again = SavedHead(study.folder(name), study.test).predict()
    require_same_images(saved, again)
    np.testing.assert_allclose(again.logits, saved.logits, atol=1e-4)
    metrics = study.rows[name]["test"]
    found = accuracies(saved)
    assert (found.balanced, found.top1, found.top5) == pytest.approx(
        (metrics["balanced_accuracy"], metrics["top1"], metrics["top5"])
    )


def test_it_can_be_asked_about_the_training_images(study: Study) -> None:
    train = SavedHead(study.folder("alf"), study.train).predict()
    assert len(train.labels) == 120
    assert 0 <= accuracies(train).balanced <= 1


def test_attention_to_the_tokens_adds_up_to_the_saved_map(study: Study) -> None:
    saved = read_attention(study.folder("alf-grid2"))
    heads = SavedHead(study.folder("alf-grid2"), study.test).attention().numpy()
    assert heads.shape == (24, 12 * (1 + 4))
    np.testing.assert_allclose(heads.sum(1), 1)
    mass = heads.mean(0).reshape(12, 5)  # of a level one cls token, then four cells
    np.testing.assert_allclose([mass[:, 0], mass[:, 1:].sum(1)], saved.shares, atol=1e-6)
    assert (saved.kinds, saved.levels[0], saved.levels[-1]) == (("cls", "grid2"), "block.1", "final")


def test_all_tokens_kept_is_the_whole_probe_and_fewer_is_a_token_mask(study: Study) -> None:
    head = SavedHead(study.folder("alf"), study.test)
    kept = [0, 3, 23]
    cut = head.predict(kept)
    assert isinstance(head.probe, AttentiveProbe)
    head.probe.token_mask = torch.isin(torch.arange(24), torch.tensor(kept))
    np.testing.assert_allclose(cut.logits, head.predict().logits, atol=1e-4)
    head.probe.token_mask = None
    np.testing.assert_allclose(head.predict(range(24)).logits, head.predict().logits)


def test_pruning_keeps_the_tokens_that_are_looked_at_most_in_training(study: Study) -> None:
    results = prune_tokens(study.folder("alf"), study.train, study.test, [1, 12, 24])
    mass = SavedHead(study.folder("alf"), study.train).attention().mean(0)
    assert results[0].tokens == (int(mass.argmax()),)
    assert set(results[0].tokens) < set(results[1].tokens) < set(results[2].tokens) == set(range(24))
    assert results[2].balanced_accuracy == pytest.approx(study.rows["alf"]["test"]["balanced_accuracy"])


def test_wrong_requests_are_named(study: Study) -> None:
    with raises("report.wrong_token_count", RequestError, num_tokens=24, counts="0, 25"):
        prune_tokens(study.folder("alf"), study.train, study.test, [0, 3, 25])
    with raises("report.no_attention", RequestError, probe="linear-all", head="linear"):
        SavedHead(study.folder("linear-all"), study.test).attention()
    with raises("report.not_prunable", RequestError, probe="alf-embed", head="alf-embed"):
        SavedHead(study.folder("alf-embed"), study.test).predict([0])
    with raises("report.other_backbone", RequestError, store=study.foreign.name) as refused:
        SavedHead(study.folder("alf"), study.foreign)
    assert "weights" in refused.error.expected


def test_a_map_that_is_not_there_or_damaged_is_named(study: Study, tmp_path: Path) -> None:
    with raises("statistics.bad_attention_map", WorkError, path=study.folder("linear-all") / "attention.csv"):
        read_attention(study.folder("linear-all"))
    for text in (
        "level,kind,share\nfinal,cls,much\n",
        "level,kind,share\nfinal,cls,1\nblock.1,ap,0\n",
        "nonsense\n1\n",
    ):
        (tmp_path / "attention.csv").write_text(text)
        with raises("statistics.bad_attention_map", WorkError):
            read_attention(tmp_path)
    (tmp_path / "attention.csv").write_text("level,kind,share\n")
    with raises("statistics.bad_attention_map", WorkError, reason="the file has no lines"):
        read_attention(tmp_path)


def map_of(shares: list[list[float]]) -> AttentionMap:
    return AttentionMap(
        levels=tuple(f"block.{level}" for level in range(len(shares[0]))), kinds=("cls", "ap"), shares=np.array(shares)
    )


def test_the_spread_of_a_uniform_map_is_the_largest_and_of_a_single_cell_none() -> None:
    uniform = spread_of(map_of([[0.1] * 5] * 2))
    assert (uniform.entropy, uniform.mass80) == (pytest.approx(np.log(10)), 8)
    assert uniform.late_third == pytest.approx(0.4)  # two of five levels
    single = spread_of(map_of([[0, 0, 1.0], [0, 0, 0]]))
    assert (single.entropy, single.mass80, single.late_third) == (0, 1, 1)


def test_maps_of_one_form_have_a_mean() -> None:
    mean = mean_map([map_of([[1.0, 0], [0, 0]]), map_of([[0, 0], [0, 1.0]])])
    np.testing.assert_array_equal(mean.shares, [[0.5, 0], [0, 0.5]])
    with pytest.raises(ValueError, match="different levels or kinds"):
        mean_map([map_of([[1.0], [0]]), map_of([[1.0, 0], [0, 0]])])
