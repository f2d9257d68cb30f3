"""Who is in a group of processes, as Ctrl-C at a terminal finds it."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path


def living_in_group(group: int) -> list[int]:
    """Processes of a group; those that have ended and that nobody has asked about yet are not among them."""
    living = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            state, _, pgid = file.read_text().rpartition(")")[2].split()[:3]
            if int(pgid) == group and state != "Z":
                living.append(int(file.parent.name))
    return living


def has_ended(group: int, patience_s: float = 10.0) -> bool:
    """Whether nobody of a group is left after a while: what keeps books for a process ends a moment after it."""
    deadline = time.monotonic() + patience_s
    while living_in_group(group):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
