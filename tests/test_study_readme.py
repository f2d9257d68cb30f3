"""The README of statistics and report runs, names every module, and prints the numbers that the code computes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import layerbank
from layerbank.statistics.paper import published_scores
from layerbank.statistics.scores import gains_of, mean_ranks, summarize, table_of

FOLDER = Path(layerbank.__file__).parent / "report"
README = (FOLDER / "README.md").read_text(encoding="utf-8")


def test_its_example_runs(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", example], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert re.search(r"^alf +\+\d\.\d\d points, q = 0\.000 over 19 data sets$", result.stdout, re.MULTILINE)
    assert {path.suffix for path in (tmp_path / "figures").iterdir()} == {".svg", ".png", ".csv"}


def test_every_module_has_its_line() -> None:
    modules = {path.name for folder in ("statistics", "report") for path in (FOLDER.parent / folder).glob("*.py")}
    tables = README.split("## Files")[1].split("\nIntervals")[0]
    assert modules - {"__init__.py"} == set(re.findall(r"`(\w+\.py)`", tables))


def test_every_figure_that_it_names_exists() -> None:
    figures = {path.stem: path.read_text() for path in (FOLDER / "figures").glob("*.py")}
    for module, function in re.findall(r"`figures\.(\w+)\.(draw_\w+)`", README):
        assert f"def {function}(" in figures[module]
    drawn = {name for text in figures.values() for name in re.findall(r"^def (draw_\w+)\(", text, re.MULTILINE)}
    assert drawn == set(re.findall(r"draw_\w+", README))


def test_its_numbers_are_those_that_the_code_computes() -> None:
    table = table_of(published_scores())
    gains = gains_of(table)
    lines = re.findall(r"^\| ([\w-]+) \| [\d.]+ \| ([\d.]+) \| [\d.]+ \| ([\d.]+) \|$", README, re.MULTILINE)
    ranks = mean_ranks(table.mean_over("model", "seed"), [probe for probe, _, _ in lines])
    assert len(lines) == 5
    for probe, gain, rank in lines:
        assert float(gain) == pytest.approx(summarize(gains.column(probe)).mean, abs=0.0051)
        assert float(rank) == pytest.approx(ranks[probe], abs=0.0051)
