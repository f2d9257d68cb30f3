"""Files that options name to be written: which are refused, `-`, whole or not at all, and CSV that spreadsheets show as text."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from commands import MODEL, run
from messages import raises, refuses
from study_recipes import FAST

from layerbank.cli import main
from layerbank.commands.options import OutputFile, OutputFolder
from layerbank.errors import RequestError
from layerbank.outputs import csv_line, write_output
from layerbank.probing.predict import Prediction, predictions_csv
from layerbank.report.page.blocks import csv_text

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")


def a_link(path: Path, other: Path) -> None:
    path.symlink_to(other)


def a_link_to_nothing(path: Path, other: Path) -> None:
    path.symlink_to(path.with_name("nothing"))


def a_pipe(path: Path, other: Path) -> None:
    os.mkfifo(path)


def a_folder(path: Path, other: Path) -> None:
    path.mkdir()


def a_device(path: Path, other: Path) -> None:
    path.symlink_to(os.devnull)


KINDS = [a_link, a_link_to_nothing, a_pipe, a_folder, a_device]


def outputs(group: click.Group = main, path: tuple[str, ...] = ()) -> Iterator[Any]:
    """Every option and argument of every command that names something to write."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from outputs(command, (*path, name))
            continue
        for one in command.params:
            if isinstance(one.type, OutputFile | OutputFolder):
                yield pytest.param((*path, name), command, one, id=" ".join((*path, name, one.opts[0])))


def arguments(path: tuple[str, ...], command: click.Command, one: click.Parameter, value: object) -> list[object]:
    """A command line with this output; whatever else it names is not there."""
    given: list[object] = [*path]
    for other in command.params:
        if other is one:
            given += [value] if isinstance(one, click.Argument) else [one.opts[0], value]
        elif other.required:
            given += ["absent"] if isinstance(other, click.Argument) else [other.opts[0], "absent"]
    return given


def test_the_options_that_name_a_file_to_write_are_known() -> None:
    assert {one.id for one in outputs()} >= {
        *(f"report --{name}" for name in ("html", "figures", "markdown", "csv", "parquet", "latex")),
        *(f"{name} --events" for name in ("extract", "probe", "study")),
        "cache export file",
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("path", "command", "one"), list(outputs()))
def test_nothing_but_a_file_is_replaced_and_this_is_checked_first(
    path: tuple[str, ...],
    command: click.Command,
    one: click.Parameter,
    kind: Callable[[Path, Path], None],
    tmp_path: Path,
) -> None:
    (tmp_path / "other").write_text("kept")
    kind(tmp_path / "output", tmp_path / "other")
    before = os.lstat(tmp_path / "output")
    result = run(*arguments(path, command, one, tmp_path / "output"))
    if isinstance(one.type, OutputFile):
        refuses(result, "layerbank.output_not_a_file", path=tmp_path / "output")
    elif kind is not a_folder:
        refuses(result, "layerbank.output_not_a_folder", path=tmp_path / "output")
    after = os.lstat(tmp_path / "output")
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert (tmp_path / "other").read_text() == "kept"
    assert not (tmp_path / "nothing").exists()
    refuses(run(*arguments(path, command, one, "/dev/null")), f"layerbank.output_not_a_{one_kind(one)}")


def one_kind(one: click.Parameter) -> str:
    return "file" if isinstance(one.type, OutputFile) else "folder"


@pytest.mark.parametrize(("path", "command", "one"), list(outputs()))
def test_an_output_below_a_file_is_refused_first(
    path: tuple[str, ...], command: click.Command, one: click.Parameter, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("kept")
    if isinstance(one.type, OutputFile):
        result = run(*arguments(path, command, one, tmp_path / "file" / "output"))
        refuses(result, "layerbank.output_not_writable")
        if not one.type.dash:
            refuses(run(*arguments(path, command, one, "-")), "layerbank.not_to_stdout")
    else:
        refuses(run(*arguments(path, command, one, "-")), "layerbank.not_to_stdout")


def test_a_file_is_replaced_as_a_whole_or_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_output(tmp_path / "new" / "a", b"old")
    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="disk full"):
        write_output(tmp_path / "new" / "a", b"new")
    assert [(one.name, one.read_bytes()) for one in (tmp_path / "new").iterdir()] == [("a", b"old")]


def fails(fd: int) -> None:
    raise OSError("disk full")


def test_what_comes_between_the_check_and_the_writing_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a")
    with raises("layerbank.output_not_a_file", RequestError, kind="a pipe"):
        write_output(tmp_path / "a", b"new")
    assert [one.name for one in tmp_path.iterdir()] == ["a"]


@pytest.fixture(scope="module")
def runs(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    (folder / "fast.toml").write_text(FAST)
    roots = ("--cache", folder / "caches", "--runs", folder / "runs", "--protocol", folder / "fast.toml")
    made = run("probe", *MODEL, "--data", f"folder:{photos}", *roots, "--probe", "linear-cls,alf", "--events", "-")
    assert made.exit_code == 0, made.output
    assert all(json.loads(line)["event"] for line in made.stdout.splitlines())
    assert "linear-cls" in made.stderr  # the table
    return folder / "runs"


@pytest.mark.parametrize("option", ["--csv", "--markdown", "--latex", "--html"])
def test_a_dash_is_standard_output_and_has_it_alone(option: str, runs: Path, tmp_path: Path) -> None:
    common = ("report", runs, "--no-images", "--html", tmp_path / "a.html")
    filed = run(*common, option, tmp_path / "filed")
    shown = run(*common, option, "-")
    assert shown.exit_code == filed.exit_code == 0, shown.output
    assert shown.stdout == (tmp_path / "filed").read_text()
    assert "wrote" in shown.stderr
    assert "wrote" in filed.stdout
    refuses(run(*common, option, "-", "--json"), "layerbank.same_output")
    other = "--latex" if option == "--csv" else "--csv"
    refuses(run(*common, option, "-", other, "-"), "layerbank.same_output")
    refuses(run(*common, option, tmp_path / "x", other, tmp_path / "." / "x"), "layerbank.same_output")


def test_the_page_of_a_folder_of_results_replaces_no_link_in_it(runs: Path, tmp_path: Path) -> None:
    (runs / "report").mkdir(exist_ok=True)
    (tmp_path / "other").write_text("kept")
    (runs / "report" / "index.html").symlink_to(tmp_path / "other")
    refuses(run("report", runs), "layerbank.output_not_a_file")
    (runs / "report" / "index.html").unlink()
    assert (tmp_path / "other").read_text() == "kept"


def test_heads_are_drawn_in_place_of_a_link_and_not_through_it(runs: Path, tmp_path: Path) -> None:
    (folder,) = runs.glob("*/*/alf-*")
    (tmp_path / "other").write_text("kept")
    (folder / "attention-heads.png").symlink_to(tmp_path / "other")
    assert run("attention", folder, "--heads").exit_code == 0
    assert not (folder / "attention-heads.png").is_symlink()
    assert (tmp_path / "other").read_text() == "kept"


@pytest.mark.parametrize("begin", ["=", "+", "-", "@", "\t", "\r"])
def test_text_of_a_csv_is_no_formula(begin: str) -> None:
    text = f"{begin}cmd|' /C calc'!A0"
    for written in (csv_line([text]), csv_text(["name"], [[text]]).partition("\n")[2]):
        assert next(csv.reader(io.StringIO(written, newline="")))[0] == f"'{text}"


@pytest.mark.parametrize("number", ["-0.5", "+1.25", "-3", "1e-05", "-1e-05", -0.5, 3, "a-b", "", "a=b"])
def test_numbers_and_other_text_of_a_csv_stay(number: object) -> None:
    assert csv_line([number, "x"]) == f"{number},x\n"


def test_predictions_are_plain_bytes_of_the_ids(runs: Path, photos: Path, tmp_path: Path) -> None:
    names = [
        "tab\there.png",
        "bell\a.png",
        "escape\x1b[31m.png",
        "=1+1.png",
        "[bold]x[bold].png",
        "line\rbreak.png",
        'a"b,c.png',
        "ü.png",
    ]
    image = next(photos.glob("test/*/*.png")).read_bytes()
    (tmp_path / "images").mkdir()
    for name in names:
        (tmp_path / "images" / name).write_bytes(image)
    (folder,) = runs.glob("*/*/linear-cls-*")
    command = [sys.executable, "-m", "layerbank", "predict", "--probe", folder, "--data", f"images:{tmp_path}/images"]
    done = subprocess.run([str(one) for one in command], capture_output=True, check=True)
    ids = [line[0] for line in csv.reader(io.StringIO(done.stdout.decode(), newline=""))][1:]
    assert sorted(ids) == sorted(f"'{name}" if name.startswith("=") else name for name in names)
    one = Prediction(sample_id="a\tb", label="@x", probability=0.5, target=None)
    assert list(predictions_csv([one]))[1] == b"a\tb,'@x,0.500000,\n"
