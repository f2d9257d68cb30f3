"""What the attributes of a header may be: their names, types and ranges.

The decision taken here: a header is data from elsewhere, also when its checksum is right. A part that this version does not know
means that a newer layerbank wrote it; anything else that is not as README.md says is damage. So code that has a `Header` can
trust its types, and that its sizes fit together. Whether the rows that it counts exist, only the files can tell.

Knows JSON only, no files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from .rows import HASH_RULE
from .spec import COMPUTE_DTYPES, MODEL_FIELDS, STORAGE_DTYPES

WRITING, COMPLETE = "writing", "complete"
TOP = ("format", "format_version", "required", "optional", "header_crc32c")
REQUIRED = ("state", "model", "rows", "block_rows", "batch_size", "arrays", "static", "metadata")
ROWS_FIELDS = ("digest", "num_rows", "hash_rule", "view_rule")
ARRAY_FIELDS = ("tap", "level", "kind", "row_shape", "chunk_rows", "state")
STATIC_FIELDS = ("shape", "dtype", "crc32c")
PARITY_COUNTS = ("num_images", "saturated", "nonfinite", "reference_nonfinite")
PARITY_NUMBERS = ("cosine_min", "cosine_mean", "max_relative_error")
OPTIONAL = ("names", "versions", "notes", "parity", "attributes")

_PLAIN_DTYPE = re.compile(r"u?int(8|16|32|64)|float(16|32|64)|bool")
_CHECKSUM = re.compile(r"[0-9a-f]{8}")
_PATH = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)*")
_PER_ROW = {"content_hashes": "uint64", "views": "uint16", "sizes": "int64"}  # static arrays [N] of format 2
_PER_BORDER = {"sample_ids/offsets": "int64"}  # [N + 1]


def newer_parts(attributes: Mapping[str, Any]) -> list[str]:
    """The parts of a header's attributes that this version does not know, optional attributes excepted."""
    required = attributes["required"]
    model, rows = required["model"], required["rows"]
    unknown = {*attributes} - {*TOP} | {*required} - {*REQUIRED}
    unknown |= _unknown("model", [model], MODEL_FIELDS) | _unknown("rows", [rows], ROWS_FIELDS)
    unknown |= _unknown("arrays", required["arrays"].values(), ARRAY_FIELDS)
    unknown |= _unknown("static", required["static"].values(), STATIC_FIELDS)
    if type(rows["hash_rule"]) is int and rows["hash_rule"] > HASH_RULE:
        unknown.add(f"hash rule {rows['hash_rule']}")
    dtypes = {model["compute_dtype"]} - {*COMPUTE_DTYPES}
    dtypes |= {part.rpartition("=")[2] for part in model["storage_dtype"].split(",")} - {*STORAGE_DTYPES}
    return sorted(unknown | {f"dtype {dtype}" for dtype in dtypes})


def check_values(required: Mapping[str, Any], optional: Mapping[str, Any], version: int) -> None:
    """Check what the specs of model, rows and arrays do not check themselves.

    Raises:
        ValueError: something is not as README.md says.
    """
    num_rows, block_rows = required["rows"]["num_rows"], required["block_rows"]
    arrays, static = required["arrays"], required["static"]
    states = [entry["state"] for entry in arrays.values()]
    _require("numbers of rows", all(map(_is_count, (num_rows, block_rows, required["batch_size"]))))
    _require("block_rows", block_rows <= num_rows)
    _require("arrays", bool(arrays) and {*states} <= {WRITING, COMPLETE})
    _require("state", required["state"] == (WRITING if WRITING in states else COMPLETE))
    for name, entry in arrays.items():
        chunk_rows = entry["chunk_rows"]
        is_whole = _is_count(chunk_rows) and (block_rows % chunk_rows == 0 or block_rows == num_rows)
        _require(name, is_whole and chunk_rows <= block_rows and all(map(_is_count, entry["row_shape"])))
    for name, entry in static.items():
        is_plain = _PLAIN_DTYPE.fullmatch(entry["dtype"]) and _CHECKSUM.fullmatch(entry["crc32c"])
        _require(name, _PATH.fullmatch(name) and is_plain and entry["shape"] and all(map(_is_count, entry["shape"])))
    for sized, size in ((_PER_ROW, num_rows), (_PER_BORDER, num_rows + 1)):
        for name in sized.keys() & static.keys():
            _require(name, (static[name]["shape"], static[name]["dtype"]) == ([size], sized[name]))
    written_once = {"sample_ids/bytes", "sample_ids/offsets", "content_hashes" if version > 1 else "labels"}
    _require("static", written_once <= static.keys())
    _require("labels", version > 1 or static["labels"]["shape"][0] == num_rows)
    _require(
        "metadata",
        all(_PATH.fullmatch(path) and _CHECKSUM.fullmatch(crc) for path, crc in required["metadata"].items()),
    )
    _require("optional", all(isinstance(optional.get(name, {}), Mapping) for name in OPTIONAL))
    _require("parity", all(map(is_parity, optional.get("parity", {}).values())))


def is_parity(value: object) -> bool:
    """Whether a value is the parity of an array: it has every number that README.md lists."""
    if not isinstance(value, Mapping):
        return False
    counts, numbers = ([value.get(name) for name in names] for names in (PARITY_COUNTS, PARITY_NUMBERS))
    are_counts = all(type(one) is int and 0 <= one < 2**63 for one in counts)
    return are_counts and all(isinstance(one, int | float) and -1e300 < one < 1e300 for one in numbers)


def _unknown(part: str, entries: Iterable[Mapping[str, Any]], known: Iterable[str]) -> set[str]:
    return {f"{part}.{name}" for entry in entries for name in {*entry} - {*known}}


def _is_count(value: object) -> bool:
    return type(value) is int and 1 <= value < 2**63


def _require(part: str, is_right: object) -> None:
    if not is_right:
        raise ValueError(f"{part} is not as the format says")
