"""The fields of a row of results, and what each may hold: whoever reads a row may rely on it.

Only fields that something reads are listed. Every row of format 2 has all of `NEEDED_SINCE_2`; the rest may be missing. A field of
another type makes the row damaged, and so do fields that contradict each other.

Scores are accuracies in [0, 1], or any numbers in a row that names another metric than balanced accuracy.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

Check = Callable[[Any], bool]

MOST = 2**63  # of integers, as in Parquet and NumPy
NEEDED = ("key", "probe", "backbone", "dataset", "test", "protocol", "setting_of_study")
NEEDED_SINCE_2 = (
    *("layerbank", "key_fields", "stores", "files", "digest", "images", "train_fingerprint", "test_fingerprint"),
    *("head", "levels", "kinds", "num_heads", "normalize", "chosen", "validation", "settings"),
    *("num_parameters", "cost", "seconds"),
)
_NUMBERS = {int, float, type(None)}
_LONGEST_NAME_BYTES = 246  # the name of a folder has a dash and 8 digits more, and 255 bytes at most
_FILE_NAME = re.compile(r"[^/\\\x00]+")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and "\x00" not in value


def _is_file_name(value: Any) -> bool:
    if not isinstance(value, str) or len(value.encode()) > _LONGEST_NAME_BYTES:
        return False
    return bool(_FILE_NAME.fullmatch(value)) and value not in (".", "..")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < MOST


def _is_number(value: Any) -> bool:
    return math.isfinite(value) if type(value) is float else type(value) is int and -MOST < value < MOST


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _or_null(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _list_of(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _object_of(check: Check) -> Check:
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


def _object_with(**checks: Check) -> Check:
    return lambda value: (
        isinstance(value, dict) and all(name in value and check(value[name]) for name, check in checks.items())
    )


def _is_protocol(value: Any) -> bool:
    if not _object_with(seed=_is_count)(value):
        return False
    flat = [one for field in value.values() for one in (field if isinstance(field, list) else [field])]
    return all(isinstance(one, str) or one is None or _is_number(one) or isinstance(one, bool) for one in flat)


def _is_setting(value: Any) -> bool:
    """A setting, or one with its score; all that it has are numbers, null where it diverged."""
    if not isinstance(value, dict) or not _NUMBERS.issuperset(map(type, value.values())):
        return False
    try:
        return math.isfinite(math.fsum(filter(None, value.values())))  # a grid has many: no loop in Python
    except (OverflowError, ValueError):
        return False


def _is_scored_setting(value: Any) -> bool:
    return _is_setting(value) and "validation" in value


def _is_derived(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    members, base = value.get("members", []), value.get("base", "")
    return _list_of(_object_with(diverged=lambda one: isinstance(one, bool)))(members) and _is_text(base)


def _is_list_of_texts(value: Any) -> bool:
    return bool(value) and _list_of(_is_text)(value)


FIELDS: dict[str, Check] = {
    "key": _is_file_name,
    "probe": _is_file_name,
    "backbone": _is_text,
    "dataset": _is_text,
    "setting_of_study": _is_text,
    "protocol": _is_protocol,
    "task": _is_text,
    "metric": _is_text,
    "train_fingerprint": _is_text,
    "test_fingerprint": _is_text,
    "train_views": _is_count,
    "images": _object_of(_is_file_name),
    "head": _is_text,
    "levels": _is_list_of_texts,
    "kinds": _is_list_of_texts,
    "num_heads": _or_null(_is_count),
    "normalize": _is_text,
    "compute": _or_null(_is_text),
    "chosen": _or_null(_is_setting),
    "settings": _list_of(_is_scored_setting),
    "candidate": _or_null(_is_text),
    "derived": _or_null(_is_derived),
    "num_parameters": _is_count,
    "cost": _object_of(_is_count),
    "seconds": _object_of(lambda value: _is_number(value) and value >= 0),
    "layerbank": _is_text,
    "key_fields": _is_object,
    "stores": _object_of(_list_of(_is_text)),
    "files": lambda value: _object_of(_is_text)(value) and all(map(_is_file_name, value)),
    "digest": _is_text,
}


def wrong_field(row: dict[str, Any], *, newer: bool) -> str | None:
    """Say what a row lacks, or which field holds what it cannot hold; None if there is nothing.

    Args:
        row: an object of a line.
        newer: whether it has the fields of format 2.
    """
    missing = [name for name in (*NEEDED, *(NEEDED_SINCE_2 if newer else ())) if name not in row]
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        return f"a row without {shown}"
    is_score, metric = _is_number if "metric" in row else _is_share, row.get("metric", "balanced_accuracy")
    scores = {
        "test": _or_null(lambda value: _object_of(is_score)(value) and metric in value),
        "validation": _or_null(is_score),
    }
    for name, check in (FIELDS | scores).items():
        if name in row and not check(row[name]):
            return f"the {name} {row[name]!r:.60}"
    lacking = [name for name in ("chosen", "validation") if name in row and row[name] is None]
    return f"a test without the {lacking[0]}" if row["test"] is not None and lacking else None
