"""`layerbank probes` and `layerbank attention`, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import run
from messages import refuses
from PIL import Image

from layerbank.probes import ArraySource, AttentiveProbe
from layerbank.probing.attention import keep_attention
from layerbank.probing.probe_spec import parse_probe


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a run keeps of a probe of two levels, cls and ap, with three heads, on eight images."""
    place = tmp_path / "attn-mid-1a2b3c4d"
    place.mkdir()
    tokens = torch.randn(8, 4, 12, generator=torch.Generator().manual_seed(0))
    source = ArraySource(tokens, torch.zeros(8, dtype=torch.int64), 2)
    named = parse_probe("attn-mid", 12)
    keep_attention(AttentiveProbe(12, 3, 2), source, named, [1, 1], [str(n) for n in range(8)], place, "a title")
    return place


def test_probes_lists_names_with_what_they_read_and_how_large_they_are() -> None:
    result = run("probes", "a*-quarterly", "--embed-dim", "24")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "depth 12, width 24, 196 patches, 10 classes"
    names = [line.split()[0] for line in lines[2:]]
    assert names == [
        *("attn-quarterly", "alf-grid2-quarterly", "aat-quarterly", "aim-quarterly"),
        *("abmilp-quarterly", "alf-embed-quarterly"),
    ]
    assert "3, 6, 9, final" in lines[2]
    described = json.loads(run("probes", "alf", "--json").stdout)
    assert (described[0]["name"], described[0]["num_parameters_before_classifier"]) == ("alf", 4_726_272)


def test_a_name_that_no_probe_has_is_refused() -> None:
    result = run("probes", "alff")
    refuses(result, "probing.unknown_probe", name="alff", advice="Did you mean 'alf'?")


def test_attention_says_the_numbers_of_a_run(folder: Path) -> None:
    result = run("attention", folder)
    assert result.exit_code == 0
    kept: dict[str, Any] = json.loads((folder / "attention.json").read_text())
    assert "8 images, 3 heads, 4 tokens" in result.stdout
    shown = {line[:32].strip(): line[32:].split() for line in result.stdout.splitlines()[2:]}
    for label, number in (("share of cls, %", kept["share_of_kind"]["cls"]), ("share of the late third, %", None)):
        number = number or kept["share_of_third"]["late"]
        assert shown[label] == [f"{100 * number['mean']:.1f}", "±", f"{100 * number['std']:.1f}"]
    assert json.loads(run("attention", folder, "--json").stdout) == kept
    assert not (folder / "attention-heads.png").exists()


def test_heads_are_drawn_on_demand_in_the_order_of_the_depth_they_look_at(folder: Path) -> None:
    result = run("attention", folder, "--heads")
    heads = json.loads((folder / "attention.json").read_text())["heads"]
    table = result.stdout[result.stdout.index("heads, by the depth they attend to") :].splitlines()[2:]
    depths = [np.sum(heads[int(line.split()[0])]["mass"], axis=1)[1] for line in table]
    assert depths == sorted(depths)
    with Image.open(folder / "attention-heads.png") as picture:
        assert min(picture.size) > 200
        assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 50


def test_a_folder_without_an_attention_map_is_refused(folder: Path, tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "none"):
        refuses(run("attention", place), "probing.no_attention_map", path=place / "attention.json")
    (folder / "attention.json").write_text('{"format": 99}')
    refuses(run("attention", folder), "probing.attention_map_format", format=99, known=1)
    for text in ("[", "[]", "{}"):
        (folder / "attention.json").write_text(text)
        refuses(run("attention", folder), "probing.unreadable_attention_map")
