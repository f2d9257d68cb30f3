"""A disk that becomes full: a call of this process that takes room on it fails, and with it those that follow if it stays full.

Calls are those of Python, also of files that `open` returned; what libraries in C write themselves is not counted (h5py, pyarrow).
"""

from __future__ import annotations

import builtins
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

CALLS = (
    *("write", "pwrite", "writev", "replace", "rename", "link", "symlink", "mkdir", "fsync", "fdatasync"),
    *("truncate", "ftruncate", "sendfile", "copy_file_range", "posix_fallocate"),
)


@dataclass
class Disk:
    """What was asked of the disk.

    Args:
        full_at: number of the first call that fails, from 0; None never.
        stays_full: whether each call after it fails too.
        code: why, a number of errno.
        calls: names of all calls, in their order.
    """

    full_at: int | None = None
    stays_full: bool = True
    code: int = 0
    calls: list[str] = field(default_factory=list)

    def take(self, name: str, place: Any = None) -> None:
        number = len(self.calls)
        self.calls.append(name)
        if self.full_at is not None and (number == self.full_at or (number > self.full_at and self.stays_full)):
            raise OSError(self.code, os.strerror(self.code), *[place] * isinstance(place, str | os.PathLike))


@contextmanager
def small_disk(disk: Disk) -> Iterator[Disk]:
    """Every call of this process that takes room asks this disk first."""

    class Raw(io.FileIO):
        def write(self, data: Any) -> int:
            disk.take("file.write")
            return super().write(data)

        def truncate(self, size: int | None = None) -> int:
            disk.take("file.truncate")
            return super().truncate(size)

    def counted(name: str) -> Callable[..., Any]:
        call = getattr(os, name)

        def ask(*arguments: Any, **keywords: Any) -> Any:
            if name != "mkdir" or not os.path.lexists(arguments[0]):
                disk.take(name, *arguments[:1])
            return call(*arguments, **keywords)

        return ask

    plain_open, plain_os_open = io.open, os.open

    def open_file(
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Any = None,
    ) -> Any:
        if not set(mode) & set("wxa+"):
            return plain_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        if isinstance(file, int) or not os.path.lexists(file):
            disk.take("open", file)
        raw = Raw(file, mode.replace("b", "").replace("t", ""), closefd, opener)
        if buffering == 0:
            return raw
        buffered: Any = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        if "b" in mode:
            return buffered
        return io.TextIOWrapper(buffered, encoding, errors, newline, line_buffering=buffering == 1)

    def os_open(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & os.O_CREAT and not os.path.lexists(path):
            disk.take("os.open", path)
        return plain_os_open(path, flags, mode, dir_fd=dir_fd)

    changed = {name: counted(name) for name in CALLS if hasattr(os, name)} | {"open": os_open}
    with (
        patch.multiple(os, **changed),
        patch.object(io, "open", open_file),
        patch.object(builtins, "open", open_file),
    ):
        yield disk
