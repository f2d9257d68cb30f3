"""Checks of arguments of the Python interface: one that does not fit is named before anything is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..errors import RequestError, shown
from ..jobs.job import typed_value
from ..outputs import check_folder, check_local


def check_kind(value: Any, kind: type[Any], where: str, expected: str) -> None:
    """Refuse an argument of another class.

    Args:
        value: the argument.
        kind: its class.
        where: function and name of the argument.
        expected: what to give, in words.

    Raises:
        RequestError: it is of another class.
    """
    if not isinstance(value, kind):
        raise RequestError("api.wrong_argument", where=where, expected=expected, got=type(value).__name__)


def folder_from(value: Any, where: str) -> Path:
    """The path of a folder.

    Raises:
        RequestError: neither a text nor a path, an empty text, or a URL.
    """
    expected = "the path of a folder"
    check_kind(value, str | Path, where, expected)  # type: ignore[arg-type]
    if not str(value).strip() or "\0" in str(value):  # Path("") is the current folder
        raise RequestError("api.wrong_argument", where=where, expected=expected, got=shown(str(value)))
    check_local(Path(value), where)
    return Path(value)


def output_folder_from(value: Any, where: str, *, is_written: bool = True) -> Path:
    """The path of a folder that results are written to; for `is_written` see `check_folder`.

    Raises:
        RequestError: as `folder_from`, or a folder that is something else or cannot be written.
    """
    folder = folder_from(value, where)
    check_folder(folder, where, is_written=is_written)
    return folder


def names_from(value: Any, where: str, name: str) -> list[str] | None:
    """A list of texts, or None.

    Raises:
        RequestError: anything else, such as one text.
    """
    plain = value.tolist() if isinstance(value, np.ndarray) else value
    found = typed_value(plain, tuple[str, ...] | None, where, name)
    return None if found is None else list(found)
