"""Targets beside a store: for each row a class, a number or several, under a name.

    targets/<name>.<first 8 of the digest>/     a Zarr array [N] or [N, K] with its type, class names and source as attributes
    content_hashes/.targets/<name>.json         which of them the name stands for

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from .atomic_files import replace_file, storage_errors, sync_folder, sync_tree
from .errors import DamagedStoreError, MissingTargetError, SpecError
from .format import CONTENT_HASHES, create_array
from .header import HEADER_FILE

TARGETS = "targets"
POINTERS = f"{CONTENT_HASHES}/.targets"
TARGET_TYPES = ("multiclass", "multilabel", "regression", "ordinal")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


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
        digest = hashlib.sha256(json.dumps(head, ensure_ascii=True).encode("ascii"))
        digest.update(np.ascontiguousarray(values).data)
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
    store, values = Path(store), _stored(target.values)
    if not _NAME.fullmatch(name) or target.type not in TARGET_TYPES or values.shape[:1] != (num_rows,):
        types = ", ".join(TARGET_TYPES)
        got = f"{target.type} with {len(values):,} values"
        raise SpecError("cache.invalid_target", store=store, name=repr(name), types=types, num_rows=num_rows, got=got)
    digest = target.digest
    folder, pointer = store / TARGETS / f"{name}.{digest[:8]}", store / POINTERS / f"{name}.json"
    with storage_errors(store):
        if not (store / TARGETS / HEADER_FILE).exists():
            (store / TARGETS).mkdir(exist_ok=True)
            root = json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {}}, indent=2)
            replace_file(store / TARGETS / HEADER_FILE, root.encode(), store / TARGETS / f".{HEADER_FILE}.staging")
        (store / POINTERS).mkdir(exist_ok=True)
        if not folder.exists():
            staging = store / POINTERS / f"staging.{os.getpid()}"
            shutil.rmtree(staging, ignore_errors=True)
            about = {"type": target.type, "class_names": list(target.class_names), "source": target.source}
            group = zarr.create_group(staging, zarr_format=3)
            dimensions = ("row", "target")[: values.ndim]
            made = create_array(group, name, values.shape, values.shape, values.dtype, dimensions, about)
            made[...] = values
            sync_tree(staging)
            os.replace(staging / name, folder)
            sync_folder(folder.parent)
            shutil.rmtree(staging)
        content = json.dumps({"target": folder.name, "digest": digest}).encode()
        replace_file(pointer, content, pointer.with_name(f".{pointer.name}"))


def read_target(store: str | Path, name: str) -> Target:
    """The target of a name.

    Raises:
        MissingTargetError: the store has none of this name.
        DamagedStoreError: its values are not those that were written.
    """
    store = Path(store)
    try:
        pointer = json.loads((store / POINTERS / f"{name}.json").read_bytes())
        array = zarr.open_array(store / TARGETS / pointer["target"], mode="r")
        about = dict(array.attrs)
        target = Target(
            values=np.asarray(array[...]),
            type=str(about["type"]),
            class_names=[str(one) for one in about["class_names"]],  # type: ignore[union-attr]
            source=str(about["source"]),
        )
        is_sound = target.digest == pointer["digest"]
    except FileNotFoundError:
        names = ", ".join(list_targets(store)) or "none"
        raise MissingTargetError("cache.target_missing", store=store, name=name, names=names) from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise DamagedStoreError("cache.target_damaged", store=store, name=name, reason=error) from error
    if not is_sound:
        raise DamagedStoreError("cache.target_damaged", store=store, name=name, reason="other values than were written")
    return target


def list_targets(store: str | Path) -> list[str]:
    """The names of the targets of a store."""
    return sorted(file.stem for file in (Path(store) / POINTERS).glob("*.json") if not file.name.startswith("."))


def is_target_file(path: str) -> bool:
    """Whether a path inside a store belongs to its targets."""
    return path.startswith((f"{TARGETS}/", f"{POINTERS}/"))


def _stored(values: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(values, dtype="<i8" if values.dtype.kind in "iub" else "<f8")
