"""The folder of a row, and the digests of its files: whether they are still those that the row was written with."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import xxhash

_AT_ONCE_BYTES = 1 << 20


def row_folder(folder: Path, row: Mapping[str, Any]) -> Path:
    """The folder of a row's probe, predictions and picture, beside results.jsonl: two settings of one probe never share it."""
    return folder / f"{row['probe']}-{row['key'][:8]}"


def digest_files(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Name -> digest of each of these files that exists."""
    return {name: _digest(folder / name) for name in names if (folder / name).is_file()}


def wrong_file(folder: Path, files: Mapping[str, str], *, only: Iterable[str] | None = None) -> str | None:
    """Say what is wrong with the first file that is not as it was written; None if all are.

    Args:
        folder: folder of a row.
        files: `files` of the row: name -> digest.
        only: names to look at; None for all.
    """
    for name in files if only is None else [name for name in only if name in files]:
        try:
            if not stat.S_ISREG((folder / name).stat().st_mode):
                return f"no file {name}, but something else of that name"  # a pipe would be waited for
            found = _digest(folder / name)
        except FileNotFoundError:
            return f"no {name}"
        except OSError as error:
            return f"no readable {name} ({error.strerror or error})"
        if found != files[name]:
            return f"other content in {name}"
    return None


def _digest(path: Path) -> str:
    """xxh3_128 of a file's bytes, 32 hex digits."""
    state = xxhash.xxh3_128()
    with path.open("rb") as file:
        while part := file.read(_AT_ONCE_BYTES):
            state.update(part)
    return state.hexdigest()
