"""Files that appear whole or not at all.

A file is written under a staging name, fsynced and renamed, then its folder is fsynced: after a crash either the old
content is there or the new. Where a lock does not keep other writers away, the staging name is that of one thread of one process.
"""

from __future__ import annotations

import errno
import glob
import os
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import NotWritableError, SpecError, StorageFullError

_FULL = {errno.ENOSPC, errno.EDQUOT}
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


def write_file(path: Path, data: bytes) -> None:
    """Write a file and fsync it."""
    fd = open_staging(path)
    try:
        write_all(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)


def staging_beside(path: Path) -> Path:
    """Name a file beside `path` that no other thread writes; remove what ended processes of this machine left under such names."""
    owner, hidden = f"{socket.gethostname()}-{os.getpid()}-{threading.get_native_id()}", f".{path.stem}."
    of_any = re.compile(rf"{re.escape(hidden + socket.gethostname())}-(\d+)-\d+{re.escape(path.suffix)}")
    for name in glob.glob(f"{glob.escape(hidden)}*", root_dir=path.parent):
        if (match := of_any.fullmatch(name)) and _has_ended(int(match[1])):
            (path.parent / name).unlink(missing_ok=True)
    return path.with_name(f"{hidden}{owner}{path.suffix}")


def _has_ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, ProcessLookupError)
    return False


def replace_file(path: Path, data: bytes, staging: Path | None = None) -> None:
    """Replace the content of `path` in one step.

    Args:
        path: the file.
        data: its new content.
        staging: where to write it first, on the same file system; None is a name of this thread, see `staging_beside`.
    """
    staging = staging_beside(path) if staging is None else staging
    write_file(staging, data)
    os.replace(staging, path)
    sync_folder(path.parent)


def put_in_place(staging: Path, path: Path) -> None:
    """Give a complete file or folder beside it the name `path`, which nothing else may have; on an error nothing has it.

    Raises:
        SpecError: something has come to have the name.
    """
    try:
        if staging.is_dir():
            os.rename(staging, path)  # refuses a file and a folder that is not empty
        else:
            _put_file(staging, path)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise SpecError("cache.path_taken", path=path) from None
        raise
    try:
        sync_folder(path.parent)
    except OSError:
        remove_path(path)
        raise


def _put_file(staging: Path, path: Path) -> None:
    try:
        os.link(staging, path)  # os.replace would overwrite
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: the name is taken first, and the file replaces what took it
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        try:
            os.replace(staging, path)
        except OSError:
            path.unlink()
            raise
    else:
        staging.unlink()


def remove_path(path: Path) -> None:
    """Delete a file, a link (not its target), or a folder with all that is in it; nothing happens if there is nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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
        if error.errno == errno.EFBIG:
            raise StorageFullError("cache.file_size_limit", path=path, reason=reason) from error
        if error.errno in _REFUSED:
            raise NotWritableError("cache.not_writable", path=path, reason=reason) from error
        raise
