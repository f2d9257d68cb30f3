"""Which rows `probe` reuses: those whose line and files are as they were written, and no others."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import stat
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from messages import raises, shows
from probe_runs import PROTOCOL, REQUEST, run, stores_of
from study_runs import read_rows

from layerbank import WorkError
from layerbank.event_text import text_of
from layerbank.events import Event, ProbeFinished, ResultSkipped
from layerbank.probing.rows.result_key import KEY_TABLE, data_of
from layerbank.probing.rows.results import key_of
from layerbank.probing.rows.row_files import row_folder
from layerbank.probing.tokens.split_tokens import SplitRequest

Runs = tuple[Path, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def stores(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[SplitRequest, SplitRequest]:
    return stores_of(REQUEST.open("cpu"), photos, tmp_path_factory.mktemp("caches"))


@pytest.fixture(scope="module")
def finished(stores: tuple[SplitRequest, SplitRequest], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("runs")
    return folder, run(stores, folder, ("linear-cls", "ridge-cls", "attn-last"))[0]


@pytest.fixture
def runs(finished: Runs, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished[0], tmp_path / "copy"))


def again(
    stores: tuple[SplitRequest, SplitRequest], runs: Path
) -> tuple[list[dict[str, Any]], dict[str, bool], list[ResultSkipped]]:
    """The rows, probe -> whether its row was reused, and what was skipped."""
    rows, events = run(stores, runs, ("linear-cls", "ridge-cls", "attn-last"))
    reused = {event.probe: event.reused for event in events if isinstance(event, ProbeFinished)}
    return rows, reused, [event for event in events if isinstance(event, ResultSkipped)]


def test_a_row_has_its_key_field_by_field_its_stores_its_files_and_its_digest(
    stores: tuple[SplitRequest, SplitRequest], finished: Runs
) -> None:
    folder, rows = finished
    written = {row["key"]: row for row in read_rows(folder / "results.jsonl")}
    assert {row["key"]: row for row in rows} == written
    for row in rows:
        assert (row["format"], row["layerbank"]) == (2, version("layerbank"))
        assert row["key"] == key_of(row["key_fields"])
        data = vars(data_of(*(split.open() for split in stores)))
        decisive = {name: value for name, value in data.items() if value != KEY_TABLE[name]}
        assert {name: row["key_fields"].get(name) for name in decisive} == decisive
        assert {"model", "tap", "train_rows", "test_rows", "train_targets", "test_targets"} <= set(decisive)
        assert row["key_fields"]["probe.name"] == row["probe"]
        assert row["stores"] == {
            name: [path.relative_to(split.cache_root).as_posix() for path in split.open().stores]
            for name, split in zip(("train", "test"), stores, strict=True)
        }
        assert set(row["files"]) == {path.name for path in row_folder(folder, row).iterdir()}
    assert (folder / "results.jsonl").read_text().splitlines()[-1].endswith(f'"digest":"{rows[-1]["digest"]}"}}')


def test_files_of_a_row_have_the_permissions_that_the_umask_leaves(finished: Runs) -> None:
    umask = os.umask(0)
    os.umask(umask)
    files = [path for row in finished[1] for path in row_folder(finished[0], row).iterdir()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o666 & ~umask}


def test_rows_that_are_as_they_were_written_are_reused(
    stores: tuple[SplitRequest, SplitRequest], finished: Runs, runs: Path
) -> None:
    rows, reused, skipped = again(stores, runs)
    assert rows == finished[1]
    assert (set(reused.values()), skipped) == ({True}, [])


def _truncate(place: Path) -> None:
    os.truncate(place / "test.npz", 100)


def _swap(place: Path) -> None:
    (other,) = place.parent.glob("attn-last-*/test.npz")
    shutil.copy(other, place / "test.npz")


def _edit(place: Path) -> None:
    text = (place / "probe.json").read_text()
    (place / "probe.json").write_text(text.replace('"red"', '"rot"'))


FILE_DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "no curves.npz"),
    "a missing file": (lambda place: (place / "curves.npz").unlink(), "no curves.npz"),
    "a truncated file": (_truncate, "other content in test.npz"),
    "a file of another row": (_swap, "other content in test.npz"),
    "an edited file": (_edit, "other content in probe.json"),
}


@pytest.mark.parametrize("damage", FILE_DAMAGES)
def test_a_row_whose_files_are_not_as_they_were_written_is_named_and_trained_again(
    stores: tuple[SplitRequest, SplitRequest], finished: Runs, runs: Path, damage: str
) -> None:
    change, reason = FILE_DAMAGES[damage]
    place = row_folder(runs, finished[1][0])
    change(place)
    rows, reused, (event,) = again(stores, runs)
    assert (event.where, event.got) == (str(place), reason)
    assert shows(text_of(event), "probing.damaged_row_files")
    assert reused == {"linear-cls": False, "ridge-cls": True, "attn-last": True}
    assert rows[0]["test"] == finished[1][0]["test"]
    assert rows[0]["files"] == finished[1][0]["files"]
    assert again(stores, runs)[1:] == (dict.fromkeys(reused, True), [])


def _edit_number(row: dict[str, Any]) -> str:
    return json.dumps(row | {"test": {**row["test"], "balanced_accuracy": 0.123}})


def _of_format_1(row: dict[str, Any]) -> str:
    """As an editor would have it who removes all that gives the change away."""
    newer = ("format", "layerbank", "key_fields", "stores", "files", "digest")
    return json.dumps({name: value for name, value in row.items() if name not in newer} | {"validation": 0.123})


def test_an_edited_row_is_not_believed_and_lines_of_others_stop_nothing(
    stores: tuple[SplitRequest, SplitRequest], finished: Runs, runs: Path
) -> None:
    results = runs / "results.jsonl"
    lines = [_edit_number(finished[1][0]), _of_format_1(finished[1][1]), json.dumps(finished[1][2])]
    results.write_text("\n".join([*lines, "[3]", '{"format": 3}', '{"format": 2, "key": "', ""]))
    rows, reused, skipped = again(stores, runs)
    assert reused == {"linear-cls": False, "ridge-cls": False, "attn-last": True}
    assert [(event.where, event.got) for event in skipped] == [
        (f"{results}, line 1", "a row that was changed: its digest differs"),
        (f"{results}, line 4", "a JSON list"),
        (f"{results}, line 5", "format 3, written by layerbank an unknown version"),
        (f"{results}, line 6", skipped[3].got),
    ]
    assert [row["test"] for row in rows] == [row["test"] for row in finished[1]]
    assert results.read_text().startswith("\n".join([*lines, "[3]"]))


def test_of_rows_with_one_key_the_last_that_can_be_believed_counts(
    stores: tuple[SplitRequest, SplitRequest], finished: Runs, runs: Path
) -> None:
    results = runs / "results.jsonl"
    results.write_text(results.read_text() * 2 + _edit_number(finished[1][0]) + "\n")
    rows, reused, skipped = again(stores, runs)
    assert rows == finished[1]
    assert (set(reused.values()), len(skipped)) == ({True}, 1)


def test_results_that_cannot_be_read_are_refused_before_anything_is_trained(
    stores: tuple[SplitRequest, SplitRequest], tmp_path: Path
) -> None:
    (tmp_path / "results.jsonl").mkdir()
    events: list[Event] = []
    with raises("probing.unreadable_results", WorkError, path=tmp_path / "results.jsonl"):
        events += run(stores, tmp_path, ("linear-cls",))[1]
    assert events == []


def test_the_files_of_a_row_are_on_the_disk_before_the_row_that_refers_to_them(
    stores: tuple[SplitRequest, SplitRequest], runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    sync, replaced = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        order.append(Path(f"/proc/self/fd/{descriptor}").resolve().name)
        sync(descriptor)

    def replace(self: Path, target: Path) -> Path:
        order.append(f"-> {target.name}")
        return replaced(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    (row,), _ = run(stores, runs, ("attn-last",), PROTOCOL, retrain=True)
    place = row_folder(runs, row)
    assert order[-1] == "results.jsonl"
    owner = re.compile(rf"\.{re.escape(socket.gethostname())}-\d+-\d+")  # in the names of staging files
    synced = {owner.sub("", name.removeprefix(".")).split(".safetensors.")[0].split(".json.")[0] for name in order}
    assert {"test.npz", "curves.npz", "attention.json", "attention.npz", "attention.csv", "attention.png"} <= synced
    assert order.index(place.name) > max(order.index(f"-> {name}") for name in ("test.npz", "curves.npz"))
    assert order.index(runs.name) > order.index(place.name)
