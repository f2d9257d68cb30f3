"""The oldest versions that the project admits are those that `make floor` tests."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PINS = (ROOT / "tests/floor.txt").read_text(encoding="utf-8")


def test_every_pin_of_the_floor_is_what_the_project_declares() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    users = [project["dependencies"], *(extras[name] for name in extras if name != "dev")]
    declared = dict(requirement.split(">=") for requirements in users for requirement in requirements)
    pinned = dict(re.findall(r"^([\w.-]+)==([\w.]+)$", PINS, re.MULTILINE))
    assert len(declared) > 20
    assert pinned == declared
    for requirement in extras["dev"]:  # a package of a user and of a developer has one floor
        name, floor = requirement.split(">=")
        assert declared.get(name, floor) == floor


def test_what_else_the_floor_bounds_is_nothing_that_the_project_declares() -> None:
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lines = [line.partition("#")[0].strip() for line in PINS.splitlines()]
    others = [line for line in lines if line and "==" not in line]
    assert all(re.fullmatch(r"[\w.-]+<[\w.]+", line) for line in others)
    assert [line for line in others if f'"{line.partition("<")[0]}>=' in declared] == []
