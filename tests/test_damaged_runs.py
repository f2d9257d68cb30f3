"""Rows and files of runs that are damaged, foreign, swapped or edited: found, named, left out, never fatal."""

from __future__ import annotations

import json
import random
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import run
from damaged_runs import (
    ARRAYS,
    DAMAGES,
    FEW,
    VALUES,
    changed,
    line_of,
    places_in,
    read_lines,
    report_quickly,
    show_on_a_terminal,
    with_array,
)
from messages import check, refuses
from report_page import ReadPage
from study_runs import read_rows, write_format_2, write_study

from layerbank.errors import WorkError
from layerbank.probing.rows.results import key_of
from layerbank.probing.rows.results_file import RESULTS, append_row
from layerbank.probing.rows.row_files import digest_files, row_folder
from layerbank.report.verify import verify_runs

CHECKED = ("test.npz", "probe.json", "attention.csv", "attention.npz")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_format_2(tmp_path_factory.mktemp("sound") / "runs")


@pytest.fixture
def runs(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "runs"))


def results_of(runs: Path) -> Path:
    (path,) = runs.rglob(RESULTS)
    return path


def keys(runs: Path) -> list[str]:
    return [problem.key for problem in verify_runs(runs).problems]


def rewrite(path: Path, rows: list[dict[str, Any]]) -> None:
    path.unlink()
    for row in rows:
        append_row(path, {name: value for name, value in row.items() if name != "digest"})


def damaged_rows(rows: list[dict[str, Any]], values: tuple[Any, ...]) -> list[dict[str, Any]]:
    """Each field of each row with each value; keys are again those of their fields unless the key is what is damaged."""
    found = []
    for row in rows:
        for place in places_in(row):
            for value in values:
                one = changed(row, place, value)
                if place[0] == "key_fields" and isinstance(one.get("key_fields"), dict):
                    try:
                        one["key"] = key_of(one["key_fields"])
                    except (ValueError, TypeError):
                        continue
                found.append(one)
    return found


# -- rows


@pytest.mark.parametrize("format_", [1, 2])
def test_a_row_with_any_value_in_any_field_is_named_or_reported(
    format_: int, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = read_rows(results_of(sound if format_ == 2 else write_study(tmp_path / "old")))
    damaged = damaged_rows([rows[-1]], FEW)
    believed = read_lines(tmp_path / RESULTS, [line_of(row) for row in damaged])
    assert len(damaged) > 200
    assert len(damaged) / 6 < len(believed) < len(damaged)
    for number, row in enumerate(believed):  # each beside the sound rows, in a case of its own
        row["key"] = f"{number:08}{row['key']}"
    made = report_quickly(monkeypatch, sound, rows + believed)
    assert len(made.records) == len(rows) + len(believed)
    if format_ == 2:
        for row in believed:
            show_on_a_terminal([row])


@pytest.mark.slow
@pytest.mark.parametrize("alone", [True, False])
def test_each_row_with_any_value_in_any_field_is_named_or_reported_with_its_files(
    alone: bool, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = results_of(runs)
    rows = read_rows(path)
    damaged = damaged_rows([row for row in rows if row["probe"] in ("alf", "linear-cls")], VALUES)
    for row in random.Random(0).sample(damaged, 500):
        others = [] if alone else [one for one in rows if one["probe"] != row.get("probe")]
        lines = [line_of(one) for one in others] + [line_of(row)]
        if not read_lines(path, lines):
            refuses(run("report", runs), "report.no_readable_results", 1)
            continue
        verify_runs(runs)
        with suppress(*[WorkError] * alone):  # its only row may name other files
            assert len(report_quickly(monkeypatch, runs).records) >= len(others)


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ({"linear-cls", "linear-all", "alf"}, "No probe has a result in every case"),
        ({"linear-cls"}, "alf has the highest mean accuracy"),
        ({"linear-all", "alf"}, "linear-cls has the highest mean accuracy"),
    ],
)
def test_rows_that_diverged_have_a_page_that_says_so(lost: set[str], said: str, runs: Path) -> None:
    path = results_of(runs)
    rows = read_rows(path)
    nothing = {"test": None, "validation": None, "chosen": None, "files": {}, "diverged": True}
    rewrite(path, [row | nothing if row["probe"] in lost else row for row in rows])
    answer = json.loads(run("report", runs, "--json", "--no-images").stdout)
    assert answer["num_rows"] == 3
    assert answer["summary"][0].startswith(said)
    count = f"{len(lost)} result{'s' * (len(lost) > 1)} diverged at every setting."
    assert count in answer["summary"]
    page = ReadPage(runs / "report" / "index.html")
    assert count in page.texts
    assert sum(line["balanced accuracy"] == "diverged" for line in page.tables["results"].records()) == len(lost)


def test_one_probe_with_other_key_fields_under_its_name_is_a_group_of_its_own(runs: Path) -> None:
    """Two results of one cell are two tables, not an error that refuses all of them."""
    path = results_of(runs)
    rows = read_rows(path)
    fields = rows[0]["key_fields"] | {"probe.head": "linear"}
    again = rows[0] | {"key": key_of(fields), "key_fields": fields, "files": {}}
    append_row(path, {name: value for name, value in again.items() if name != "digest"})
    answer = json.loads(run("report", runs, "--json").stdout)
    assert answer["num_rows"] == 4
    (note,) = [note for note in answer["left_out"] if "results of several settings" in note]
    assert f"setting 2: {again['probe']} (row {again['key'][:8]})" in note
    assert answer["summary"][0].startswith("Setting 1 of 2 with the same names: alf has the highest mean accuracy")


# -- files of rows


@pytest.mark.slow
@pytest.mark.parametrize("format_", [1, 2])
@pytest.mark.parametrize("name", CHECKED)
def test_a_file_with_any_content_and_the_right_digest_stops_no_report(
    format_: int, name: str, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if format_ == 1:
        runs = write_study(tmp_path / "old")
    path = results_of(runs)
    rows = read_rows(path)
    row = next(row for row in rows if row["probe"] == "alf")
    file = row_folder(path.parent, row) / name
    content = file.read_bytes()
    for damage in DAMAGES.values():
        damage(file)
        if format_ == 2:
            rewrite(path, [one | {"files": digest_files(file.parent, CHECKED)} if one is row else one for one in rows])
        assert len(report_quickly(monkeypatch, runs).records) in (2, 3)
        shutil.rmtree(file) if file.is_dir() else file.unlink(missing_ok=True)
        file.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test.npz", "attention.npz"])
def test_an_array_with_any_content_and_the_right_digest_stops_no_report(
    name: str, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = results_of(runs)
    rows = read_rows(path)
    row = next(row for row in rows if row["probe"] == "alf")
    file = row_folder(path.parent, row) / name
    content = file.read_bytes()
    with np.load(file) as saved:
        names = list(saved)
    for array in names:
        for other in (*ARRAYS, None, b"no array"):
            file.write_bytes(with_array(content, array, other))
            rewrite(path, [one | {"files": digest_files(file.parent, CHECKED)} if one is row else one for one in rows])
            made = report_quickly(monkeypatch, runs)
            assert len(made.records) == 3
            if name == "test.npz":
                assert any("No interval for alf" in note for note in made.notes) or array == "sample_ids", other


CONFIGS = {
    "class_names": (None, 3, "abc", {}, [None], [["a"]]),
    "versions": (None, 3, "x", [1], {"torch": None}),
    "data": (None, 3, "", [], "folder:\0", "nosuch:1", "x" * 5000),
    "model": (None, 3, "x", [1], {"a": float("inf")}),
    "images": (None, 3, {"test": "../x"}),
    "model_spec": (None, 3, {}),
    "tap": (None, 3, "x"),
    "test_cache": (None, 3, [1], {"manifest": None}),
}


@pytest.mark.slow
@pytest.mark.parametrize("field", CONFIGS)
def test_a_description_with_any_value_and_the_right_digest_stops_no_report(
    field: str, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = results_of(runs)
    rows = read_rows(path)
    for value in CONFIGS[field]:
        for row in rows:
            file = row_folder(path.parent, row) / "probe.json"
            saved = json.loads(file.read_text())
            file.write_text(json.dumps(saved | {"config": saved["config"] | {field: value}}))
            row["files"]["probe.json"] = digest_files(file.parent, [file.name])[file.name]
        rewrite(path, rows)
        assert len(report_quickly(monkeypatch, runs).records) == 3


# -- layerbank runs verify


def test_runs_as_they_were_written_are_sound(runs: Path) -> None:
    answer = json.loads(run("runs", "verify", runs, "--json").stdout)
    assert answer == {"num_files": 1, "num_rows": 3, "problems": [], "harmless": []}
    result = run("runs", "verify", runs)
    assert (result.exit_code, result.stdout) == (0, f"{runs}: 3 rows in 1 file, sound\n".replace("\n", "") + "\n")
    run("report", runs / "data00" / "store")  # writes a page beside the rows
    assert run("runs", "verify", runs).exit_code == 0


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_of_every_file_is_found_and_left_out(damage: str, runs: Path) -> None:
    path = results_of(runs)
    (row,) = [row for row in read_rows(path) if row["probe"] == "alf"]
    for name in row["files"]:
        file = row_folder(path.parent, row) / name
        content = file.read_bytes()
        DAMAGES[damage](file)
        (problem,) = verify_runs(runs).problems
        check(problem, "probing.damaged_row_files", {"folder": file.parent})
        assert name in problem.got
        shutil.rmtree(file) if file.is_dir() else file.unlink(missing_ok=True)
        file.write_bytes(content)
    for name in row["images"].values():
        file = path.parent / name
        content = file.read_bytes()
        if damage != "a pipe":
            DAMAGES[damage](file)
            assert keys(runs) == ["data.unreadable_record"] * 3
            shutil.rmtree(file) if file.is_dir() else file.unlink(missing_ok=True)
            file.write_bytes(content)
    assert keys(runs) == []


def test_files_and_records_that_are_swapped_are_found(runs: Path) -> None:
    path = results_of(runs)
    one, two, _ = (row_folder(path.parent, row) / "test.npz" for row in read_rows(path))
    contents = one.read_bytes(), two.read_bytes()
    one.write_bytes(contents[1])
    two.write_bytes(contents[0])
    assert keys(runs) == ["probing.damaged_row_files"] * 2
    one.write_bytes(contents[0])
    two.write_bytes(contents[1])
    names = read_rows(path)[0]["images"]
    shutil.copy(path.parent / names["train"], path.parent / names["test"])
    assert keys(runs) == ["data.unreadable_record"] * 3


def test_lines_that_are_damaged_newer_edited_copied_or_lost_are_named(runs: Path) -> None:
    path = results_of(runs)
    text = path.read_text()
    lines = text.splitlines(keepends=True)
    for damaged, found in (
        (text.replace('"validation":0.5', '"validation":0.75', 1), ["probing.damaged_row", "report.foreign_file"]),
        (text + '{"format": 3}\n', ["probing.newer_row"]),
        (text[:-9], ["probing.damaged_row", "report.foreign_file"]),
        ("".join(lines[1:]), ["report.foreign_file"]),
        ("".join(reversed(lines)), []),
        (text + lines[0], []),
    ):
        path.write_text(damaged)
        assert keys(runs) == found, found
    path.write_text(text)
    row = read_rows(path)[0]
    edited = row | {"test": {**row["test"], "balanced_accuracy": row["test"]["balanced_accuracy"] / 2}}
    path.write_bytes(b"\n".join([line_of(edited), *(line.encode().strip() for line in lines[1:])]) + b"\n")
    assert keys(runs) == ["report.edited_row"]
    path.write_text(text)
    shutil.copytree(path.parent, runs / "copy")
    assert keys(runs) == ["report.repeated_row"] * 3


def test_what_belongs_to_no_row_is_named_and_what_file_managers_leave_is_harmless(runs: Path) -> None:
    folder = results_of(runs).parent
    alf = next(folder.glob("alf-*"))
    for name in (folder / ".DS_Store", alf / "Thumbs.db", folder / ".sweeps" / "a.npz", folder / f".{RESULTS}.lock"):
        name.parent.mkdir(exist_ok=True)
        name.touch()
    found = verify_runs(runs)
    assert (found.problems, found.harmless) == ((), (folder / ".DS_Store", alf / "Thumbs.db"))
    (alf / ".test.npz").touch()
    shutil.copytree(alf, folder / "alf-00000000")
    assert keys(runs) == ["report.foreign_file"] * 2
    result = run("runs", "verify", runs)
    assert result.exit_code == 1
    assert "3 rows in 1 file, 2 problems" in result.stdout
    assert str(alf / ".test.npz") in result.stdout
    (problem, _) = json.loads(run("runs", "verify", runs, "--json").stdout)["problems"]
    assert sorted(problem) == ["do", "expected", "got", "where"]


def test_folders_and_files_without_results_are_named_wherever_they_lie(runs: Path) -> None:
    place = results_of(runs).parent
    shutil.copytree(place, runs / "lost" / "store")
    (runs / "lost" / "store" / RESULTS).unlink()
    (runs / "notes.txt").touch()
    (runs / "data00" / "notes.txt").touch()
    for name in ("failures.jsonl", ".DS_Store", "report"):
        (runs / name).touch()
    found = verify_runs(runs)
    foreign = [problem.where for problem in found.problems]
    assert foreign == [str(runs / name) for name in ("data00/notes.txt", "lost", "notes.txt")]
    assert found.harmless == (runs / ".DS_Store",)
    assert verify_runs(place).problems == ()


def test_rows_of_format_1_are_not_called_sound_and_no_folder_and_no_results_are_refused(tmp_path: Path) -> None:
    assert keys(write_study(tmp_path / "old")) == ["report.unverifiable_row"] * 3
    refuses(run("runs", "verify", tmp_path / "none"), "report.runs_missing")
    (tmp_path / "empty").mkdir()
    refuses(run("runs", "verify", tmp_path / "empty"), "report.no_results")
    (tmp_path / "empty" / RESULTS).mkdir()
    assert keys(tmp_path / "empty") == ["probing.unreadable_results"]
