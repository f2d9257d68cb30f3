"""Files that a command line names to be written: checked before the work, whole or not at all; CSV that spreadsheets do not run.

An output takes the place of a regular file or of nothing. A device, a pipe, a folder or a link of that name is refused: whoever
named it meant another file. `-` is standard output.
"""

from __future__ import annotations

import csv
import io
import os
import re
import secrets
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import RequestError

STDOUT = Path("-")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_URL = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)  # a letter before the colon is a drive of Windows
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how text begins that a spreadsheet may take for a formula


def check_local(path: Path, where: str) -> None:
    """Refuse a URL in place of a path of this machine: a folder named `s3:` would be made.

    Args:
        path: the path; `Path` takes one of the slashes of a URL away.
        where: the option or argument that names it.

    Raises:
        RequestError: it is a URL.
    """
    if _URL.match(str(path)):
        raise RequestError("layerbank.url_not_a_path", where=where, path=path)


def check_output(path: Path, where: str) -> None:
    """Refuse to write a file that would replace something else than a file, or that cannot be written.

    Args:
        path: the file, or `STDOUT`.
        where: the option that names it.

    Raises:
        RequestError: a link, a device, a pipe or a folder has that name, or its folder cannot be written.
    """
    if path == STDOUT:
        return
    check_local(path, where)
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        pass
    except OSError as error:
        raise RequestError("layerbank.output_not_writable", where=where, path=path, reason=error.strerror) from error
    else:
        if kind := kind_of(mode):
            raise RequestError("layerbank.output_not_a_file", where=where, path=path, kind=kind)
    above = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
    if not above.is_dir():
        raise RequestError("layerbank.output_not_writable", where=where, path=path, reason=f"{above} is no folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise RequestError("layerbank.output_not_writable", where=where, path=path, reason=f"{above} cannot be written")


def check_different(outputs: dict[str, Path | None]) -> None:
    """Refuse outputs of one command, by option, of which two are the same file or standard output.

    Raises:
        RequestError: names both options.
    """
    seen: dict[str, str] = {}
    for where, path in outputs.items():
        if path is not None and (other := seen.setdefault(os.path.realpath(path), where)) != where:
            raise RequestError("layerbank.same_output", one=other, other=where, path=path)


def write_output(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all, or to standard output; its folder is made.

    Raises:
        RequestError: as `check_output`; something may have come there meanwhile.
    """
    if path == STDOUT:
        sys.stdout.flush()
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
        return
    check_output(path, str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".layerbank-{secrets.token_hex(8)}")  # nobody can have put a link there
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        with open(os.open(staging, flags, 0o666), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)


def kind_of(mode: int) -> str:
    """What a file is, by its mode (`os.stat`), if it is not regular; "" if it is."""
    if stat.S_ISREG(mode):
        return ""
    kinds = {stat.S_IFLNK: "a link", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def csv_line(cells: Sequence[Any]) -> str:
    """A line of CSV with its end. None and NaN are empty, floats have all their digits.

    Text that begins as a formula gets an apostrophe before it, so that spreadsheets show it and do not compute it; numbers stay.

    >>> csv_line(["=1+1", "-0.5", -0.5, None, "a"])
    "'=1+1,-0.5,-0.5,,a\\n"
    """
    line = io.StringIO()
    csv.writer(line, lineterminator="\r\n").writerow(
        [_csv_cell(cell) for cell in cells]
    )  # quotes both of these in text
    return line.getvalue().removesuffix("\r\n") + "\n"


def _csv_cell(cell: Any) -> Any:
    if isinstance(cell, str):
        is_formula = len(cell) > 1 and cell.startswith(_FORMULA) and not _NUMBER.fullmatch(cell)
        return f"'{cell}" if is_formula else cell
    return None if cell is None or cell != cell else cell
