"""The header of a store: the attributes of its root group, which record identity, geometry and state.

The decision taken here: the header is one file (``zarr.json`` of the root) that is only ever replaced whole, has one
canonical rendering and carries its own checksum, so that `state` turns ``complete`` in one step and any altered byte is
noticed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import google_crc32c

from .atomic_files import replace_file
from .errors import CacheError, DamagedStoreError, NotAStoreError, StoreMissingError
from .geometry import Grid
from .journal import JOURNAL_FOLDER, STAGING_PREFIX
from .spec import ArraySpec, CacheSpec, array_order

FORMAT = "layerbank token store"
FORMAT_VERSION = 1
HEADER_FILE = "zarr.json"
WRITING, COMPLETE = "writing", "complete"


@dataclass(frozen=True, kw_only=True)
class ArrayEntry:
    spec: ArraySpec
    chunk_rows: int
    complete: bool


@dataclass(frozen=True, kw_only=True)
class StaticEntry:
    """An array that is written once, in one chunk: labels, sample ids."""

    shape: tuple[int, ...]
    dtype: str
    crc32c: str


@dataclass(frozen=True, kw_only=True)
class Header:
    """The content of the root group's attributes.

    Args:
        spec: identity and labels.
        block_rows: R.
        batch_size: rows a batch; the bits of a row depend on it, so every later run keeps it.
        versions: library -> version, at creation.
        attributes: what the caller recorded at creation; never changed afterwards.
        arrays: name -> entry of the token arrays; kept sorted by level and kind.
        static: name -> entry of the arrays that are written once.
        metadata: path -> CRC-32C of every ``zarr.json`` below the root.
        notes: totals over the complete arrays, see `journal.BatchNotes`.
        parity: array name -> how far its first rows are from a float32 run, as the caller measured it; may be empty.
    """

    spec: CacheSpec
    block_rows: int
    batch_size: int
    versions: Mapping[str, str]
    attributes: Mapping[str, Any]
    arrays: Mapping[str, ArrayEntry] = field(default_factory=dict)
    static: Mapping[str, StaticEntry] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    parity: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        entries = sorted(self.arrays.values(), key=lambda entry: array_order(entry.spec))
        object.__setattr__(self, "arrays", {entry.spec.name: entry for entry in entries})
        object.__setattr__(self, "parity", {name: self.parity[name] for name in self.arrays if name in self.parity})

    @property
    def state(self) -> str:
        return COMPLETE if all(entry.complete for entry in self.arrays.values()) else WRITING

    @property
    def complete_arrays(self) -> list[ArraySpec]:
        return [entry.spec for entry in self.arrays.values() if entry.complete]

    def grid(self, name: str) -> Grid:
        return Grid(self.spec.num_rows, self.block_rows, self.arrays[name].chunk_rows)

    @property
    def hash_grid(self) -> Grid:
        """Geometry of the content hashes: one chunk per row block."""
        return Grid(self.spec.num_rows, self.block_rows, self.block_rows)

    def render(self) -> bytes:
        """The bytes of the header file; equal headers have equal bytes."""
        attributes: dict[str, Any] = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "state": self.state,
            "fingerprint": self.spec.fingerprint,
            "spec": self.spec.to_dict(),
            "block_rows": self.block_rows,
            "batch_size": self.batch_size,
            "versions": dict(sorted(self.versions.items())),
            "arrays": {
                name: {
                    "level": entry.spec.level,
                    "kind": entry.spec.kind,
                    "row_shape": list(entry.spec.row_shape),
                    "chunk_rows": entry.chunk_rows,
                    "state": COMPLETE if entry.complete else WRITING,
                }
                for name, entry in self.arrays.items()
            },
            "notes": dict(self.notes),
            **({"parity": {name: dict(one) for name, one in self.parity.items()}} if self.parity else {}),
            "attributes": dict(self.attributes),
            "static": {name: asdict(entry) for name, entry in sorted(self.static.items())},
            "metadata": dict(sorted(self.metadata.items())),
        }
        attributes["header_crc32c"] = _checksum(attributes)
        return _render({"zarr_format": 3, "node_type": "group", "attributes": attributes})


def read_header(path: Path) -> Header:
    """Read and check the header of the store at `path`.

    Raises:
        StoreMissingError: nothing is there.
        NotAStoreError: something else is there, or another format version.
        DamagedStoreError: the header was altered.
    """
    file = path / HEADER_FILE
    try:
        raw = file.read_bytes()
    except FileNotFoundError:
        if path.is_dir():
            raise NotAStoreError("cache.no_header", store=path) from None
        raise StoreMissingError("cache.store_missing", store=path) from None
    except NotADirectoryError:
        raise NotAStoreError("cache.store_is_a_file", store=path) from None
    return parse_header(raw, path)


def parse_header(raw: bytes, path: Path) -> Header:
    """The header in these bytes; `path` is for error messages.

    Raises:
        NotAStoreError: the header of something else, or of another format version.
        DamagedStoreError: it was altered.
    """
    try:
        attributes = json.loads(raw)["attributes"]
        name, version = attributes["format"], attributes["format_version"]
    except (ValueError, KeyError, TypeError):
        if FORMAT.encode() in raw:
            raise DamagedStoreError("cache.header_damaged", file=path / HEADER_FILE) from None
        raise NotAStoreError("cache.other_group", store=path) from None
    if name != FORMAT:
        raise NotAStoreError("cache.other_format", store=path, expected=FORMAT, got=name)
    if version != FORMAT_VERSION:
        raise NotAStoreError("cache.other_format_version", store=path, expected=FORMAT_VERSION, got=version)
    checksum = attributes.pop("header_crc32c", None)
    try:
        header = _header_from(attributes)
        # rendering again catches every altered byte, those that mean nothing to JSON too
        is_sound = checksum == _checksum(attributes) and header.render() == raw
    except (CacheError, KeyError, TypeError, ValueError, AttributeError):
        is_sound = False
    if not is_sound:
        raise DamagedStoreError("cache.header_damaged", file=path / HEADER_FILE)
    return header


def write_header(path: Path, header: Header) -> None:
    """Replace the header of the store at `path` in one step."""
    replace_file(path / HEADER_FILE, header.render(), path / JOURNAL_FOLDER / f"{STAGING_PREFIX}{HEADER_FILE}")


def _header_from(attributes: Mapping[str, Any]) -> Header:
    return Header(
        spec=CacheSpec.from_dict(attributes["spec"]),
        block_rows=attributes["block_rows"],
        batch_size=attributes["batch_size"],
        versions=attributes["versions"],
        attributes=attributes["attributes"],
        arrays={
            name: ArrayEntry(
                spec=ArraySpec(level=entry["level"], kind=entry["kind"], row_shape=tuple(entry["row_shape"])),
                chunk_rows=entry["chunk_rows"],
                complete=entry["state"] == COMPLETE,
            )
            for name, entry in attributes["arrays"].items()
        },
        static={
            name: StaticEntry(**entry | {"shape": tuple(entry["shape"])})
            for name, entry in attributes["static"].items()
        },
        metadata=attributes["metadata"],
        notes=attributes["notes"],
        parity=attributes.get("parity", {}),
    )


def _render(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, indent=2, ensure_ascii=True).encode("ascii")


def _checksum(attributes: Mapping[str, Any]) -> str:
    return f"{google_crc32c.value(_render(attributes)):08x}"
