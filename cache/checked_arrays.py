"""Arrays in one file with a checksum, for what can be made again: the content index, the samples in tars, checked chunks.

Such a file is only ever a shortcut. It is replaced whole, and one that is damaged, of other data or of another version is not used.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_128_hexdigest

from .atomic_files import replace_file

STAGING_SUFFIX = ".part"
STALE_STAGING_S = 3600.0


class UnusableIndex(Exception):
    """A file that cannot be used; its argument says why."""


def read_arrays(
    path: Path, title: str, version: int, scope: str, dtypes: Mapping[str, np.dtype[Any]]
) -> dict[str, NDArray[Any]] | None:
    """Read the arrays of a file; None if there is none.

    Args:
        path: the file.
        title, version: what kind of file it has to be.
        scope: which data it has to be about.
        dtypes: name -> dtype of each array, in their order.

    Raises:
        UnusableIndex: it cannot be read, is damaged, or is of other data, another kind or another version.
    """
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UnusableIndex(error.strerror or str(error)) from error
    first, _, _ = data[:200].partition(b"\n")
    words = first.decode(errors="replace").removeprefix(title).split()
    if not first.startswith(title.encode()) or len(words) != 2:
        raise UnusableIndex(f"it is no {title.removeprefix('layerbank ')}")
    if words[0] != str(version):
        raise UnusableIndex(f"another version of layerbank wrote it (format {words[0]})")
    content = memoryview(data)[len(first) + 1 :]
    if xxh3_128_hexdigest(content) != words[1]:
        raise UnusableIndex("it is damaged")
    try:
        return _parse(content, scope, dtypes)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise UnusableIndex("it is damaged") from error


def _parse(content: memoryview, scope: str, dtypes: Mapping[str, np.dtype[Any]]) -> dict[str, NDArray[Any]]:
    """The arrays of a file after its first line; another program may have computed its checksum."""
    offset = int.from_bytes(content[:8], "little")
    header = json.loads(bytes(content[8:offset]))
    if header["scope"] != scope:
        raise UnusableIndex("it belongs to other data")
    arrays: dict[str, NDArray[Any]] = {}
    for name, dtype in dtypes.items():
        if header[name] < 0:
            raise ValueError(f"{header[name]} {name}")
        # a copy, because the bytes in the file are not aligned
        arrays[name] = np.frombuffer(content, dtype=dtype, count=header[name], offset=offset).copy()
        offset += arrays[name].nbytes
    return arrays


def write_arrays(
    paths: Sequence[Path], title: str, version: int, scope: str, arrays: Mapping[str, NDArray[Any]]
) -> str:
    """Write arrays [n] to the first of some places that can be written; of two processes, the last one's stay.

    Returns:
        An empty text, or why no place can be written.
    """
    data = render_arrays(title, version, scope, arrays)
    problem = "no folder"
    for path in paths:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_stale_staging(path)
            staging = path.with_name(f"{path.name}.{secrets.token_hex(4)}{STAGING_SUFFIX}")
            try:
                replace_file(path, data, staging)
            finally:
                staging.unlink(missing_ok=True)
        except OSError as error:
            problem = error.strerror or str(error)
            continue
        return ""
    return problem


def render_arrays(title: str, version: int, scope: str, arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """The content of a file for `read_arrays`."""
    header = json.dumps(
        {"scope": scope, **{name: len(array) for name, array in arrays.items()}}, allow_nan=False
    ).encode()
    start = (8 + len(header)).to_bytes(8, "little")
    content = b"".join((start, header, *(array.data for array in arrays.values())))
    return f"{title} {version} {xxh3_128_hexdigest(content)}\n".encode() + content


def _remove_stale_staging(path: Path) -> None:
    """Remove what processes that were killed left of this file."""
    for file in path.parent.glob(f"{path.name}.*{STAGING_SUFFIX}"):
        if time.time() - file.stat().st_mtime > STALE_STAGING_S:
            file.unlink(missing_ok=True)
