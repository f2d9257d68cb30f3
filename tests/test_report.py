"""Rows of results as lines of a table: one a probe, over all its seeds."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest

from layerbank.probing.rows.results import COLUMNS, results_table, results_title, summarize


def row(probe: str, seed: int, test: float | None, **changed: Any) -> dict[str, Any]:
    attentive = probe == "alf"
    values: dict[str, Any] = {
        "key": f"{probe}{seed}".ljust(32, "0"),
        "setting_of_study": f"seed {seed}",
        "probe": probe,
        "backbone": "tiny",
        "dataset": "photos",
        "train_fingerprint": "a",
        "test_fingerprint": "b",
        "head": "attentive" if attentive else "linear",
        "levels": ["final"],
        "kinds": ["cls"],
        "num_heads": 2 if attentive else None,
        "normalize": "width",
        "protocol": {"seed": seed, "jitter_validation": False},
        "chosen": None if test is None else {"lr": 0.1, "weight_decay": 1e-6, "dropout": 0.0},
        "validation": None if test is None else test - 0.01,
        "test": None if test is None else {"balanced_accuracy": test},
        "num_parameters": 1234,
        "seconds": {"select": 1.0, "test": 0.5},
    }
    return values | changed


def test_one_seed_is_one_line_without_a_spread() -> None:
    rows = [row("linear-cls", 0, 0.5), row("alf", 0, 0.75)]
    lines = [dict(zip(COLUMNS, line, strict=True)) for line in results_table(rows)]
    assert [line["probe"] for line in lines] == ["linear-cls", "alf"]
    assert lines[0]["chosen setting"] == "lr 0.1, wd 1e-06"
    assert lines[1] == {
        "probe": "alf",
        "chosen setting": "lr 0.1, wd 1e-06, dropout 0",
        "validation": "74.0",
        "test": "75.0",
        "gain": "+25.0",
        "parameters": "1,234",
        "seconds": "1.5",
        "key": "alf00000",
    }
    assert results_title(rows, Path("runs/x")) == "tiny on photos: balanced accuracy in percent; runs/x"


def test_seeds_of_a_probe_are_one_line_with_mean_and_deviation_and_gains_are_within_a_seed() -> None:
    linear, alf = [0.5, 0.6, 0.55], [0.75, 0.7, 0.85]
    rows = [row(name, seed, of[seed]) for seed in range(3) for name, of in (("linear-cls", linear), ("alf", alf))]
    rows[3]["chosen"] = {"lr": 0.01, "weight_decay": 1e-6, "dropout": 0.0}
    first, second = summarize(rows)
    assert (first.probe, second.probe, second.seeds) == ("linear-cls", "alf", [0, 1, 2])
    assert second.test is not None
    assert second.gain is not None
    assert (second.test.mean, second.test.std) == pytest.approx((100 * mean(alf), 100 * stdev(alf)))
    gains = [100 * (a - b) for a, b in zip(alf, linear, strict=True)]
    assert (second.gain.mean, second.gain.std) == pytest.approx((mean(gains), stdev(gains)))
    line = dict(zip(COLUMNS, results_table(rows)[1], strict=True))
    assert line["test"] == "76.7 ± 7.6"
    assert line["gain"] == "+21.7 ± 10.4"
    assert line["chosen setting"] == "lr 0.1 (2) 0.01 (1), wd 1e-06, dropout 0"
    assert line["seconds"] == "4.5"
    assert line["key"] == "alf00000 alf10000 alf20000"
    assert "mean ± standard deviation over seeds 0, 1, 2; runs" in results_title(rows, Path("runs"))
    stated = second.to_dict()
    assert stated["test"] == {"mean": second.test.mean, "std": second.test.std}
    assert (stated["seeds"], stated["num_parameters"], stated["num_diverged"]) == ([0, 1, 2], 1234, 0)


def test_seeds_that_diverged_are_counted_and_in_no_mean() -> None:
    some = results_table([row("alf", 0, 0.7), row("alf", 1, None), row("alf", 2, 0.8)])
    assert some[0][:5] == [
        "alf",
        "every setting of 1 of 3 seeds diverged, lr 0.1, wd 1e-06, dropout 0",
        "74.0 ± 7.1",
        "75.0 ± 7.1",
        "-",
    ]
    assert results_table([row("alf", 0, None)])[0][:5] == ["alf", "every setting diverged", "-", "-", "-"]
    assert summarize([row("alf", 0, None)])[0].to_dict()["test"] is None


def test_rows_of_another_protocol_or_axis_are_another_line_and_quirks_are_said() -> None:
    quirky = row("alf", 1, 0.7, protocol={"seed": 1, "jitter_validation": True})
    rows = [row("alf", 0, 0.7), quirky, row("alf", 2, 0.7, normalize="token-axis")]
    assert len(summarize(rows)) == 3
    assert "with the reference's quirks" in results_title([quirky], Path("runs"))


def test_what_is_solved_shows_its_own_setting() -> None:
    solved = row("knn-cls", 0, 0.7, head="knn", chosen={"num_neighbors": 20})
    assert results_table([solved])[0][1] == "k 20"
