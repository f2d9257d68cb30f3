"""A package of the user adds a head by an entry point; a package that does not work is named, and stops nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from commands import MODEL, run
from messages import raises, refuses
from photos import TINY_WIDTH
from plugins import install_plugin

from layerbank.probes import HEADS, load_probe, save_probe
from layerbank.probes.errors import CheckpointError

SOURCE = """
from torch import nn

from layerbank.probes import HeadModule, HeadType


class MeanProbe(HeadModule):
    kind = "mean-token"

    def __init__(self, embed_dim, num_classes, *, seed=0):
        super().__init__(embed_dim=embed_dim, num_classes=num_classes)
        self.classifier = nn.Linear(embed_dim, num_classes)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, tokens):
        return self.classifier(tokens.mean(1))


HEAD = HeadType(name="mean-token", module=MeanProbe, layers="mid", kinds=("cls", "ap"))
"""
POINTS = "[layerbank.heads]\nmean-token = zippy:HEAD\ngone-head = zippo:HEAD\n"
PROTOCOL = "lrs = [0.1]\nweight_decays = [0.0001]\ndropouts = [0.0]\nepochs = 3\nmin_steps = 20\n"


def forget_plugins() -> None:
    """Let the registry look for plug-ins again."""
    HEADS.__dict__.pop("_plugins", None)
    HEADS._loaded.pop("mean-token", None)


@pytest.fixture
def _plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package with one head that works and one that cannot be imported."""
    site = tmp_path / "site"
    site.mkdir()
    install_plugin(site, POINTS, SOURCE)
    monkeypatch.syspath_prepend(str(site))
    forget_plugins()
    yield
    forget_plugins()


@pytest.mark.usefixtures("_plugin")
def test_a_head_of_a_plug_in_is_extracted_for_trained_saved_loaded_and_predicts(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "fast.toml").write_text(PROTOCOL)
    result = run(
        *("probe", *MODEL, "--data", f"folder:{photos}", "--cache", tmp_path / "caches", "--runs", tmp_path / "runs"),
        *("--probe", "linear-cls,mean-token,mean-token@3", "--protocol", tmp_path / "fast.toml", "--json"),
    )
    assert result.exit_code == 0
    linear, mean, level = json.loads(result.stdout)["rows"]
    assert (mean["head"], mean["levels"], mean["kinds"]) == ("mean-token", ["block.3", "final"], ["cls", "ap"])
    assert (level["head"], level["levels"]) == ("mean-token", ["block.3"])
    assert linear["num_parameters"] == mean["num_parameters"] == 3 * (TINY_WIDTH + 1)
    assert mean["test"]["balanced_accuracy"] > 0.5
    (folder,) = (tmp_path / "runs").rglob("mean-token-*")
    probe, _ = load_probe(folder)
    assert probe.describe() == {"kind": "mean-token", "embed_dim": TINY_WIDTH, "num_classes": 3}
    data = ("--data", f"images:{photos / 'test' / 'red'}", "--workers", "0")
    predictions = json.loads(run("predict", "--probe", folder, *data, "--json").stdout)
    assert len(predictions) == 20
    assert sum(one["label"] == "red" for one in predictions) > 10


@pytest.mark.usefixtures("_plugin")
def test_probes_lists_heads_of_plug_ins_and_names_those_that_do_not_work() -> None:
    result = run("probes", "mean-token*", "--embed-dim", "24")
    names = [line.split()[0] for line in result.stdout.splitlines()[2:]]
    sets = ("last", "mid", "quarterly", "all")
    assert names == ["mean-token", *(f"mean-token-{layers}" for layers in sets), "mean-token@every", "mean-token@best"]
    assert "gone-head" in result.stderr
    assert "zippo" in result.stderr


@pytest.mark.usefixtures("_plugin")
def test_a_name_of_a_head_that_does_not_work_says_why_and_other_names_still_mean_what_they_did() -> None:
    refuses(run("probes", "gone-head-mid"), "layerbank.broken_plugin", name="gone-head", noun="head")
    assert run("probes", "alf").exit_code == 0
    assert "gone-head" in HEADS.broken


@pytest.mark.usefixtures("_plugin")
def test_a_saved_probe_of_a_package_that_is_missing_is_refused(tmp_path: Path) -> None:
    probe = HEADS["mean-token"].module(embed_dim=4, num_classes=2)
    save_probe(tmp_path / "probe", probe, {})
    loaded, _ = load_probe(tmp_path / "probe")
    assert torch.equal(loaded(torch.ones(2, 3, 4)), probe.eval()(torch.ones(2, 3, 4)))
    file = tmp_path / "probe" / "probe.json"
    saved = file.read_text()
    for name in ("lost-head", "gone-head"):
        file.write_text(saved.replace("mean-token", name))
        with raises("probes.unknown_saved_head", CheckpointError, file=file) as refused:
            load_probe(tmp_path / "probe")
        assert name in refused.error.got
