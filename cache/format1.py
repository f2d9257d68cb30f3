"""Headers of format 1, of layerbank 0.1 and 0.2.0, in the words of format 2; such stores are read, and never written.

In format 1 the identity was one list of fields with the data's names and labels in it; the tap was one of them and no part of an
array's path; content hashes were written row block by row block, under rule 1, and are in the journal; labels were an array.

Knows JSON only, no files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import google_crc32c

from .spec import ModelSpec

VIEWS_MARK = "; views "  # began the part of the transform that described augmented views
MODEL_FIELDS = ("architecture", "weights", "token_rule", "compute_dtype", "storage_dtype")


def attributes_from_format1(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of a header of format 1 as format 2 has them.

    The digest of the rows is not known before their hashes are read: the fingerprint of format 1 stands in for it.
    """
    spec = attributes["spec"]
    transform, mark, views = spec["transform"].partition(VIEWS_MARK)
    entries = {
        name: {
            "tap": "" if entry["level"] == "final" else spec["tap"],
            **{field: entry[field] for field in ("level", "kind", "row_shape", "chunk_rows", "state")},
        }
        for name, entry in attributes["arrays"].items()
    }
    rows = {"digest": attributes["fingerprint"], "num_rows": spec["num_rows"], "hash_rule": 1}
    return {
        "required": {
            "state": attributes["state"],
            "model": {name: spec[name] for name in MODEL_FIELDS} | {"transform": transform},
            "rows": rows | {"view_rule": (mark + views).removeprefix("; ")},
            "block_rows": attributes["block_rows"],
            "batch_size": attributes["batch_size"],
            "arrays": entries,
            "static": attributes["static"],
            "metadata": attributes["metadata"],
        },
        "optional": {
            "names": {"model": spec["backbone"], "data": f"{spec['dataset']}-{spec['split']}"},
            "versions": attributes["versions"],
            "notes": attributes["notes"],
            "parity": attributes.get("parity", {}),
            "attributes": attributes["attributes"] | {"split": spec["split"], "dataset": spec["dataset"]},
        },
    }


def model_of_format1(spec: Mapping[str, Any]) -> ModelSpec:
    """The model in a spec of format 1, as saved probes of that time have it."""
    transform = spec["transform"].partition(VIEWS_MARK)[0]
    return ModelSpec(**{name: spec[name] for name in MODEL_FIELDS}, transform=transform, name=spec["backbone"])


def is_sound_format1(raw: bytes, document: Mapping[str, Any]) -> bool:
    """Whether a header of format 1 has its one rendering, and the checksum of the attributes before it."""
    attributes = {name: value for name, value in document["attributes"].items() if name != "header_crc32c"}
    checksum = f"{google_crc32c.value(render(attributes)):08x}"
    return render(document) == raw and document["attributes"].get("header_crc32c") == checksum


def render(document: Mapping[str, Any]) -> bytes:
    """The bytes of a header file, in either format."""
    return json.dumps(document, indent=2, ensure_ascii=True).encode("ascii")
