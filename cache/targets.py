"""Targets beside a store: for each row a class, a number or several, under a name.

    targets/<name>.<first 8 of the digest>/     a Zarr array [N] or [N, K] with its type, class names and source as attributes
    content_hashes/.targets/<name>.json         the digest that the name stands for, and the CRC-32C of the array's metadata

The decision taken here: targets are no part of a store's identity. An array is written once and never changed; new values under
the same name are a new array, and only the small pointer file is replaced. So targets lie outside the header's checksum and
outside the law that a store has the same bytes whatever its history. The pointers lie in the folder of an array because Zarr
never lists those.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numpy.typing import NDArray

from .atomic_files import replace_file, storage_errors, sync_folder, sync_tree
from .errors import DamagedStoreError, MissingTargetError, SpecError
from .format import CHECKSUM_BYTES, CONTENT_HASHES, create_array
from .header import HEADER_FILE

TARGETS = "targets"
LABEL = "label"  # the target that keeps the classes of a data set
POINTERS = f"{CONTENT_HASHES}/.targets"
TARGET_TYPES = ("multiclass", "multilabel", "regression", "ordinal")

_GROUP = json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {}}, indent=2, allow_nan=False).encode()
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_FOLDER = rf"{TARGETS}/{_NAME.pattern}\.[0-9a-f]{{8}}"
_STAGING = ".staging-"  # then the number of a process
_FILES = re.compile(
    rf"{TARGETS}/zarr\.json|{_FOLDER}/(zarr\.json|c\.0(\.0)?)|{re.escape(POINTERS)}/\.?{_NAME.pattern}\.json"
)
_FOLDERS = re.compile(rf"{TARGETS}|{re.escape(POINTERS)}|{_FOLDER}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Target:
    """What is to be predicted for each row of a store.

    Args:
        values: ``[N]`` or ``[N, K]``: int64 classes, or float64 with NaN for unknown.
        type: one of `TARGET_TYPES`.
        class_names: C names of the classes 0..C-1; empty for numbers.
        source: where the values come from, for people.
    """

    values: NDArray[Any]
    type: str
    class_names: Sequence[str] = ()
    source: str = ""

    @property
    def digest(self) -> str:
        """64 hex digits: SHA-256 of type, class names, dtype, shape and values; the source is left out."""
        values = _stored(self.values)
        head = [self.type, list(self.class_names), values.dtype.name, list(values.shape)]
        digest = hashlib.sha256(json.dumps(head, ensure_ascii=True, allow_nan=False).encode("ascii"))
        digest.update(values.data)
        return digest.hexdigest()


def write_target(store: str | Path, name: str, target: Target, *, num_rows: int) -> None:
    """Keep a target beside a store, in place of one with the same name.

    Args:
        store: the store.
        name: letters, digits, `_` and `-`.
        target: its values.
        num_rows: N of the store.

    Raises:
        SpecError: a wrong name, type or number of values.
        StorageFullError, NotWritableError: the disk refuses.
    """
    store, shape, dtype = Path(store), target.values.shape, target.values.dtype
    has_values = dtype.kind in "iubf" and shape[:1] == (num_rows,) and len(shape) <= 2
    if not _NAME.fullmatch(name) or target.type not in TARGET_TYPES or not has_values:
        types, got = ", ".join(TARGET_TYPES), f"{target.type} with {dtype} values of shape {shape}"
        raise SpecError("cache.invalid_target", store=store, name=repr(name), types=types, num_rows=num_rows, got=got)
    folder, pointer = _folder(store, name, target.digest), _pointer(store, name)
    with storage_errors(store):
        if group_problem(store) or not (store / TARGETS / HEADER_FILE).exists() or not (store / POINTERS).exists():
            _write_group(store)
        if not _is_sound(folder, target.digest):
            _write_values(store, folder, replace(target, values=_stored(target.values)))
        values = {"digest": target.digest, "metadata": _metadata_checksum(folder)}
        content = json.dumps(values, allow_nan=False).encode()
        if not pointer.exists() or pointer.read_bytes() != content:
            replace_file(pointer, content, pointer.with_name(f".{pointer.name}"))


def read_target(store: str | Path, name: str, *, num_rows: int) -> Target:
    """The target of a name.

    Args:
        store: the store.
        name: name of the target.
        num_rows: N of the store.

    Raises:
        MissingTargetError: the store has none of this name.
        DamagedStoreError: its values are not those that were written, or not N.
    """
    store = Path(store)
    if name not in list_targets(store):
        names = ", ".join(list_targets(store)) or "none"
        raise MissingTargetError("cache.target_missing", store=store, name=name, names=names)
    try:
        pointer = json.loads(_pointer(store, name).read_bytes())
        folder = _folder(store, name, pointer["digest"])
        target = _read_values(folder)
        is_sound = (target.digest, _metadata_checksum(folder)) == (pointer["digest"], pointer["metadata"])
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
        raise DamagedStoreError("cache.target_damaged", store=store, name=name, reason=error) from error
    if not is_sound:
        raise DamagedStoreError("cache.target_damaged", store=store, name=name, reason="other values than were written")
    if target.values.shape[:1] != (num_rows,):
        reason = f"values of shape {target.values.shape} for {num_rows} rows"
        raise DamagedStoreError("cache.target_damaged", store=store, name=name, reason=reason)
    return target


def list_targets(store: str | Path) -> list[str]:
    """The names of the targets of a store."""
    return sorted(file.stem for file in (Path(store) / POINTERS).glob("*.json") if _NAME.fullmatch(file.stem))


def group_problem(store: Path) -> str | None:
    """The problem of the Zarr group of all targets; None if it is sound, or empty: its folder is made before its file."""
    if not (store / TARGETS).exists() or not any((store / TARGETS).iterdir()):
        return None
    file = store / TARGETS / HEADER_FILE
    if not file.is_file():
        return "missing"
    return None if file.read_bytes() == _GROUP else "altered"


def is_target_file(path: str) -> bool:
    """Whether a path inside a store is that of a file of its targets, also of one that is being written."""
    return bool(_FILES.fullmatch(path)) or path.startswith(f"{POINTERS}/{_STAGING}")


def is_target_folder(path: str) -> bool:
    """Whether a path inside a store is that of a folder of its targets."""
    return bool(_FOLDERS.fullmatch(path)) or path.startswith(f"{POINTERS}/{_STAGING}")


def target_staging(store: Path) -> list[Path]:
    """What a killed process left of targets; a living writer may be about to rename it."""
    return sorted((store / POINTERS).glob(f"{_STAGING}*"))


def drop_damaged_targets(store: Path, *, num_rows: int) -> list[str]:
    """Delete the targets that cannot be read, so that they are written again; the caller holds the lock.

    Returns:
        Their names.
    """
    dropped = []
    for name in list_targets(store):
        try:
            read_target(store, name, num_rows=num_rows)
        except DamagedStoreError:
            _pointer(store, name).unlink()
            sync_folder(store / POINTERS)
            for folder in (store / TARGETS).glob(f"{name}.*"):
                shutil.rmtree(folder)
            dropped.append(name)
    if group_problem(store):
        _write_group(store)
    return dropped


def _write_group(store: Path) -> None:
    (store / TARGETS).mkdir(exist_ok=True)
    (store / POINTERS).mkdir(exist_ok=True)
    replace_file(store / TARGETS / HEADER_FILE, _GROUP, store / POINTERS / f".{HEADER_FILE}")


def _stored(values: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(values, dtype="<i8" if values.dtype.kind in "iub" else "<f8")


def _pointer(store: Path, name: str) -> Path:
    return store / POINTERS / f"{name}.json"


def _folder(store: Path, name: str, digest: str) -> Path:
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise ValueError("a pointer without a digest")
    return store / TARGETS / f"{name}.{digest[:8]}"


def _is_sound(folder: Path, digest: str) -> bool:
    """Whether the values of this digest are there already."""
    try:
        return _read_values(folder).digest == digest
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError):
        return False


def _write_values(store: Path, folder: Path, target: Target) -> None:
    staging = store / POINTERS / f"{_STAGING}{os.getpid()}"
    shutil.rmtree(staging, ignore_errors=True)
    about = {"type": target.type, "class_names": list(target.class_names), "source": target.source}
    values, dimensions = target.values, ("row", "target")[: target.values.ndim]
    try:
        group = zarr.create_group(staging, zarr_format=3)
        create_array(group, folder.name, values.shape, values.shape, values.dtype, dimensions, about)[...] = values
        sync_tree(staging)
        shutil.rmtree(folder, ignore_errors=True)  # damaged values of the same digest
        os.replace(staging / folder.name, folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _read_values(folder: Path) -> Target:
    """Without zarr: it reads a missing chunk as zeros, and believes any shape.

    Raises:
        ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError: it is damaged.
    """
    metadata = json.loads((folder / HEADER_FILE).read_bytes())
    shape, about = tuple(metadata["shape"]), metadata["attributes"]
    if not isinstance(about["class_names"], list):
        raise ValueError("class names that are no list")
    dtype = {"int64": "<i8", "float64": "<f8"}[metadata["data_type"]]
    raw = (folder / ".".join(["c", *["0"] * len(shape)])).read_bytes()
    data, checksum = raw[:-CHECKSUM_BYTES], int.from_bytes(raw[-CHECKSUM_BYTES:], "little")
    if google_crc32c.value(data) != checksum:
        raise ValueError("altered values")
    return Target(
        values=np.frombuffer(data, dtype).reshape(shape),
        type=str(about["type"]),
        class_names=[str(one) for one in about["class_names"]],
        source=str(about["source"]),
    )


def _metadata_checksum(folder: Path) -> str:
    return f"{google_crc32c.value((folder / HEADER_FILE).read_bytes()):08x}"
