"""Reports of runs of every format, alone and side by side, and of rows whose files or settings are others."""

from __future__ import annotations

import json
import shutil
import zipfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from commands import run
from messages import shows
from report_page import ReadPage
from study_runs import read_rows, write_format_2, write_study

from layerbank.probes import TrainingProtocol
from layerbank.probing.probe_spec import parse_probe
from layerbank.probing.rows.result_key import DataKey, ResultKey
from layerbank.probing.rows.results_file import RESULTS, append_row, read_results
from layerbank.probing.rows.row_files import wrong_file
from layerbank.statistics.scores import group_by_setting

GOLDEN = Path(__file__).parent / "golden"
SEVERAL = "has results of several settings"


def golden_runs(number: int, folder: Path) -> Path:
    with zipfile.ZipFile(GOLDEN / {1: "format1.zip", 2: "format2-runs.zip"}[number]) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if name.startswith("runs/")])
    return folder / "runs"


def report(runs: Path) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(run("report", runs, "--json").stdout)
    return answer


def test_runs_of_format_1_are_reported_with_their_numbers(tmp_path: Path) -> None:
    runs = golden_runs(1, tmp_path)
    answer = report(runs)
    assert answer["num_rows"] == len(read_rows(next(runs.rglob(RESULTS)))) == 4
    assert not any(SEVERAL in note or "skipped" in note for note in answer["left_out"])


def test_runs_of_format_2_are_reported_and_their_keys_are_those_of_today(tmp_path: Path) -> None:
    runs = golden_runs(2, tmp_path)
    (results,) = runs.rglob(RESULTS)
    found = read_results(results)
    assert not found.skipped
    assert [row["probe"] for row in found.rows] == ["ridge-cls", "linear-cls"] * 2 + ["linear-cls-top2"]
    for row in found.rows:
        data = {one.name: row["key_fields"][one.name] for one in fields(DataKey) if one.name in row["key_fields"]}
        protocol = {name: tuple(v) if isinstance(v, list) else v for name, v in row["protocol"].items()}
        today = ResultKey(
            data=DataKey(**data),
            protocol=TrainingProtocol(**protocol),
            probe=parse_probe(row["probe"], 12),
        )
        assert (today.digest, today.setting, today.fields()) == (row["key"], row["setting_of_study"], row["key_fields"])
        assert wrong_file(results.parent / f"{row['probe']}-{row['key'][:8]}", row["files"]) is None
    answer = report(runs)
    assert answer["num_rows"] == 5
    assert not any(SEVERAL in note or ("expected" in note and "row" in note) for note in answer["left_out"])


def test_runs_of_both_formats_side_by_side_are_groups_of_their_own(tmp_path: Path) -> None:
    runs = write_format_2(tmp_path / "runs", datasets=("pets", "birds"))
    write_study(tmp_path / "old", datasets=("pets",))
    shutil.move(tmp_path / "old" / "data00", runs / "before")
    answer = report(runs)
    assert answer["num_rows"] == 9
    (note,) = [note for note in answer["left_out"] if SEVERAL in note]
    assert note.startswith("pets with timm/vit_small_patch16_224 has results of several settings")
    page = (runs / "report" / "index.html").read_text(encoding="utf-8")
    assert page.index("Setting 1 of 2 with the same names") < page.index("Setting 2 of 2 with the same names")


def test_results_on_other_images_under_one_name_are_groups_of_their_own(tmp_path: Path) -> None:
    """As after an image was added to a data set, with seeds that only one of the two has."""
    runs = write_format_2(tmp_path / "runs", seeds=(0,))
    write_format_2(tmp_path / "more", train_rows="b", seeds=(0, 1))
    shutil.move(tmp_path / "more" / "data00", runs / "more0")
    shutil.move(tmp_path / "more" / "data01", runs / "more1")
    answer = report(runs)
    assert answer["num_rows"] == 9
    assert sum(SEVERAL in note for note in answer["left_out"]) == 1
    rows = [row for path in sorted(runs.rglob(RESULTS)) for row in read_rows(path)]
    groups = group_by_setting(rows)
    assert [len(group) for group in groups] == [3, 6]
    assert [{row["key_fields"]["train_rows"] for row in group} for group in groups] == [{"a"}, {"b"}]


def test_one_setting_a_model_and_data_set_is_one_group(tmp_path: Path) -> None:
    runs = write_format_2(tmp_path / "runs", models=("timm/a", "timm/b"), datasets=("pets", "birds"), seeds=(0, 1))
    rows = [row for path in sorted(runs.rglob(RESULTS)) for row in read_rows(path)]
    assert group_by_setting(rows) == [rows]
    assert group_by_setting([]) == []


@pytest.mark.parametrize("name", ["test.npz", "attention.npz", "probe.json"])
def test_a_row_with_files_of_another_is_named_and_left_out(tmp_path: Path, name: str) -> None:
    runs = write_format_2(tmp_path / "runs")
    (place,) = runs.rglob("alf-*")
    whole = (place / name).read_bytes()
    (place / name).write_bytes(whole[: len(whole) // 2])
    answer = report(runs)
    assert answer["num_rows"] == 2
    (note,) = [note for note in answer["left_out"] if str(place) in note]
    assert shows(note, "report.changed_row_files")
    assert f"other content in {name}" in note


def test_a_row_without_its_files_keeps_its_numbers(tmp_path: Path) -> None:
    runs = write_format_2(tmp_path / "runs")
    shutil.rmtree(next(runs.rglob("alf-*")))
    answer = report(runs)
    assert answer["num_rows"] == 3
    assert any(note.startswith("No interval for alf on pets") for note in answer["left_out"])


def test_damaged_newer_and_unreadable_results_stop_no_report(tmp_path: Path) -> None:
    runs = write_format_2(tmp_path / "runs")
    (results,) = runs.rglob(RESULTS)
    text = results.read_text()
    results.write_text(text.replace('"validation":0.5', '"validation":0.75', 1) + '{"format": 3}\n[1]\n\ud7ff\n{"key"')
    (runs / "other" / RESULTS).mkdir(parents=True)
    answer = report(runs)
    assert answer["num_rows"] == 2
    notes = answer["left_out"]
    for line, key in ((1, "damaged_row"), (4, "newer_row"), (5, "damaged_row"), (6, "damaged_row"), (7, "damaged_row")):
        (note,) = [note for note in notes if note.startswith(f"{results}, line {line}: ")]
        assert shows(note, f"probing.{key}")
    (note,) = [note for note in notes if note.startswith(str(runs / "other"))]
    assert shows(note, "probing.unreadable_results")


def test_a_report_of_probes_that_all_diverged_has_no_table_and_no_error(tmp_path: Path) -> None:
    runs = write_format_2(tmp_path / "runs")
    (results,) = runs.rglob(RESULTS)
    rows = read_rows(results)
    results.unlink()
    for row in rows:
        lost = {"test": None, "validation": None, "chosen": None, "files": {}, "diverged": True}
        append_row(results, {name: value for name, value in row.items() if name != "digest"} | lost)
    answer = report(runs)
    assert answer["num_rows"] == 3
    assert "3 results diverged at every setting." in answer["summary"]


@pytest.mark.parametrize(("dataset", "seed"), [("birds", 0), ("pets", 1)])
def test_one_more_result_of_one_probe_makes_it_no_winner(tmp_path: Path, dataset: str, seed: int) -> None:
    """The winner is found among the cases that the probes share; the other case is named, and wins nothing."""
    runs = write_format_2(tmp_path / "runs")
    before = report(runs)
    write_format_2(tmp_path / "more", datasets=(dataset,), seeds=(seed,), probes=("linear-cls",))
    shutil.move(tmp_path / "more" / "data00", runs / "more")
    answer = report(runs)
    assert answer["num_rows"] == 4
    assert before["summary"][0].startswith("alf has the highest mean accuracy: ")
    assert answer["summary"][0] == before["summary"][0].replace(
        "over 1 case", "over the 1 of 2 cases that have all of linear-cls, linear-all, alf"
    )
    assert answer["findings"][0] == before["findings"][0]
    assert answer["findings"][1].endswith("and there is no other probe to compare it with.")
    tables = ReadPage(runs / "report" / "index.html").tables
    wins = {line["probe"]: line["best on"] for line in tables["probes"].records()}
    assert wins == {"linear-cls": "0", "linear-all": "0", "alf": "1"}
    (line,) = [line for line in tables["by-dataset"].records() if line["data set"] not in ("mean", "mean rank")]
    assert line["data set"] == "pets"
    assert "-" not in line.values()
