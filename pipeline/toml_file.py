"""TOML that a user wrote: recipes, training protocols, lists of trusted models."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any


def read_toml(file: Path) -> dict[str, Any]:
    """Read a TOML file in UTF-8; a byte order mark is skipped.

    Raises:
        ValueError: it is no TOML, or no text in UTF-8; the message says why.
        OSError: it cannot be read.
    """
    try:
        return tomllib.loads(file.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        byte = f"the byte 0x{error.object[error.start]:02x}"
        raise ValueError(f"text that is not in UTF-8 ({byte} in line {line})") from error
    except RecursionError as error:
        raise ValueError("lists inside lists without end") from error
