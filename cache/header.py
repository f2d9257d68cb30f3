"""The header of a store: the attributes of its root group, which record identity, geometry and state.

The decision taken here: the header is one file (``zarr.json`` of the root) that is only ever replaced whole, has one
canonical rendering and carries the checksum of its own bytes, so that `state` turns ``complete`` in one step and any altered
byte is noticed.

It can grow. Attributes are required or optional. A reader keeps an optional attribute that it does not know; a required one
means that a newer layerbank wrote the store, and nothing is touched. Headers of format 1 are read through `format1.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import google_crc32c

from .atomic_files import replace_file
from .errors import CacheError, DamagedStoreError, NewerStoreError, NotAStoreError, SpecError, StoreMissingError
from .format1 import attributes_from_format1, is_sound_format1, render
from .geometry import Grid
from .header_values import ARRAY_FIELDS, COMPLETE, OPTIONAL, ROWS_FIELDS, WRITING, check_values, newer_parts
from .journal import JOURNAL_FOLDER, STAGING_PREFIX
from .spec import ArraySpec, ModelSpec, StoreSpec, array_order

FORMAT = "layerbank token store"
FORMAT_VERSION = 2
HEADER_FILE = "zarr.json"
MAX_HEADER_BYTES = 16 << 20  # a header of 300 arrays has 300 KB

_CHECKSUM_KEY = b'"header_crc32c": "'
_NO_CHECKSUM = "0" * 8


@dataclass(frozen=True, kw_only=True)
class ArrayEntry:
    spec: ArraySpec
    chunk_rows: int
    complete: bool


@dataclass(frozen=True, kw_only=True)
class StaticEntry:
    """An array that is written once, in one chunk: content hashes, views, sizes, sample ids."""

    shape: tuple[int, ...]
    dtype: str
    crc32c: str


@dataclass(frozen=True, kw_only=True)
class Header:
    """The content of the root group's attributes.

    Args:
        spec: identity and names.
        block_rows: R.
        batch_size: rows a batch; the bits of a row depend on it, so every later run keeps it.
        arrays: path -> entry of the token arrays; kept sorted by level and kind.
        static: path -> entry of the arrays that are written once.
        metadata: path -> CRC-32C of every ``zarr.json`` below the root.
        versions: library -> version, at creation.
        notes: totals over the complete arrays, see `journal.BatchNotes`.
        parity: path of an array -> how far its first rows are from a float32 run, as the caller measured it; may be empty.
        attributes: what the caller recorded at creation; never changed afterwards.
        unknown: optional attributes of a newer layerbank, which are kept.
        format: version of the format.
    """

    spec: StoreSpec
    block_rows: int
    batch_size: int
    arrays: Mapping[str, ArrayEntry] = field(default_factory=dict)
    static: Mapping[str, StaticEntry] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    parity: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    unknown: Mapping[str, Any] = field(default_factory=dict)
    format: int = FORMAT_VERSION

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
    def block_grid(self) -> Grid:
        """The row blocks, whatever the chunks."""
        return Grid(self.spec.num_rows, self.block_rows, self.block_rows)

    def render(self) -> bytes:
        """The bytes of the header file; equal headers have equal bytes."""
        assert self.format == FORMAT_VERSION, "older formats are read, never written"
        spec, model = self.spec, self.spec.model
        required = {
            "state": self.state,
            "model": model.identity(),
            "rows": dict(
                zip(ROWS_FIELDS, (spec.rows_digest, spec.num_rows, spec.hash_rule, spec.view_rule), strict=True)
            ),
            "block_rows": self.block_rows,
            "batch_size": self.batch_size,
            "arrays": {name: _entry_to_dict(entry) for name, entry in self.arrays.items()},
            "static": {name: asdict(entry) for name, entry in sorted(self.static.items())},
            "metadata": dict(sorted(self.metadata.items())),
        }
        optional = {
            "names": {"model": model.name, "data": spec.name},
            "versions": dict(sorted(self.versions.items())),
            "notes": dict(self.notes),
            "parity": {name: dict(one) for name, one in self.parity.items()},
            "attributes": dict(self.attributes),
            **dict(sorted(self.unknown.items())),
        }
        attributes: dict[str, Any] = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "required": required,
            "optional": optional,
        }
        attributes["header_crc32c"] = _NO_CHECKSUM
        raw = render({"zarr_format": 3, "node_type": "group", "attributes": attributes})
        return _with_checksum(raw, google_crc32c.value(raw))


def read_header(path: Path) -> Header:
    """Read and check the header of the store at `path`, of format 1 or 2.

    Raises:
        StoreMissingError: nothing is there.
        NotAStoreError: something else is there.
        NewerStoreError: a newer layerbank wrote it.
        DamagedStoreError: the header was altered, or is missing beside a journal.
    """
    file = path / HEADER_FILE
    try:
        if file.exists() and not file.is_file():  # reading a pipe would wait for ever
            raise NotAStoreError("cache.store_unreadable", store=path, reason=f"{HEADER_FILE} is not a file")
        with open(file, "rb") as opened:
            raw = opened.read(MAX_HEADER_BYTES + 1)
    except FileNotFoundError:
        if (path / JOURNAL_FOLDER).is_dir():
            raise DamagedStoreError("cache.header_lost", store=path) from None
        if path.is_dir():
            raise NotAStoreError("cache.no_header", store=path) from None
        raise StoreMissingError("cache.store_missing", store=path) from None
    except NotADirectoryError:
        raise NotAStoreError("cache.store_is_a_file", store=path) from None
    except OSError as error:
        raise NotAStoreError("cache.store_unreadable", store=path, reason=error.strerror or error) from error
    return parse_header(raw, path)


def parse_header(raw: bytes, path: Path) -> Header:
    """The header in these bytes; `path` is for error messages.

    Raises:
        NotAStoreError: the header of something else.
        NewerStoreError: a newer layerbank wrote it.
        DamagedStoreError: it was altered.
    """
    damaged = DamagedStoreError("cache.header_damaged", file=path / HEADER_FILE)
    if len(raw) > MAX_HEADER_BYTES:
        raise damaged
    try:
        document = json.loads(
            raw, parse_constant=lambda name: None
        )  # attributes could hold NaN, which JSON does not have
        attributes = document["attributes"]
        name, version = attributes["format"], attributes["format_version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        if FORMAT.encode() in raw:
            raise damaged from None
        raise NotAStoreError("cache.other_group", store=path) from None
    if name != FORMAT:
        raise NotAStoreError("cache.other_format", store=path, expected=FORMAT, got=name)
    if type(version) is int and version > FORMAT_VERSION:  # its checksum may follow other rules
        raise NewerStoreError("cache.newer_format", store=path, expected=FORMAT_VERSION, got=version)
    try:
        if not (_is_sound(raw) if version == FORMAT_VERSION else version == 1 and is_sound_format1(raw, document)):
            raise damaged
        if version == 1:
            attributes = attributes_from_format1(attributes)
        if unknown := newer_parts(attributes):
            raise NewerStoreError("cache.newer_attributes", store=path, unknown=", ".join(unknown))
        check_values(attributes["required"], attributes["optional"], version)
        return _header_from(attributes, version)
    except CacheError as error:
        if isinstance(error, SpecError):
            raise damaged from error
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise damaged from error


def write_header(path: Path, header: Header) -> None:
    """Replace the header of the store at `path` in one step."""
    replace_file(path / HEADER_FILE, header.render(), path / JOURNAL_FOLDER / f"{STAGING_PREFIX}{HEADER_FILE}")


def _header_from(attributes: Mapping[str, Any], version: int) -> Header:
    required, optional = attributes["required"], attributes["optional"]
    names, rows = optional.get("names", {}), required["rows"]
    model = ModelSpec(**required["model"], name=names.get("model", "unnamed"))
    spec = StoreSpec(
        model=model,
        rows_digest=rows["digest"],
        num_rows=rows["num_rows"],
        hash_rule=rows["hash_rule"],
        view_rule=rows["view_rule"],
        name=names.get("data", "unnamed"),
    )
    return Header(
        spec=spec,
        block_rows=required["block_rows"],
        batch_size=required["batch_size"],
        arrays={name: _entry_from_dict(name, entry, version) for name, entry in required["arrays"].items()},
        static={
            name: StaticEntry(**entry | {"shape": tuple(entry["shape"])}) for name, entry in required["static"].items()
        },
        metadata=required["metadata"],
        versions=optional.get("versions", {}),
        notes=optional.get("notes", {}),
        parity=optional.get("parity", {}),
        attributes=optional.get("attributes", {}),
        unknown={name: value for name, value in optional.items() if name not in OPTIONAL},
        format=version,
    )


def _entry_to_dict(entry: ArrayEntry) -> dict[str, Any]:
    spec = entry.spec
    state = COMPLETE if entry.complete else WRITING
    values = (spec.tap, spec.level, spec.kind, list(spec.row_shape), entry.chunk_rows, state)
    return dict(zip(ARRAY_FIELDS, values, strict=True))


def _entry_from_dict(name: str, entry: Mapping[str, Any], version: int) -> ArrayEntry:
    shape = tuple(entry["row_shape"])
    path = name if version == 1 else ""  # format 1 had the tap in the identity, not in the path
    spec = ArraySpec(level=entry["level"], kind=entry["kind"], row_shape=shape, tap=entry["tap"], name=path)
    if spec.name != name:
        raise ValueError(f"array {name} is not {spec.name}")
    return ArrayEntry(spec=spec, chunk_rows=entry["chunk_rows"], complete=entry["state"] == COMPLETE)


def _is_sound(raw: bytes) -> bool:
    """Whether the bytes of a header have the checksum in them: that of the same bytes with zeros in its place."""
    start = raw.rfind(_CHECKSUM_KEY) + len(_CHECKSUM_KEY)
    blank = raw[:start] + _NO_CHECKSUM.encode() + raw[start + len(_NO_CHECKSUM) :]
    return _with_checksum(blank, google_crc32c.value(blank)) == raw


def _with_checksum(raw: bytes, crc: int) -> bytes:
    start = raw.rfind(_CHECKSUM_KEY) + len(_CHECKSUM_KEY)
    return raw[:start] + f"{crc:08x}".encode() + raw[start + len(_NO_CHECKSUM) :]
