"""Rows and files of a folder of runs, damaged in one place each; rows are sealed again, so that their digests are right."""

from __future__ import annotations

import copy
import io
import json
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layerbank.probing.rows.results import Row, canonical_json, results_table, results_title, summarize
from layerbank.probing.rows.results_file import digest_of, read_results
from layerbank.report.page.blocks import Picture
from layerbank.report.report import Report, ReportOptions, make_report
from layerbank.report.report_data import ReportData

MISSING = object()
VALUES: tuple[Any, ...] = (
    *(MISSING, None, True, -1, 0, 0.5, 2**53, 2**63, 1e308, -1e308, 10**400, float("nan"), float("inf")),
    *("", "x", "\0", "a/b", "..", "<b>", "9" * 300, "\ud800", [], [1], ["x"], [[]], [None], {}, {"x": 1}, {"x": None}),
)
FEW: tuple[Any, ...] = (MISSING, None, -1, 1e308, float("nan"), "", "9" * 300, [], ["x"], [[]], {}, {"x": None})
Place = tuple[str | int, ...]


def places_in(value: Any, place: Place = ()) -> Iterator[Place]:
    """Every field of a row, at any depth; of a list the first item."""
    if place:
        yield place
    if isinstance(value, dict):
        for name, one in value.items():
            yield from places_in(one, (*place, name))
    elif isinstance(value, list) and value:
        yield from places_in(value[0], (*place, 0))


def changed(row: Row, place: Place, value: Any) -> Row:
    """The row with another value in one place, or without it, and the right digest."""
    row = copy.deepcopy(row)
    inner: Any = row
    for step in place[:-1]:
        inner = inner[step]
    if value is MISSING:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return row


def line_of(row: Row) -> bytes:
    """A line of results.jsonl with the digests that any program can compute."""
    try:
        if "digest" in row:
            row = row | {"digest": digest_of(row)}
    except ValueError:  # NaN has no place in JSON, and a row that has it no digest
        pass
    return json.dumps(row).encode()


def read_lines(path: Path, lines: list[bytes]) -> list[Row]:
    """Write the lines, and read those that are believed; each other one is named."""
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    found = read_results(path)
    named = {error.values["line"] for error in found.skipped}
    assert len(found.rows) + len(named) == len(lines)
    assert all(error.key in ("probing.damaged_row", "probing.newer_row") for error in found.skipped)
    return list(found.rows)


def report_quickly(monkeypatch: pytest.MonkeyPatch, runs: Path, rows: list[Row] | None = None) -> Report:
    """The report of a folder without drawing; with `rows`, of these, whose files are gone. All text can be encoded."""

    def draw(self: ReportData, name: str, draw: Callable[[Path], object], *, alt: str, caption: str) -> Picture:
        self.pictures.append(Picture(name=name, svg=b"<svg></svg>", png=b"", csv=b"a\n1\n", alt=alt, caption=caption))
        return self.pictures[-1]

    monkeypatch.setattr(ReportData, "draw", draw)
    if rows is not None:
        found = {row["key"]: row for row in rows}
        gathered = list(found.values()), dict.fromkeys(found, runs / "gone"), []
        monkeypatch.setattr("layerbank.report.report.gather", lambda runs: gathered)
    made = make_report(runs, ReportOptions(cache_root=runs / "none"))
    for text in (made.html, made.markdown, made.csv, made.latex, *made.notes, *made.headlines, *made.findings):
        text.encode()
    return made


def show_on_a_terminal(rows: list[Row]) -> None:
    """What `layerbank probe` shows of rows that it reuses."""
    results_table(rows)
    results_title(rows, Path("runs"))
    canonical_json([summary.to_dict() for summary in summarize(rows)])


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "gone": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "cut in half": truncate,
    "one bit": flip_a_byte,
    "a text": lambda path: path.write_text("hello"),
    "a number": lambda path: path.write_text("3"),
    "a list": lambda path: path.write_text('{"config": [1]}'),
    "nested too deeply": lambda path: path.write_text("[" * 100_000),
    "no UTF-8": lambda path: path.write_bytes(b"\xff\xfe\xff"),
    "an empty archive": lambda path: zipfile.ZipFile(path, "w").close(),
    "a folder": a_folder,
    "a pipe": a_pipe,
}
ARRAYS: tuple[Any, ...] = (
    np.zeros(0),
    np.zeros((), np.float32),
    np.zeros((3, 2, 2, 2), np.float32),
    np.full((90, 6), np.nan, np.float32),
    np.full((90, 3, 2), np.nan, np.float32),
    np.full(90, -1),
    np.full(90, 2**62),
    np.array(["x"] * 90),
    np.array([b"x"] * 90),
    np.zeros((90, 0), np.float32),
    np.zeros(90, "datetime64[s]"),
    np.zeros(90, np.complex128),
    np.zeros(90, [("a", "i4")]),
)


def with_array(content: bytes, name: str, array: Any) -> bytes:
    """An NPZ file with another array of this name; without it for None, with bytes that are no array for bytes."""
    with np.load(io.BytesIO(content), allow_pickle=False) as saved:
        arrays = {one: saved[one] for one in saved if one != name}
    if isinstance(array, np.ndarray):
        arrays[name] = array
    out = io.BytesIO()
    np.savez(out, **arrays)
    if isinstance(array, bytes):
        with zipfile.ZipFile(out, "a") as archive:
            archive.writestr(name, array)
    return out.getvalue()
