"""Files of images as they are read: regular ones, inside the folder of the data. Pipes, devices and links that lead out are named.

A pipe or a device would be waited for without end, and a link that leads out would put files into the data that nobody chose.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ..errors import RequestError
from ..outputs import kind_of

LEADS_OUT = "a link that leaves the folder of the data"


def not_a_file(path: str | Path) -> str:
    """What a path is, links followed, if no regular file; "" for a regular file and for a path that is not there."""
    try:
        return kind_of(os.stat(path).st_mode)
    except OSError:
        return ""


def leads_out(path: str | Path, root: str) -> bool:
    """Whether a path, links followed, lies outside a folder.

    Args:
        path: it need not exist.
        root: the folder, as os.path.realpath gives it.
    """
    return os.path.commonpath((os.path.realpath(path), root)) != root


def require_inside(data: str, root: Path, paths: Iterable[Path], *, are_folders: bool = False) -> None:
    """Refuse files, or folders, that lead out of the folder of the data, and files that are not regular.

    Raises:
        RequestError: names and counts them.
    """
    real = os.path.realpath(root)
    found = {path: LEADS_OUT if leads_out(path, real) else "" if are_folders else not_a_file(path) for path in paths}
    if refused := {os.path.relpath(path, root): problem for path, problem in found.items() if problem}:
        raise not_followed(data, refused)


def not_followed(data: str, refused: dict[str, str]) -> RequestError:
    """The error for paths -> what each of them is."""
    names = ", ".join(f"{path} ({problem})" for path, problem in list(refused.items())[:3])
    more = f" and {len(refused) - 3} more" if len(refused) > 3 else ""
    return RequestError("data.not_followed", data=data, count=len(refused), names=names + more)
