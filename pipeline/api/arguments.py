"""Checks of arguments of the Python interface: one that does not fit is named before anything is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..errors import RequestError
from ..jobs.job import typed_value
from ..outputs import check_local


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
        RequestError: neither a text nor a path, or a URL.
    """
    check_kind(value, str | Path, where, "the path of a folder")  # type: ignore[arg-type]
    check_local(Path(value), where)
    return Path(value)


def names_from(value: Any, where: str, name: str) -> list[str] | None:
    """A list of texts, or None.

    Raises:
        RequestError: anything else, such as one text.
    """
    plain = value.tolist() if isinstance(value, np.ndarray) else value
    found = typed_value(plain, tuple[str, ...] | None, where, name)
    return None if found is None else list(found)
