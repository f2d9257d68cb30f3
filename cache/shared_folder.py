"""Whether a folder is one and the same for processes on several machines, locks included, before they share a store in it.

The decision taken here: one process holds a lock file of a new name for as long as the others may ask. Whoever does not see the
file would compute everything by himself; whoever does not see its lock, what another one has taken.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from .atomic_files import storage_errors
from .locking import is_held

PROBE_PREFIX = ".shared-"
LEFT_BEHIND_S = 3600.0  # a younger one that nobody holds may be one that is just being taken
PATIENCE_S = 10.0  # NFS shows a new file to other machines after a few seconds


@contextmanager
def offer_probe(root: str | Path) -> Iterator[Path]:
    """A locked file in a folder, for `see_probe` elsewhere; gone at the end, with those that killed processes left.

    Raises:
        NotWritableError: the folder cannot be written.
    """
    root = Path(root).absolute()
    with storage_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        for left in root.glob(f"{PROBE_PREFIX}*.lock"):
            if time.time() - left.stat().st_mtime > LEFT_BEHIND_S and not is_held(left):
                left.unlink(missing_ok=True)
        probe = root / f"{PROBE_PREFIX}{uuid.uuid4().hex}.lock"
        lock = FileLock(probe, thread_local=False)
        lock.acquire()
    try:
        yield probe
    finally:
        probe.unlink(missing_ok=True)
        lock.release()


def see_probe(probe: Path, patience_s: float = PATIENCE_S) -> str | None:
    """What is wrong with the folder of a probe here, None where nothing is.

    Args:
        probe: of `offer_probe`, in another process.
        patience_s: how long to wait for the file to appear.
    """
    deadline = time.monotonic() + patience_s
    while not probe.exists():
        if time.monotonic() > deadline:
            return "another folder of that name, or none"
        time.sleep(0.2)
    return None if is_held(probe) else "the same folder, without the locks that others hold in it"
