"""What the C library keeps of memory that was given back: little, where memory is short.

glibc takes a large block from the system itself and returns it at once, but calls a block large only if none as large was ever
returned: each one that is, up to 32 MiB, raises that bar, and twice that is kept at the end of each thread's heap. After a few
imports a program of 40 MB of tensors, made and dropped, takes 60 (`tests/starved.py`). Memory that is always taken and returned
costs page faults instead: so the bar is held down only where that much would not fit.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

LARGE_BYTES = 1 << 20
HIGHEST_BAR_BYTES = 32 << 20  # to which glibc's own goes on a 64-bit system
KEPT_BYTES = 2 * HIGHEST_BAR_BYTES
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt in malloc.h


@contextmanager
def large_blocks_returned(*, when: bool) -> Iterator[None]:
    """Within, blocks of a MiB and more go back to the system as soon as they are dropped, if `when`; on other C libraries nothing.

    Afterwards the bars are where glibc's own end up.
    """
    if not (when and _set_bars(LARGE_BYTES)):
        yield
        return
    try:
        yield
    finally:
        _set_bars(HIGHEST_BAR_BYTES)


def _set_bars(size_bytes: int) -> bool:
    """Whether the C library could be told."""
    try:
        library = ctypes.CDLL(None)
        trim, set_option = library.malloc_trim, library.mallopt
    except (AttributeError, OSError, TypeError):  # not glibc; no library of that name, on Windows
        return False
    done = bool(set_option(_MMAP_THRESHOLD, size_bytes)) and bool(set_option(_TRIM_THRESHOLD, 2 * size_bytes))
    trim(0)  # what was kept so far
    return done
