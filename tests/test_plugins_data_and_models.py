"""Packages that add a data source and a model family by entry points: they work like built-in ones, and broken ones are named."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from commands import run
from data_errors import refuses_data
from messages import refuses
from model_errors import refuses_model
from plugins import install_plugin

from layerbank.cache import TokenStore
from layerbank.data.sources import SOURCES, open_source
from layerbank.models.backbone import open_backbone
from layerbank.models.families import MODEL_FAMILIES

ENTRY_POINTS = """
[layerbank.sources]
npy = tinies:NPY

[layerbank.models]
tiny = tinies:TINY
"""
SOURCE = '''
import numpy as np
import timm
import torch

from layerbank.data.sources import DataSource, ImageSource
from layerbank.models.families import ModelFamily, ModelGroup
from layerbank.models.libraries.timm_models import tower_from_timm


class NpySource(ImageSource):
    """Pixels and labels in DIR/<split>_x.npy and DIR/<split>_y.npy."""

    def __init__(self, address, split):
        self.pixels, labels = (np.load(f"{address}/{split}_{part}.npy") for part in "xy")
        ids = [f"{split}/{row}" for row in range(len(labels))]
        super().__init__(
            name="npy", split=split, ids=ids, labels=labels, class_names=["a", "b"],
            sizes=np.full(len(labels), self.pixels[0].nbytes),
        )

    def read(self, row):
        return self.pixels[row]

    def file_of(self, row):
        return f"row {row}"


def open_tiny(model_id, *, weights, tap, image_size, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = timm.models.VisionTransformer(
            img_size=image_size or 32, patch_size=16, embed_dim=24, depth=2, num_heads=2, num_classes=0
        )
    return tower_from_timm(model.eval(), model_id, image_size or 32, tap=tap)


NPY = DataSource(form="npy:DIR", meaning="arrays of pixels", example="npy:arrays", open=NpySource)
TINY = ModelFamily(
    form="tiny/vit",
    open=open_tiny,
    names=lambda: ["tiny/vit"],
    groups=(ModelGroup(name="Tiny", example="tiny/vit", note="of a plug-in"),),
)
'''


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Two distributions, one that works and one that cannot be imported; returns a folder with data of the first."""
    site, data = tmp_path / "site", tmp_path / "data"
    site.mkdir()
    data.mkdir()
    install_plugin(site, ENTRY_POINTS, SOURCE, name="tinies")
    broken = "[layerbank.sources]\nzip = cracked:ZIP\n\n[layerbank.models]\nhuge = cracked:HUGE\n"
    install_plugin(site, broken, "import a_package_nobody_has\n", name="cracked")
    for split, count in (("train", 6), ("test", 4)):
        pixels = np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        np.save(data / f"{split}_x.npy", pixels)
        np.save(data / f"{split}_y.npy", np.arange(count) % 2)
    monkeypatch.syspath_prepend(str(site))
    for registry in (SOURCES, MODEL_FAMILIES):  # they look for plug-ins once
        monkeypatch.setattr(registry, "_loaded", {})
        registry.__dict__.pop("_plugins", None)
    yield data
    for registry in (SOURCES, MODEL_FAMILIES):
        registry.__dict__.pop("_plugins", None)
    for module in ("tinies", "cracked"):
        sys.modules.pop(module, None)


def test_extract_takes_data_and_models_of_plug_ins(plugins: Path, tmp_path: Path) -> None:
    model, data = ("--model", "tiny/vit", "--weights", "random"), ("--data", f"npy:{plugins}")
    result = run("extract", *model, *data, "--cache", tmp_path / "caches", "--workers", "0", "--json")
    assert result.exit_code == 0, result.output
    (folder,) = json.loads(result.stdout)["folders"]
    specs = [TokenStore.open(path).spec for path in Path(folder).glob("*.zarr")]
    assert sorted((spec.name, spec.model.name, spec.num_rows) for spec in specs) == [
        ("npy-test", "tiny/vit", 4),
        ("npy-train", "tiny/vit", 6),
    ]
    assert len(open_source(f"npy:{plugins}", "train")) == 6
    assert open_backbone("tiny/vit", weights="random").levels == ["block.0", "block.1", "final"]


def test_a_key_that_a_plug_in_does_not_ask_for_is_refused(plugins: Path) -> None:
    options = {"weights": str(plugins / "weights.pth"), "weights_key": "teacher"}
    refuses_model("models.weights_key_not_asked", "tiny/vit", options, key="teacher", model="tiny/vit")


def test_plug_ins_are_listed_and_broken_ones_are_named(plugins: Path) -> None:
    cracked = "cannot be loaded: cracked (cracked:{}): ModuleNotFoundError: No module named 'a_package_nobody_has'"
    datasets = run("datasets")
    assert datasets.exit_code == 0
    assert "npy:DIR" in datasets.stdout
    assert f"warning: the data source zip {cracked.format('ZIP')}" in datasets.stderr
    models = run("models")
    assert models.exit_code == 0
    assert "of a plug-in" in models.stdout
    assert f"warning: the model family huge {cracked.format('HUGE')}" in models.stderr
    (facts,) = json.loads(run("models", "tiny/*", "--json").stdout)["models"]
    assert (facts["family"], facts["depth"], facts["embed_dim"]) == ("Tiny", 2, 24)
    (listed,) = (one for one in json.loads(run("models", "--json").stdout) if one["family"] == "Tiny")
    assert listed["num_models"] == 1
    assert "npy" in [one["scheme"] for one in json.loads(run("datasets", "--json").stdout)["schemes"]]


def test_a_wrong_name_is_answered_with_the_nearest_plug_in(plugins: Path) -> None:
    refuses_data("layerbank.unknown_part", "npyy:x", noun="data source", advice="Did you mean 'npy'?")
    refuses_model("layerbank.unknown_part", "tinny/vit", noun="model family", advice="Did you mean 'tiny'?")


def test_a_request_for_a_broken_plug_in_says_why_it_cannot_be_loaded(plugins: Path) -> None:
    result = run("extract", "--model", "tiny/vit", "--data", "zip:x", "--weights", "random")
    refuses(result, "layerbank.broken_plugin", noun="data source", name="zip")
    refuses_model("layerbank.broken_plugin", "huge/vit", noun="model family", name="huge")
    assert open_backbone("vit_tiny_patch16_224", weights="random", image_size=32).depth == 12


def test_the_built_in_parts_come_before_those_of_plug_ins(plugins: Path) -> None:
    assert list(SOURCES) == [*SOURCES.builtin, "npy"]
    assert list(MODEL_FAMILIES) == ["demo", "open_clip", "timm", "transformers", "hf-hub", "torchhub", "tiny"]
