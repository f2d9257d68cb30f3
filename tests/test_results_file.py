"""results.jsonl: whole lines, each believed or named and skipped."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from messages import check, raises
from study_runs import REST, read_rows

from layerbank import WorkError
from layerbank.probing.rows.results import key_of
from layerbank.probing.rows.results_file import FORMAT, append_row, digest_of, is_reusable, read_results


def row(name: str = "alf", **changed: Any) -> dict[str, Any]:
    """A row without format, version and digest, which `append_row` adds."""
    fields = {"algorithm": 1, "probe.name": name}
    return {
        "key": key_of(fields),
        "setting_of_study": "s",
        "key_fields": fields,
        "probe": name,
        "stores": {"train": ["photos/train/vit.zarr"], "test": []},
        "backbone": "tiny",
        "dataset": "häuser",
        "protocol": {"seed": 0, "clip_norm": "inf"},
        "test": {"balanced_accuracy": 0.5, "top1": 1},
        "validation": 0.25,
        "settings": [{"lr": 0.1, "validation": 0.25}, {"lr": 1e38, "validation": None}],
        "files": {"test.npz": "0" * 32},
        **REST,
        **changed,
    }


def of_format_1(**changed: Any) -> dict[str, Any]:
    newer = ("key_fields", "stores", "files", *REST)
    return {name: value for name, value in row().items() if name not in newer} | changed


def signed(values: dict[str, Any]) -> dict[str, Any]:
    """A row of another writer: its digest is right, whatever it holds."""
    values = {"format": FORMAT, "layerbank": "9", **values}
    return values | {"digest": digest_of(values)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "results.jsonl"


def test_rows_come_back_in_the_order_they_were_written_with_format_version_and_digest(path: Path) -> None:
    assert read_rows(path) == []
    written = [append_row(path, row(name)) for name in ("alf", "linear-cls")]
    assert read_rows(path) == written
    assert [(one["format"], one["digest"]) for one in written] == [(FORMAT, digest_of(one)) for one in written]
    assert {name: written[0][name] for name in row()} == row()
    assert all(map(is_reusable, written))


def test_a_line_torn_by_a_crash_is_named_and_cut_off_before_the_next_row(path: Path) -> None:
    first = append_row(path, row("a"))
    with path.open("ab") as file:
        file.write(b'{"key": "b", "pro')
    results = read_results(path)
    assert list(results.rows) == [first]
    (error,) = results.skipped
    check(error, "probing.damaged_row", {"path": path, "line": 2, "reason": "a line that was cut short"})
    second = append_row(path, row("c"))
    assert path.read_text().count("\n") == 2
    assert read_results(path).rows == (first, second)
    assert not read_results(path).skipped


@pytest.mark.parametrize("last", ["# a note", "[1, 2]", "{}"])
def test_a_last_line_that_an_editor_left_without_an_end_is_not_cut_off(path: Path, last: str) -> None:
    first = append_row(path, row("a"))
    path.write_text(path.read_text().rstrip("\n"))
    assert read_rows(path) == [first]
    append_row(path, row("b"))
    path.write_text(path.read_text() + last)
    append_row(path, row("c"))
    assert [one["probe"] for one in read_rows(path)] == ["a", "b", "c"]
    assert f"\n{last}\n" in path.read_text()


def test_a_torn_line_longer_than_the_part_of_the_file_that_is_read_at_once_is_cut_off(path: Path) -> None:
    append_row(path, row("a"))
    append_row(path, row("b", note="x" * 300_000))
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    append_row(path, row("b", note="x" * 300_000))
    assert path.read_bytes() == whole


DEEP = "[" * 100_000
DAMAGES: dict[str, tuple[str, str]] = {
    "foreign JSON": ("[1, 2]", "a JSON list"),
    "a number": ("3", "a JSON int"),
    "no JSON": ("{not json", "no JSON ("),
    "a zeroed block": ("\0" * 40, "no JSON ("),
    "nested too deeply": (DEEP, "no JSON ("),
    "a number of 5,000 digits": ("1" * 5000, "no JSON ("),
    "foreign object": ("{}", "a row without key, probe, backbone"),
    "half an old row": ('{"format": 2, "key": "a"}', "a row without probe, backbone"),
    "no format": (json.dumps(row()), "a row without a format, but with key_fields, files"),
    "a format that is a text": (json.dumps(row() | {"format": "2"}), "the format '2'"),
    "a format that is true": (json.dumps(row() | {"format": True}), "the format True"),
    "format 0": (json.dumps(row() | {"format": 0}), "the format 0"),
    "no digest": (json.dumps(row() | {"format": 2, "layerbank": "9"}), "a row without digest"),
    "an edited number": (
        json.dumps(signed(row())).replace('"balanced_accuracy": 0.5', '"balanced_accuracy": 0.75'),
        "a row that was changed: its digest differs",
    ),
    "an added field": (json.dumps(signed(row()) | {"note": 1}), "a row that was changed: its digest differs"),
    "the key of another": (json.dumps(signed(row(key="0" * 32))), "a key that is not that of its fields"),
    "a lone surrogate": (json.dumps(signed(row(dataset="\ud800"))), "a text that is no Unicode"),
    "a lone surrogate of format 1": (json.dumps(of_format_1(backbone="\ud800")), "a text that is no Unicode"),
    "NaN": (json.dumps(of_format_1(test={"balanced_accuracy": float("nan")})), "no JSON (NaN is no number of JSON)"),
    "infinity": (json.dumps(of_format_1(validation=float("inf"))), "no JSON (Infinity is no number of JSON)"),
    "1e400 in a field that nobody reads": (
        json.dumps(signed(row(note=1.5))).replace('"note": 1.5', '"note": 1e400'),
        "no JSON (Out of range float values",
    ),
    "a protocol that is nested": (json.dumps(of_format_1(protocol={"seed": 0, "lrs": [[1]]})), "the protocol"),
    "a test without a setting": (json.dumps(signed(row(chosen=None))), "a test without the chosen"),
    "no levels": (json.dumps(signed(row(levels=[]))), "the levels []"),
    "images elsewhere": (json.dumps(signed(row(images={"test": "../a.npz"}))), "the images {'test': '../a.npz'}"),
    "10^400": (
        json.dumps(of_format_1()).replace('"balanced_accuracy": 0.5', f'"balanced_accuracy": 1{"0" * 400}'),
        "the test {'balanced_accuracy': 1000",
    ),
    "1e400": (json.dumps(of_format_1()).replace('"lr": 0.1', '"lr": 1e400'), "the settings [{'lr': inf"),
    "percent": (json.dumps(of_format_1(validation=25.0)), "the validation 25.0"),
    "a text for a number": (json.dumps(of_format_1(test={"balanced_accuracy": "0.5"})), "the test"),
    "true for a number": (json.dumps(of_format_1(test={"balanced_accuracy": True})), "the test"),
    "no seed": (json.dumps(of_format_1(protocol={})), "the protocol {}"),
    "a negative seed": (json.dumps(of_format_1(protocol={"seed": -1})), "the protocol {'seed': -1}"),
    "a seed of 400 digits": (json.dumps(of_format_1(protocol={"seed": 10**400})), "the protocol {'seed': 1000"),
    "a name that is a path": (json.dumps(of_format_1(probe="../../etc")), "the probe '../../etc'"),
    "a name with a zero": (json.dumps(of_format_1(probe="a\0")), "the probe 'a\\x00'"),
    "seconds that are a list": (json.dumps(of_format_1(seconds=[1])), "the seconds [1]"),
    "a file elsewhere": (json.dumps(signed(row(files={"../a": "0"}))), "the files {'../a': '0'}"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_foreign_line_is_named_and_skipped_and_the_others_are_read(path: Path, damage: str) -> None:
    line, reason = DAMAGES[damage]
    first = append_row(path, row("a"))
    with path.open("ab") as file:
        file.write(line.encode() + b"\n \n")
    last = append_row(path, row("b"))
    results = read_results(path)
    assert results.rows == (first, last)
    (error,) = results.skipped
    check(error, "probing.damaged_row", {"path": path, "line": 2})
    assert error.values["reason"].startswith(reason)
    assert len(error.values["reason"]) < 200


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", '"\ud800"'.encode("utf-8", "surrogatepass")])
def test_bytes_that_are_no_utf_8_are_named(path: Path, content: bytes) -> None:
    append_row(path, row())
    path.write_bytes(content + b"\n" + path.read_bytes())
    results = read_results(path)
    assert len(results.rows) == 1
    check(results.skipped[0], "probing.damaged_row", {"line": 1})


def test_every_line_cut_anywhere_and_every_changed_byte_is_noticed(path: Path) -> None:
    append_row(path, row("alf"))
    line = path.read_bytes()
    for length in range(1, len(line) - 1):
        path.write_bytes(line[:length] + b"\n")
        assert not read_rows(path), line[:length]
    for place in range(len(line) - 1):
        path.write_bytes(line[:place] + bytes([line[place] ^ 1]) + line[place + 1 :])
        believed = read_rows(path)
        assert not believed or believed == [json.loads(line)], line[
            place - 9 : place + 9
        ]  # a space became an exclamation mark


def test_a_row_of_a_newer_format_is_named_as_such_whatever_it_holds(path: Path) -> None:
    append_row(path, row())
    with path.open("a") as file:
        file.write('{"format": 3, "layerbank": "7.1"}\n')
    (error,) = read_results(path).skipped
    check(error, "probing.newer_row", {"path": path, "line": 2, "known": 2, "format": 3, "version": "7.1"})


def test_fields_that_are_not_known_are_kept(path: Path) -> None:
    written = append_row(path, row(fold={"number": 3}))
    assert read_rows(path) == [written]
    assert written["fold"] == {"number": 3}


def test_lines_may_be_reordered_repeated_and_written_by_another_json_writer(path: Path) -> None:
    one, two = append_row(path, row("a")), append_row(path, row("b"))
    lines = [json.dumps(dict(reversed(list(values.items()))), separators=(",", ":")) for values in (two, one, two)]
    path.write_text("\r\n".join(lines))
    assert read_rows(path) == [two, one, two]


def test_rows_of_format_1_are_read_and_never_reused(path: Path) -> None:
    path.parent.mkdir()
    path.write_text(json.dumps(of_format_1()) + "\n")
    (found,) = read_rows(path)
    assert found == of_format_1()
    assert not is_reusable(found)


def test_what_is_no_readable_file_is_refused_by_name(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.mkdir(parents=True)
    with raises("probing.unreadable_results", WorkError, path=path, reason="it is not a file"):
        read_results(path)
    path.rmdir()
    append_row(path, row())

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)  # the superuser may read anything
    with raises("probing.unreadable_results", WorkError, path=path, reason="Permission denied"):
        read_results(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_a_pipe_is_refused_and_not_waited_for(path: Path) -> None:
    path.parent.mkdir()
    os.mkfifo(path)
    with raises("probing.unreadable_results", WorkError, path=path):
        read_results(path)


def test_reading_takes_time_by_the_number_of_rows(path: Path) -> None:
    append_row(
        path,
        row(settings=[{"lr": 0.1, "weight_decay": 1e-6, "dropout": 0.1, "validation": 0.25, "num_steps": 1000}] * 63),
    )
    line = path.read_bytes()

    def seconds(count: int) -> float:
        path.write_bytes(line * count)
        began = time.process_time()
        assert len(read_rows(path)) == count
        return time.process_time() - began

    few, many = min(seconds(200) for _ in range(3)), min(seconds(1600) for _ in range(2))
    assert many < 8 * 2 * few
