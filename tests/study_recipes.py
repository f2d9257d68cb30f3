"""Recipes of small studies: written to a folder, with the arguments of the command and the rows that it leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from photos import TINY_MODEL
from study_runs import read_rows

FAST = "epochs = 2\nmin_steps = 10\nlrs = [0.01]\nweight_decays = [1e-4]\ndropouts = [0.0]\n"
# all that may differ between two runs: what a row cost, beside what, and which stores have images of several data sets
TIMES = ("seconds", "memory", "stores", "digest")


def write_recipe(folder: Path, data: list[str], probes: list[str], models: tuple[str, ...] = (TINY_MODEL,)) -> Path:
    (folder / "fast.toml").write_text(FAST)
    lines = [
        f"models = {json.dumps(models)}",
        f"data = {json.dumps(data)}",
        f"probes = {json.dumps(probes)}",
        f"protocol = {json.dumps(str(folder / 'fast.toml'))}",
        "image_size = 32",
        "[weights]",
        *(f'"{model}" = "random"' for model in models),
    ]
    path = folder / "recipe.toml"
    path.write_text("\n".join(lines))
    return path


def arguments(recipe: Path, folder: Path) -> list[str]:
    places = {"--cache": "caches", "--runs": "runs", "--data-root": "data"}
    more = [part for option, name in places.items() for part in (option, str(folder / name))]
    return ["study", str(recipe), "--no-fetch", "--workers", "0", *more]


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """Rows by key, without what is allowed to differ."""
    rows = [row for path in sorted(folder.glob("runs/*/*/results.jsonl")) for row in read_rows(path)]
    assert len({row["key"] for row in rows}) == len(rows), "no row twice"
    return {row["key"]: {name: value for name, value in row.items() if name not in TIMES} for row in rows}
