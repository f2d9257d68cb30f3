"""Checks of an installation: Python and its packages, accelerators, the folder of stores, the stores.

The decision taken here: each check stands alone and imports what it checks itself, so that a broken torch, for example, hides
nothing else. A check returns findings; it never raises.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from ..errors import first_line
from .device import check_gpu
from .disk import check_disk
from .finding import OK, PROBLEM, WARNING, Finding
from .packages import check_imports, check_operators, check_plugins, check_versions
from .stores import check_stores

__all__ = ["examine", "Finding", "OK", "WARNING", "PROBLEM"]


def examine(cache_root: Path) -> list[Finding]:
    """Run every check, from the installation to the stores.

    Args:
        cache_root: folder of all stores; small files are written there and removed.
    """
    checks: dict[str, Callable[[], list[Finding]]] = {
        "versions": check_versions,
        "imports": check_imports,
        "torch with torchvision": check_operators,
        "plug-ins": check_plugins,
        "GPU": check_gpu,
        "cache folder": partial(check_disk, cache_root),
        "stores": partial(check_stores, cache_root),
    }
    return [finding for name, check in checks.items() for finding in guarded(name, check)]


def guarded(name: str, check: Callable[[], list[Finding]]) -> list[Finding]:
    """Run a check; an error of the check itself becomes a finding."""
    try:
        return check()
    except ImportError as error:
        return [Finding(name, WARNING, f"not checked: {first_line(error)}", "Repair the imports first.")]
    except Exception as error:  # a broken package raises anything, and the next check is to run all the same
        todo = "This check itself failed: its subject is broken, or layerbank is."
        return [Finding(name, PROBLEM, f"{type(error).__name__}: {first_line(error)}", todo)]
