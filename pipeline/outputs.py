"""Files that a command line names to be written: checked before the work, whole or not at all; CSV that spreadsheets do not run.

An output takes the place of a regular file or of nothing. A device, a pipe, a folder or a link of that name is refused: whoever
named it meant another file. `-` is standard output.
"""

from __future__ import annotations

import csv
import errno
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
    if reason := _not_writable(next(folder for folder in path.absolute().parents if os.path.lexists(folder))):
        raise RequestError("layerbank.output_not_writable", where=where, path=path, reason=reason)


def check_folder(path: Path, where: str, *, is_written: bool = True) -> None:
    """Refuse a folder of outputs that is something else, or that can neither be written nor made.

    Args:
        path: the folder, which need not exist.
        where: the option that names it.
        is_written: False if the folder may hold all that is needed; then it need not be writable where it exists.

    Raises:
        RequestError: it is a URL, or cannot be used; names the option and the reason.
    """
    check_local(path, where)
    if _is_too_long(path):
        raise RequestError("layerbank.name_too_long", place=path)
    found = next(folder for folder in (path.absolute(), *path.absolute().parents) if os.path.lexists(folder))
    exists = found == path.absolute()
    if exists and not path.is_dir():
        raise RequestError("layerbank.output_not_a_folder", where=where, path=path)
    if (is_written or not exists) and (reason := _not_writable(found)):
        raise RequestError("layerbank.output_folder_not_writable", where=where, path=path, reason=reason)


def _is_too_long(path: Path) -> bool:
    """Whether the file system takes no path of this length."""
    try:
        os.lstat(path)
    except OSError as error:
        return error.errno == errno.ENAMETOOLONG
    return False


def _not_writable(folder: Path) -> str:
    """Why nothing can be made in a folder; "" if something can."""
    if not folder.is_dir():
        return f"{folder} is no folder"
    return "" if os.access(folder, os.W_OK | os.X_OK) else f"{folder} cannot be written"


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
    # csv quotes a cell that has one of the characters of a line's end
    csv.writer(line, lineterminator="\r\n").writerow([_csv_cell(cell) for cell in cells])
    return line.getvalue().removesuffix("\r\n") + "\n"


def _csv_cell(cell: Any) -> Any:
    if isinstance(cell, str):
        is_formula = len(cell) > 1 and cell.startswith(_FORMULA) and not _NUMBER.fullmatch(cell)
        return f"'{cell}" if is_formula else cell
    return None if cell is None or cell != cell else cell
