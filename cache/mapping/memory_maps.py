"""Files in memory: address ranges that are reserved first and filled with maps of files (MAP_FIXED).

Maps are private and writable: torch warns of read-only memory, and a stray write then changes this process's copy, never the
file. A file that is cut off *while* it is mapped kills the reader (SIGBUS); the writer only ever replaces files whole.

Linux allows a process 65,530 maps (vm.max_map_count). A process that has used them all cannot even load a library, so maps of
files stop at three quarters of that number. This module does not know rows or chunks.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DamagedStoreError

_MAP_PRIVATE, _MAP_FIXED = 0x02, 0x10
_MAP_ANONYMOUS, _MAP_NORESERVE = {"linux": (0x20, 0x4000), "darwin": (0x1000, 0x40)}.get(sys.platform, (0, 0))
_FAILED = ctypes.c_void_p(-1).value
WILL_NEED, DONT_NEED = 3, 4  # madvise, the same numbers on Linux and macOS: read ahead, free the memory
_FOLIO_BYTES = 2 << 20  # one page fault may map so much: memory must be freed in pieces as large, or the rest stays


def can_reserve() -> bool:
    """Whether this system can reserve an address range and map files over parts of it."""
    return bool(_MAP_ANONYMOUS) and ctypes.sizeof(ctypes.c_void_p) == 8


def has_spare_maps(num_maps: int = 1) -> bool:
    """Whether this process may map so many more files and still leave maps for everything else."""
    return _held.num_maps + num_maps <= _max_maps()


class AddressRange:
    """A reserved address range, released with the last array over it. Whatever no file is mapped over reads as zeros.

    Args:
        num_bytes: size of the range; only addresses, no memory, whatever the system's overcommit policy.
        num_maps: maps that it will consist of, for `has_spare_maps`.

    Raises:
        OSError: the system refused the range, because of a limit on addresses (`ulimit -v`).
    """

    def __init__(self, num_bytes: int, num_maps: int = 1) -> None:
        self.num_bytes = num_bytes
        flags = _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_NORESERVE
        self.address: int = _mmap(None, num_bytes, mmap.PROT_READ, flags, -1)
        _held.add(num_maps)
        finalizer = weakref.finalize(self, _release, self.address, num_bytes, num_maps)
        finalizer.atexit = False  # other threads may still read while the interpreter ends

    def map_file(self, file: Path, offset: int, num_bytes: int, min_file_bytes: int) -> None:
        """Map the first `num_bytes` of a file to `offset`, a multiple of the page.

        Raises:
            DamagedStoreError: the file has less than `min_file_bytes`.
            OSError: there is no such file, or the system allows no more maps.
        """
        fd = os.open(file, os.O_RDONLY)
        try:
            _require_bytes(file, fd, min_file_bytes)
            protection = mmap.PROT_READ | mmap.PROT_WRITE
            _mmap(self.address + offset, num_bytes, protection, _MAP_PRIVATE | _MAP_FIXED | _MAP_NORESERVE, fd)
        finally:
            os.close(fd)

    def as_array(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        memory = (ctypes.c_uint8 * self.num_bytes).from_address(self.address)
        memory._range = self  # type: ignore[attr-defined]  # every view keeps `memory`, and so the maps
        return np.frombuffer(memoryview(memory), dtype=dtype)


def map_file(file: Path, num_bytes: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The first bytes of one file as an array, on any system.

    Raises:
        DamagedStoreError: the file has less than `num_bytes`.
        OSError: there is no such file, or the system allows no more maps.
    """
    if _MAP_ANONYMOUS:
        addresses = AddressRange(num_bytes)
        addresses.map_file(file, 0, num_bytes, num_bytes)
        return addresses.as_array(dtype)
    with open(file, "rb") as opened:  # this map keeps a handle of the file, the other does not
        _require_bytes(file, opened.fileno(), num_bytes)
        return np.frombuffer(mmap.mmap(opened.fileno(), num_bytes, access=mmap.ACCESS_READ), dtype=dtype)


def advise_rows(values: NDArray[Any], start: int, stop: int, advice: int) -> None:
    """Advise the system about the pages of some rows of a map; without effect, only the speed differs."""
    if not _MAP_ANONYMOUS or stop <= start:
        return
    base, row_bytes = int(values.__array_interface__["data"][0]), values.nbytes // len(values)
    coarse = _FOLIO_BYTES if advice == DONT_NEED else mmap.PAGESIZE
    first = max((base + start * row_bytes) // coarse * coarse, base)
    last = min(-(-(base + stop * row_bytes) // coarse) * coarse, base + values.nbytes)
    _libc().madvise(first, last - first, advice)


def _require_bytes(file: Path, fd: int, num_bytes: int) -> None:
    size_bytes = os.fstat(fd).st_size
    if size_bytes < num_bytes:  # touching memory beyond the end of a file is SIGBUS
        raise DamagedStoreError("cache.file_cut_short", file=file, expected=num_bytes, got=size_bytes)


class _HeldMaps:
    """How many maps all address ranges of this process consist of."""

    def __init__(self) -> None:
        self.num_maps = 0
        self._lock = threading.RLock()  # the garbage collector may release a range in the middle of `add`

    def add(self, num_maps: int) -> None:
        with self._lock:
            self.num_maps += num_maps


_held = _HeldMaps()


def _release(address: int, num_bytes: int, num_maps: int) -> None:
    _libc().munmap(address, num_bytes)
    _held.add(-num_maps)


@functools.cache
def _max_maps() -> int:
    try:
        return int(Path("/proc/sys/vm/max_map_count").read_text()) * 3 // 4
    except (OSError, ValueError):  # not Linux: no such limit
        return sys.maxsize


def _mmap(address: int | None, num_bytes: int, protection: int, flags: int, fd: int) -> int:
    result = _libc().mmap(address, num_bytes, protection, flags, fd, 0)
    if result is None or result == _FAILED:
        raise OSError(ctypes.get_errno(), "mmap failed")
    return int(result)


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    libc.mmap.restype = pointer
    libc.mmap.argtypes = [pointer, size, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]
    libc.munmap.argtypes = [pointer, size]
    libc.madvise.argtypes = [pointer, size, ctypes.c_int]
    return libc
