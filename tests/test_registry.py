"""Registries: parts that come with layerbank, parts of plug-ins, and plug-ins that do not work."""

from __future__ import annotations

from pathlib import Path

import pytest
from messages import raises
from plugins import install_plugin

from layerbank.errors import RequestError
from layerbank.registry import Registry


@pytest.fixture
def numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry[float]:
    points = {
        "tau": "zippy:TAU",
        "word": "zippy:WORD",
        "gone": "zippy:GONE",
        "pi": "zippy:TAU",
        "lost": "zippo:X",
        "ends": "ends:X",
    }
    text = "[layerbank.numbers]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
    install_plugin(tmp_path, text, "TAU = 6.28\nWORD = 'tau'\n")
    (tmp_path / "ends.py").write_text("raise SystemExit(3)")
    monkeypatch.syspath_prepend(str(tmp_path))
    return Registry("layerbank.numbers", "number", float, {"nan": "math:nan", "pi": "math:pi"})


def test_parts_of_plug_ins_stand_beside_the_built_in_ones(numbers: Registry[float]) -> None:
    assert list(numbers) == ["nan", "pi", "tau"]
    assert numbers["tau"] == 6.28
    assert numbers.require("pi") < 3.15


def test_broken_plug_ins_are_named_and_everything_else_works(numbers: Registry[float]) -> None:
    assert set(numbers.broken) == {"word", "gone", "pi", "lost", "ends"}
    assert "a float is needed, this is a str" in numbers.broken["word"]
    assert "zippy (zippo:X): ModuleNotFoundError" in numbers.broken["lost"]
    with raises("layerbank.broken_plugin", RequestError, name="gone", noun="number"):
        numbers.require("gone")


def test_an_unknown_name_gets_the_nearest_one(numbers: Registry[float]) -> None:
    with raises("layerbank.unknown_part", RequestError, advice="Did you mean 'tau'?"):
        numbers.require("tao")
    assert "tao" not in numbers
