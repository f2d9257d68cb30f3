"""Data behind a URL, copied once to a folder of this machine.

Any URL that fsspec can open (`https://`, `s3://`, `gs://`, ...) is a file, a folder, or a pattern with `{split}` and braces. Copies
lie in the user's cache folder, one folder for all files below the same URL, with a record of each file's size. A copy that is
complete needs no network, and is not compared with the original again: delete the folder to copy anew. One process at a time copies
into a folder; the others wait.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock
from xxhash import xxh3_64_hexdigest

from layerbank.cache.atomic_files import replace_file

from ...errors import RequestError, WorkError, first_line
from ...events import CopyFinished, CopyProgress, CopyStarted, OnEvent, ignore
from ..patterns import SPLIT, expand_braces

PIECE_BYTES = 1 << 20
PROGRESS_EVERY_S = 0.2
RECORD_EVERY_S = 5.0  # a process that is killed loses so much of its work
RECORD = ".copied.json"
TABLES = (".csv", ".tsv", ".jsonl")


def is_url(address: str) -> bool:
    """Whether an address, without its options, is a URL.

    >>> is_url("s3://bucket/photos"), is_url("photos"), is_url("photos?label=a://b")
    (True, False, False)
    """
    scheme, mark, _ = address.partition("?")[0].partition("://")
    return bool(mark) and scheme.replace("+", "").replace("-", "").isalnum()


def local_copy(url: str, split: str, on_event: OnEvent = ignore) -> str:
    """The path of this machine that holds what a URL names.

    Args:
        url: of a file or a folder; or a pattern, of which the files of one split are copied.
        split: the split that is asked for.
        on_event: called with the progress.

    Returns:
        The path, or pattern, in place of the URL.

    Raises:
        RequestError: no such URL, no package for its kind, or a table of paths, whose images would not be copied.
        WorkError: the copy failed; what was copied is kept, and the next call goes on.
    """
    if url.lower().endswith(TABLES):
        raise RequestError("data.url_of_table", url=url)
    fixed = url.partition("{")[0] if "{" in url else url.rstrip("/")
    base, _, rest = fixed.rpartition("/")
    folder = _folder_of(base)
    rest += url[len(fixed) :] if "{" in url else ""
    asked = rest.replace(SPLIT, split)
    if asked in _read_record(folder / RECORD)["complete"]:
        return str(folder / rest)
    filesystem, found = _find(url, base, asked)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".copied.lock"):
        record = _read_record(folder / RECORD)  # of the process that this one waited for
        if asked not in record["complete"]:
            _copy_all(url, filesystem, found, folder, record, on_event)
            record["complete"].append(asked)
            _write_record(folder / RECORD, record)
    return str(folder / rest)


def _folder_of(base: str) -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    name = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in base.rpartition("/")[2])
    return Path(root, "layerbank", "copies", f"{name or 'data'}-{xxh3_64_hexdigest(base.encode())}")


def _find(url: str, base: str, asked: str) -> tuple[Any, dict[str, tuple[str, int | None]]]:
    """The file system, and path below the copy -> the file there and its size, None if that is not said."""
    try:
        from fsspec.core import url_to_fs

        filesystem, _ = url_to_fs(f"{base}/")
        found: dict[str, tuple[str, int | None]] = {}
        for name in expand_braces(asked):
            place = url_to_fs(f"{base}/{name}")[1]
            about = filesystem.info(place) if filesystem.isfile(place) else None
            if about and not str(about.get("mimetype", "")).startswith("text/html"):  # a page lists a folder
                found[name] = (place, about.get("size"))
                continue
            inside = filesystem.find(place, detail=True) if filesystem.isdir(place) else {}
            for path, about in inside.items():
                found[f"{name}/{path[len(place.rstrip('/')) :].lstrip('/')}"] = (path, about.get("size"))
            if not inside:
                raise FileNotFoundError(f"{base}/{name}")
    except RequestError:
        raise
    except (FileNotFoundError, ImportError, ValueError) as error:  # a package that is missing, a kind that is unknown
        raise RequestError("data.no_such_url", url=url, reason=first_line(error)) from error
    except Exception as error:  # file systems raise errors of their own packages
        raise WorkError("data.copy_failed", url=url, folder=_folder_of(base), reason=first_line(error)) from error
    if outside := [name for name in found if ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute()]:
        raise RequestError("data.no_such_url", url=url, reason=f"the name {outside[0]} leads out of the folder")
    return filesystem, found


def _copy_all(
    url: str,
    filesystem: Any,
    found: dict[str, tuple[str, int | None]],
    folder: Path,
    record: dict[str, Any],
    on_event: OnEvent,
) -> None:
    wanted = {
        name: (place, size)
        for name, (place, size) in found.items()
        if size not in (None, record["files"].get(name)) or not _is_there(folder / name, record["files"].get(name))
    }
    size_bytes = sum(size or 0 for _, size in wanted.values())
    on_event(CopyStarted(url=url, folder=folder, num_files=len(wanted), size_bytes=size_bytes))
    began = shown = saved = time.monotonic()
    bytes_done = num_done = 0

    def count(num_bytes: int) -> None:
        nonlocal bytes_done, shown
        bytes_done += num_bytes
        if (now := time.monotonic()) - shown > PROGRESS_EVERY_S:
            shown = now
            on_event(
                CopyProgress(
                    url=url,
                    num_done=num_done,
                    num_files=len(wanted),
                    bytes_done=bytes_done,
                    size_bytes=size_bytes,
                    elapsed_s=now - began,
                )
            )

    try:
        for name, (place, size) in wanted.items():
            try:
                record["files"][name] = _copy(filesystem, place, size, folder / name, count)
            except Exception as error:  # file systems raise errors of their own packages
                reason = f"{name}: {first_line(error)}"
                raise WorkError("data.copy_failed", url=url, folder=folder, reason=reason) from error
            num_done += 1
            if (now := time.monotonic()) - saved > RECORD_EVERY_S:
                saved = now
                _write_record(folder / RECORD, record)
    finally:  # after Ctrl-C too
        _write_record(folder / RECORD, record)
    elapsed_s = time.monotonic() - began
    on_event(CopyFinished(url=url, folder=folder, num_files=len(wanted), size_bytes=bytes_done, elapsed_s=elapsed_s))


def _copy(filesystem: Any, place: str, size: int | None, file: Path, on_bytes: Callable[[int], None]) -> int:
    """Copy a file, whole or not at all; returns its size in bytes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    staging = file.with_name(f".{file.name}.part")
    copied = 0
    try:
        with filesystem.open(place, "rb") as source, open(staging, "wb") as target:
            while piece := source.read(PIECE_BYTES):
                target.write(piece)
                copied += len(piece)
                on_bytes(len(piece))
            target.flush()
            os.fsync(target.fileno())
        if size is not None and copied != size:
            raise OSError(f"{copied:,} of {size:,} bytes came")
        staging.replace(file)
    finally:
        staging.unlink(missing_ok=True)
    return copied


def _is_there(file: Path, size_bytes: object) -> bool:
    try:
        return file.stat().st_size == size_bytes
    except OSError:
        return False


def _read_record(file: Path) -> dict[str, Any]:
    """What is copied; nothing if there is no record, or none that can be read."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(record["files"], dict) and isinstance(record["complete"], list):
            are_there = all(_is_there(file.parent / name, known) for name, known in record["files"].items())
            return {"files": record["files"], "complete": record["complete"] if are_there else []}
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return {"files": {}, "complete": []}


def _write_record(file: Path, record: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, json.dumps(record, indent=1, sort_keys=True, allow_nan=False).encode())
