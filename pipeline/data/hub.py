"""Data sets of the study from the Hugging Face hub, where this machine reaches it.

A download goes into a folder aside, where an interrupted one is taken up again file by file, and is renamed when it is whole.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ..errors import WorkError
from .catalogue import SPLITS, Entry, find_data

PATTERNS = ["train/*.tar", "test/*.tar", "*/nshards.txt", "classnames.txt"]


def locate_data(
    entry: Entry, data_root: Path, *, fetch: bool = True, on_download: Callable[[str], None] | None = None
) -> str:
    """The URI of a data set, fetched into the data root if it is not there.

    Args:
        entry: which.
        data_root: folder of all data sets.
        fetch: False never goes to the hub.
        on_download: called with the repository before a download begins.

    Returns:
        `wds:FOLDER`, for `--data`.

    Raises:
        WorkError: it is not under the data root and cannot be fetched; says where it was looked for and what to do.
    """
    folder = find_data(entry, data_root)
    if folder is None and fetch:
        if on_download is not None:
            on_download(entry.repository)
        _download(entry, data_root / entry.folder)
        folder = find_data(entry, data_root)
    if folder is None:
        raise _absent(entry, data_root, "no such folder with train/*.tar and test/*.tar")
    return f"wds:{folder}"


def _download(entry: Entry, folder: Path) -> None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if folder.exists():
        raise WorkError(
            where=f"data set {entry.name}",
            expected=f"all shards of {' and '.join(SPLITS)} in {os.fspath(folder)}",
            got="a folder that lacks some",
            todo="Complete it, or remove it to have it fetched again.",
        )
    staging = folder.with_name(f".{folder.name}.part")
    try:
        snapshot_download(entry.repository, repo_type="dataset", allow_patterns=PATTERNS, local_dir=staging)
        staging.rename(folder)
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, RuntimeError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise _absent(entry, folder.parent, f"no such folder, and the hub does not give it: {reason[:200]}") from error


def _absent(entry: Entry, data_root: Path, got: str) -> WorkError:
    return WorkError(
        where=f"data set {entry.name}",
        expected=f"the folder {os.fspath(data_root / entry.folder)}",
        got=got,
        todo=f"Where the hub can be reached: hf download --repo-type dataset {entry.repository} "
        f"--local-dir {os.fspath(data_root / entry.folder)}; then copy that folder here.",
    )
