"""The folder of all stores: free space, and whether its file system does what a store needs: rename, fsync, map, lock.

File systems of networks and containers may lack any of these.
"""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from ..errors import first_line
from ..quantities import size
from .finding import OK, PROBLEM, WARNING, Finding

LITTLE_SPACE_BYTES = 1 << 30


def check_disk(cache_root: Path) -> list[Finding]:
    """Write small files into the folder of all stores, or where it would be, and remove them."""
    places = (cache_root.absolute(), *cache_root.absolute().parents)
    if files := [place for place in places if place.is_file()]:
        todo = "Move it away, or choose another folder with --cache."
        return [Finding("cache folder", PROBLEM, f"{files[0]} is a file", todo)]
    folder = next(place for place in places if place.is_dir())
    try:
        scratch = Path(tempfile.mkdtemp(prefix=".layerbank-doctor-", dir=folder))
    except OSError as error:
        todo = "Change its permissions, or choose another folder with --cache."
        return [Finding("cache folder", PROBLEM, f"{folder} cannot be written: {error.strerror}", todo)]
    try:
        return [check_space(folder), *check_file_system(scratch)]
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def check_space(folder: Path) -> Finding:
    """Check the free space."""
    free = shutil.disk_usage(folder).free
    found = f"{size(free)} free at {folder}"
    if free < LITTLE_SPACE_BYTES:
        todo = "Free some space, or choose another disk with --cache; `layerbank plan` says what an extraction takes."
        return Finding("cache: space", WARNING, found, todo)
    return Finding("cache: space", OK, found)


def check_file_system(folder: Path) -> list[Finding]:
    """Check that files can be renamed, mapped and locked."""
    findings = []
    for name, (attempt, todo) in CHECKS.items():
        try:
            warning = attempt(folder)
        except OSError as error:
            findings.append(Finding(f"cache: {name}", PROBLEM, first_line(error), todo))
        else:
            state = WARNING if warning else OK
            findings.append(Finding(f"cache: {name}", state, warning or "works", todo if warning else ""))
    return findings


def _rename(folder: Path) -> str:
    new, old = folder / "new", folder / "old"
    old.write_bytes(b"old")
    new.write_bytes(b"new")
    os.replace(new, old)
    if os.name != "nt":  # there folders cannot be opened
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    return "" if old.read_bytes() == b"new" and not new.exists() else "a rename was not done in one step"


def _map(folder: Path) -> str:
    data = os.urandom(mmap.PAGESIZE)
    (folder / "mapped").write_bytes(data)
    with (folder / "mapped").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return "" if mapped[:] == data else "a mapped file differs from what was written"


def _lock(folder: Path) -> str:
    try:
        import fcntl
    except ImportError:  # Windows has locks of another kind
        return ""
    with (folder / "lock").open("w") as one, (folder / "lock").open("w") as other:
        fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return ""
    return "two holders at one time"


CHECKS: dict[str, tuple[Callable[[Path], str], str]] = {  # each returns a warning, or raises
    "rename and fsync": (_rename, "Stores need both: choose another disk with --cache."),
    "memory map": (_map, "Stores are read slowly here: copy them to another disk before you probe."),
    "locks": (
        _lock,
        "Never let two processes extract into one store here: use neither --processes nor shards at one time.",
    ),
}
