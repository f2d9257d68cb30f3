"""Whether a disk takes what is to be written: free space and permission, asked before any work.

Quotas and disks that others fill meanwhile show only when a write is refused (`StorageFullError`).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .atomic_files import storage_errors
from .errors import NotWritableError
from .forecast import StoreForecast

HEADROOM_BYTES = 1 << 20  # journal and header are written anew beside the old ones; folders
UNKNOWN_BLOCK_BYTES = 4096  # of file systems that do not tell theirs


def nearest_folder(path: Path) -> Path:
    """The folder itself, or the nearest one above it that exists: where it would be made."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def free_bytes(root: Path) -> int:
    """What this user may still write on the disk that a folder lies on, or would lie on."""
    return shutil.disk_usage(nearest_folder(root)).free


def free_files(root: Path) -> int | None:
    """How many more files the disk of a folder takes; None for one that sets no number."""
    if not hasattr(os, "statvfs"):  # Windows
        return None
    told = os.statvfs(nearest_folder(root))
    return told.f_favail if told.f_files else None


def needed_bytes(root: Path, forecasts: Sequence[StoreForecast]) -> int:
    """What stores under a folder will take of its disk: whole blocks a file, some headroom, less what is deleted first.

    Nothing where nothing is to be written.
    """
    writing = [one for one in forecasts if one.written_files or one.written_bytes]
    if not writing:
        return 0
    block_bytes = _block_bytes(nearest_folder(root))
    files = sum(one.written_bytes + block_bytes * one.written_files for one in writing)
    freed = sum(one.present_bytes for one in writing if one.frees_first)
    return max(files - freed, 0) + HEADROOM_BYTES


def check_writable(folder: Path) -> None:
    """Make a file where the folder is, or would be made, and take it away again.

    Raises:
        NotWritableError: read-only, not ours to write, or a file is in the way.
        StorageFullError: not even that fits.
    """
    place = folder.absolute()
    if files := [path for path in (place, *place.parents) if path.is_file()]:
        raise NotWritableError(
            where=str(folder),
            expected="a folder that this process may write",
            got=f"a file, {files[0]}",
            todo="Move it away, or choose another folder with `--cache DIR`.",
        )
    with storage_errors(folder), tempfile.TemporaryFile(dir=nearest_folder(folder)) as file:
        file.write(b"layerbank")


def _block_bytes(folder: Path) -> int:
    if not hasattr(os, "statvfs"):  # Windows
        return UNKNOWN_BLOCK_BYTES
    return os.statvfs(folder).f_frsize or UNKNOWN_BLOCK_BYTES
