"""Install a distribution that extends layerbank by entry points, as pip would leave it in a folder of the path."""

from __future__ import annotations

import sys
from pathlib import Path


def install_plugin(folder: Path, entry_points: str, source: str = "", name: str = "zippy") -> None:
    """Write a distribution with one module of the same name.

    Args:
        folder: a folder on `sys.path`.
        entry_points: text of its `entry_points.txt`.
        source: of the module.
        name: of the distribution and of the module.
    """
    sys.modules.pop(name, None)  # of an earlier test
    (folder / f"{name}.py").write_text(source)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)
