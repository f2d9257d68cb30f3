"""results.jsonl: one JSON object a line, a row each, appended and never changed.

    {"backbone":"...","files":{...},"format":2,"key":"...","key_fields":{...},"layerbank":"0.2.0",...,"digest":"..."}

`key` is the digest of `key_fields` (`result_key.py`), `digest` that of the row without itself, `files` has one for each file in the
folder of the row. Rows of format 1 have none of these fields: a report shows them, `layerbank probe` never reuses them.

The decision taken here: a line is believed or skipped as a whole. Lines that are cut short, changed, foreign or of a newer format
are named by file and line and skipped; they stop nothing and are not removed. Fields that are not known are kept.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

from filelock import FileLock

from ...errors import WorkError
from .results import Row, canonical_json, digest_of_text, key_of
from .row_fields import wrong_field

FORMAT = 2
RESULTS = "results.jsonl"
FAILURES = "failures.jsonl"  # of a study, beside the folders of its data sets
_ONLY_NEWER = ("layerbank", "key_fields", "files", "digest")  # fields that no row of format 1 has
_TAIL_BYTES = 1 << 16
_END = re.compile(rb',"digest":"([0-9a-f]{32})"\}\s*\Z')  # of a line as append_row writes it
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


@dataclass(frozen=True, kw_only=True)
class ResultsFile:
    """What a file holds.

    Attributes:
        rows: rows of all formats that can be read, in the order of their lines.
        skipped: why each other line was skipped.
    """

    rows: tuple[Row, ...]
    skipped: tuple[WorkError, ...]


def read_results(path: Path) -> ResultsFile:
    """Read a results file; without one there are no rows.

    Raises:
        WorkError: it is there and cannot be read.
    """
    if not path.exists():
        return ResultsFile(rows=(), skipped=())
    try:
        if not path.is_file():
            raise OSError("it is not a file")
        *lines, last = path.read_bytes().split(b"\n")
    except OSError as error:
        raise WorkError("probing.unreadable_results", path=path, reason=error.strerror or error) from error
    rows, skipped = [], []
    for number, line in enumerate([*lines, last], 1):
        if line.strip():
            try:
                rows.append(_read_line(path, number, line, is_torn=number > len(lines)))
            except WorkError as error:
                skipped.append(error)
    return ResultsFile(rows=tuple(rows), skipped=tuple(skipped))


def append_row(path: Path, row: Row) -> Row:
    """Append a row with its format, version and digest, and wait until it is on the disk; a torn last line is cut off first.

    A lock file keeps processes that append to one file from writing into each other's lines.

    Returns:
        The row as `read_results` will give it: JSON has no tuples.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = canonical_json({"format": FORMAT, "layerbank": version("layerbank"), **row})
    line = f'{text[:-1]},"digest":"{digest_of_text(text.encode())}"}}'
    with FileLock(path.with_name(f".{path.name}.lock")), path.open("a+b") as file:
        _end_last_line(file)
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    written: Row = json.loads(line)
    return written


def digest_of(row: Row) -> str:
    """The digest of a row: of its canonical JSON, without the field `digest`."""
    return key_of({name: value for name, value in row.items() if name != "digest"})


def is_reusable(row: Row) -> bool:
    """Whether `layerbank probe` may reuse it: rows of format 1 have no digest."""
    return row.get("format") == FORMAT


def _read_line(path: Path, number: int, line: bytes, *, is_torn: bool) -> Row:
    """The row of a line.

    Raises:
        WorkError: the line is no row, or one of a newer format.
    """
    try:
        # not as bytes: those may hold lone surrogates
        row = json.loads(line.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        reason = "a line that was cut short" if is_torn else f"no JSON ({error})"
        raise WorkError("probing.damaged_row", path=path, line=number, reason=reason) from None
    if not isinstance(row, dict):
        raise WorkError("probing.damaged_row", path=path, line=number, reason=f"a JSON {type(row).__name__}")
    found = row.get("format", 1)
    if type(found) is int and found > FORMAT:
        version = row.get("layerbank", "an unknown version")
        values = {"known": FORMAT, "format": found, "version": f"{version!s:.40}"}
        raise WorkError("probing.newer_row", path=path, line=number, **values)
    try:
        wrong = _wrong(row, found, line)
    except (ValueError, RecursionError) as error:  # 1e400, and what is nested too deeply to be written again
        wrong = f"no JSON ({error})"
    if wrong:
        raise WorkError("probing.damaged_row", path=path, line=number, reason=wrong)
    return row


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _wrong(row: Row, found: Any, line: bytes) -> str | None:
    """What is wrong with a row of this format or an older one."""
    if "format" not in row:
        if newer := [name for name in _ONLY_NEWER if name in row]:
            return f"a row without a format, but with {', '.join(newer)}"
    elif type(found) is not int or found != FORMAT:
        return f"the format {found!r:.40}"
    if _SURROGATE.search(line) and not _is_encodable(row):
        return "a text that is no Unicode"
    if reason := wrong_field(row, newer=found == FORMAT):
        return reason
    if found == FORMAT and not _is_as_written(row, line):
        return "a row that was changed: its digest differs"
    if found == FORMAT and key_of(row["key_fields"]) != row["key"]:
        return "a key that is not that of its fields"
    return None


def _is_as_written(row: Row, line: bytes) -> bool:
    end = _END.search(line)
    if end and digest_of_text(line[: end.start()] + b"}").encode() == end[1]:
        return True
    return bool(digest_of(row) == row["digest"])  # another program may have written the same values in its own way


def _is_encodable(row: Row) -> bool:
    try:
        json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _end_last_line(file: IO[bytes]) -> None:
    """Cut off a row that a crash left half written; end any other last line that has no end."""
    end, last = file.seek(0, os.SEEK_END), b""
    size = end
    while end and b"\n" not in last:
        begin = max(0, end - _TAIL_BYTES)
        file.seek(begin)
        last, end = file.read(end - begin) + last, begin
    last = last[last.rfind(b"\n") + 1 :]
    if not last:
        return
    try:
        json.loads(last)
    except (ValueError, RecursionError):
        if last.startswith(b"{"):
            file.truncate(size - len(last))
            return
    file.write(b"\n")
