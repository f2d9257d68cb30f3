"""The results of probing: one JSON line a probe, keyed by everything that could change it.

A row's `key` digests the probe, the whole training protocol and the identity of both stores. A row with the same key is the same
result, so it is reused; with any other key it is never touched. Times are the only part of a row that differs between two runs.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..models.layers import short_levels
from .probe_spec import REFERENCE

Row = dict[str, Any]


def key_of(setting: dict[str, Any]) -> str:
    """The digest of a setting.

    >>> key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
    True
    """
    text = json.dumps(setting, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def read_rows(path: Path) -> list[Row]:
    """Rows of a results file, [] if there is none. A last line cut short by a crash is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


def append_row(path: Path, row: Row) -> Row:
    """Append one line and wait until it is on the disk; a torn last line is cut off first.

    Processes that append to one file wait for each other: no line is written into another.

    Returns:
        The row as `read_rows` will give it: JSON has no tuples.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")), path.open("a+b") as file:
        _cut_torn_line(file.fileno(), path)
        line = json.dumps(row, ensure_ascii=False)
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    again: Row = json.loads(line)
    return again


def _cut_torn_line(descriptor: int, path: Path) -> None:
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole != len(content):
        os.ftruncate(descriptor, whole)


def gains(rows: Iterable[Row]) -> dict[str, float]:
    """Points of test balanced accuracy over `linear-cls`, by key; empty where there is no such row to compare with."""
    rows = [row for row in rows if row["test"] is not None]
    reference = {row["setting_of_study"]: row["test"]["balanced_accuracy"] for row in rows if row["probe"] == REFERENCE}
    return {
        row["key"]: 100 * (row["test"]["balanced_accuracy"] - reference[row["setting_of_study"]])
        for row in rows
        if row["setting_of_study"] in reference
    }


def found(row: Row) -> str:
    """What validation chose beside a setting: a probe of a family, levels, how many settings; "" where there was no such choice.

    >>> found({"candidate": None, "derived": {"rounds": []}, "levels": ["block.3", "block.4", "final"]})
    'levels 3-4, final'
    """
    derived = row.get("derived") or {}
    if row.get("candidate"):
        return str(row["candidate"])
    if "rounds" in derived:
        return f"levels {short_levels(row['levels'])}"
    if "members" in derived:
        return f"{sum(not one['diverged'] for one in derived['members'])} settings"
    return ""
