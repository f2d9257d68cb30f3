"""Files that appear whole or not at all.

A file is written under a staging name, fsynced and renamed, then its folder is fsynced: after a crash either the old
content is there or the new.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import NotWritableError, StorageFullError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write every byte of `data` at the file's position; a nearly full disk accepts a part first and refuses then."""
    view = memoryview(data).cast("B")
    while len(view):
        view = view[os.write(fd, view) :]


def open_staging(path: Path) -> int:
    """Open a staging file to write. A link or a pipe that somebody left there is neither followed nor waited for.

    Raises:
        OSError: there is one.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    for name in ("O_BINARY", "O_NOFOLLOW", "O_NONBLOCK"):  # not on every system
        flags |= getattr(os, name, 0)
    return os.open(path, flags, 0o666)


def replace_file(path: Path, data: bytes, staging: Path) -> None:
    """Replace the content of `path` in one step, by way of `staging` on the same file system."""
    fd = open_staging(staging)
    try:
        write_all(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(staging, path)
    sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """fsync a file that was written before."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_folder(path: Path) -> None:
    """Make names that were created, renamed or removed in this folder survive a crash."""
    if os.name != "nt":  # folders cannot be opened there
        sync_file(path)


def sync_tree(path: Path) -> None:
    """fsync every file and folder below `path`; zarr itself never does."""
    for folder, _, names in os.walk(path, topdown=False):
        for name in names:
            sync_file(Path(folder, name))
        sync_folder(Path(folder))


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn the system's refusal to write into an error of ours.

    Raises:
        StorageFullError: disk, quota or file size limit reached.
        NotWritableError: no permission, or a read-only file system.
    """
    try:
        yield
    except OSError as error:
        reason = f"{error.strerror or error}" + (f" ({error.filename})" if error.filename else "")
        if error.errno in _FULL:
            raise StorageFullError("cache.storage_full", path=path, reason=reason) from error
        if error.errno in _REFUSED:
            raise NotWritableError("cache.not_writable", path=path, reason=reason) from error
        raise
