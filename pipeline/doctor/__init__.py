"""What is wrong with an installation, a machine or a cache folder, when something is off.

The decision taken here: every check stands alone and imports what it looks at itself, so that a broken torch, say, hides nothing
else. A check gives findings; it never raises.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from .disk import check_disk
from .finding import OK, PROBLEM, WARNING, Finding, first_line
from .hub import check_hub
from .libraries import check_imports, check_operators, check_python, check_versions
from .machine import check_cores, check_gpu, check_memory, check_open_files, check_shared_memory, check_threads
from .stores import check_stores

__all__ = ["examine", "Finding", "OK", "WARNING", "PROBLEM"]

Check = Callable[[], list[Finding]]


def examine(cache_root: Path) -> list[Finding]:
    """Every finding, in the order in which one would look.

    Args:
        cache_root: folder of all stores; a small file is written there and removed.
    """
    checks: dict[str, Check] = {
        "python": check_python,
        "libraries": check_versions,
        "imports": check_imports,
        "torch with torchvision": check_operators,
        "GPU": check_gpu,
        "cores": check_cores,
        "threads": check_threads,
        "memory": check_memory,
        "shared memory": check_shared_memory,
        "open files": check_open_files,
        "cache folder": partial(check_disk, cache_root),
        "stores": partial(check_stores, cache_root),
        "hub": check_hub,
    }
    return [finding for name, check in checks.items() for finding in guarded(name, check)]


def guarded(name: str, check: Check) -> list[Finding]:
    """The findings of a check; of one that failed, that it did."""
    try:
        return check()
    except Exception as error:  # a broken library raises anything, and the next check is to be made all the same
        todo = "This check itself failed: what it looks at is broken, or layerbank is."
        return [Finding(name, PROBLEM, f"{type(error).__name__}: {first_line(error)}", todo)]
