"""The folder of all stores: space, speed, and whether its file system keeps the promises that a store stands on.

A store is renamed into place, fsynced, mapped and locked. File systems of networks and containers may do without any of these.
"""

from __future__ import annotations

import mmap
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from ..quantities import size
from .finding import OK, PROBLEM, WARNING, Finding, first_line

LITTLE_SPACE_BYTES = 1 << 30
WRITTEN_BYTES = 32 << 20
SLOW_BYTES_PER_S = 20e6
SLOW_FSYNC_S = 0.1
OVER_THE_NETWORK = (
    "nfs",
    "cifs",
    "smb",
    "fuse",
    "lustre",
    "gpfs",
    "beegfs",
    "ceph",
    "9p",
    "afs",
    "glusterfs",
    "virtiofs",
)
IN_MEMORY = ("tmpfs", "ramfs")


def check_disk(cache_root: Path) -> list[Finding]:
    """Write a few files where the stores are, or would be, and remove them."""
    places = (cache_root.absolute(), *cache_root.absolute().parents)
    if files := [place for place in places if place.is_file()]:
        todo = "Move it away, or choose another folder with --cache."
        return [Finding("cache folder", PROBLEM, f"{files[0]} is a file", todo)]
    folder = next(place for place in places if place.is_dir())
    try:
        trial = Path(tempfile.mkdtemp(prefix=".layerbank-doctor-", dir=folder))
    except OSError as error:
        todo = "Change its permissions, or choose another folder with --cache."
        return [Finding("cache folder", PROBLEM, f"{folder} cannot be written: {error.strerror}", todo)]
    try:
        return [
            check_space(folder),
            check_kind(folder),
            check_speed(trial),
            check_rename(trial),
            check_map(trial),
            check_lock(trial),
        ]
    finally:
        shutil.rmtree(trial, ignore_errors=True)


def check_space(folder: Path) -> Finding:
    """Free space."""
    free = shutil.disk_usage(folder).free
    if free < LITTLE_SPACE_BYTES:
        todo = "Free some space, or choose another disk with --cache; `layerbank plan` says what an extraction takes."
        return Finding("cache: space", WARNING, f"{size(free)} free at {folder}", todo)
    return Finding("cache: space", OK, f"{size(free)} free at {folder}")


def check_kind(folder: Path, mounts: Path = Path("/proc/self/mounts")) -> Finding:
    """The kind of its file system."""
    kind = kind_of(folder, mounts)
    if kind is None:
        return Finding("cache: file system", OK, "its kind is not known here")
    if kind.startswith(OVER_THE_NETWORK):
        todo = (
            "Locks are as good as its server: do not let two machines extract into one store unless locks work there."
        )
        return Finding("cache: file system", WARNING, f"{kind}, over a network or a program", todo)
    if kind in IN_MEMORY:
        todo = "Stores are gone when the machine stops, and take memory: choose a disk with --cache."
        return Finding("cache: file system", WARNING, f"{kind}, in memory", todo)
    return Finding("cache: file system", OK, kind)


def kind_of(folder: Path, mounts: Path) -> str | None:
    """What is mounted where a folder lies; None where the system has no such list."""
    try:
        lines = [line.split() for line in mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()]
    except OSError:
        return None
    # a later mount covers an earlier one of the same place; spaces in names are written as \\040
    above = [(Path(words[1].replace("\\040", " ")), words[2]) for words in lines if len(words) > 2]
    place = folder.resolve()
    fitting = [
        (len(where.parts), number, kind) for number, (where, kind) in enumerate(above) if place.is_relative_to(where)
    ]
    return max(fitting)[2] if fitting else None


def check_speed(trial: Path) -> Finding:
    """How fast data are safe on it, and how long a small file takes."""
    block = os.urandom(1 << 20)
    began = time.perf_counter()
    with (trial / "large").open("wb") as file:
        for _ in range(WRITTEN_BYTES >> 20):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    bytes_per_s = WRITTEN_BYTES / max(time.perf_counter() - began, 1e-9)
    times = []
    for number in range(5):
        began = time.perf_counter()
        with (trial / f"small-{number}").open("wb") as file:
            file.write(block[:4096])
            file.flush()
            os.fsync(file.fileno())
        times.append(time.perf_counter() - began)
    fsync_s = statistics.median(times)
    found = f"{size(bytes_per_s)}/s, {1000 * fsync_s:.1f} ms until a small file is safe"
    if bytes_per_s < SLOW_BYTES_PER_S or fsync_s > SLOW_FSYNC_S:
        todo = "Extraction may wait for it (its meter says so): put the stores on a local disk with --cache."
        return Finding("cache: speed", WARNING, found, todo)
    return Finding("cache: speed", OK, found)


def check_rename(trial: Path) -> Finding:
    """A file takes another's place in one step, and the folder can be fsynced."""
    name = "cache: rename and fsync"
    new, old = trial / "new", trial / "old"
    old.write_bytes(b"old")
    new.write_bytes(b"new")
    try:
        os.replace(new, old)
        if os.name != "nt":
            fd = os.open(trial, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
    except OSError as error:
        return Finding(name, PROBLEM, first_line(error), "Stores need both: choose another file system with --cache.")
    if old.read_bytes() != b"new" or new.exists():
        return Finding(name, PROBLEM, "a rename was not done in one step", "Choose another file system with --cache.")
    return Finding(name, OK, "work")


def check_map(trial: Path) -> Finding:
    """A file can be mapped into memory."""
    name = "cache: memory map"
    data = os.urandom(mmap.PAGESIZE)
    (trial / "mapped").write_bytes(data)
    try:
        with (trial / "mapped").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            same = mapped[:] == data
    except OSError as error:
        todo = "Stores can be written here but are read slowly: copy them to a local disk before you probe."
        return Finding(name, PROBLEM, first_line(error), todo)
    if not same:
        return Finding(name, PROBLEM, "what is mapped is not what was written", "Choose another disk with --cache.")
    return Finding(name, OK, "works")


def check_lock(trial: Path) -> Finding:
    """Two holders of one lock refuse each other."""
    name = "cache: locks"
    try:
        import fcntl
    except ImportError:  # Windows has locks of another kind
        return Finding(name, OK, "of the system's own kind")
    todo = "Never let two processes extract into one store here, and use no --processes and no shards at one time."
    with (trial / "lock").open("w") as one, (trial / "lock").open("w") as other:
        try:
            fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return Finding(name, PROBLEM, f"there are none: {error.strerror}", "Choose another disk with --cache.")
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return Finding(name, OK, "work")
        return Finding(name, WARNING, "two holders at one time", todo)
