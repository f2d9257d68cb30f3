"""What a writer is asked to write, checked once.

Labels and sample ids are taken in the form in which they are stored, so that "the same as before" is a
comparison of checksums.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from .errors import SpecError
from .layout import static_arrays
from .spec import ArraySpec, CacheSpec, array_order


@dataclass(frozen=True, kw_only=True)
class Request:
    """The arguments of `CacheWriter.open`, found sound.

    Args:
        spec: identity and labels of the store.
        arrays: the arrays wanted, sorted by level and kind.
        static: labels and sample ids as they are stored, see `layout.static_arrays`.
        sample_ids: N texts, for messages.
        batch_size: rows a batch, for a store that is made now.
        attributes: what the caller records, as JSON gives it back.
        parity: array name -> what the caller measured of it, as JSON gives it back; of arrays that are new to the store.
        versions: library -> version, for a store that is made now.
    """

    spec: CacheSpec
    arrays: tuple[ArraySpec, ...]
    static: Mapping[str, NDArray[Any]]
    sample_ids: Sequence[str]
    batch_size: int
    attributes: Mapping[str, Any]
    parity: Mapping[str, Mapping[str, Any]]
    versions: Mapping[str, str]


def check_request(
    spec: CacheSpec,
    arrays: Sequence[ArraySpec],
    labels: NDArray[Any],
    sample_ids: Sequence[str],
    batch_size: int,
    attributes: Mapping[str, Any],
    parity: Mapping[str, Mapping[str, Any]],
) -> Request:
    """Collect everything wrong with the arguments of `CacheWriter.open`, or take them.

    Raises:
        SpecError: names every argument that is wrong.
    """
    wrong: list[tuple[str, str, str]] = []
    names = [array.name for array in arrays]
    if not names or len(set(names)) != len(names):
        wrong.append(("arrays", "at least one, each once", str(names)))
    if labels.dtype.kind not in "iub" and labels.dtype.name not in ("float32", "float64"):
        wrong.append(("labels", "integers, float32 or float64", str(labels.dtype)))
    if labels.ndim not in (1, 2) or len(labels) != spec.num_rows or 0 in labels.shape:
        wrong.append(("labels", f"shape ({spec.num_rows},) or ({spec.num_rows}, K)", str(labels.shape)))
    if len(sample_ids) != spec.num_rows or not all(sample_ids):
        empty = sum(not name for name in sample_ids)
        wrong.append(("sample_ids", f"{spec.num_rows} texts", f"{len(sample_ids)}, {empty} of them empty"))
    if batch_size < 1:
        wrong.append(("batch_size", "at least 1", str(batch_size)))
    try:
        attributes = json.loads(json.dumps(attributes))
    except (TypeError, ValueError) as error:
        wrong.append(("attributes", "values that JSON can hold", str(error)))
    try:
        parity = json.loads(json.dumps(parity, allow_nan=False))
    except (TypeError, ValueError) as error:
        wrong.append(("parity", "values that JSON can hold", str(error)))
    if not set(parity) <= set(names):
        wrong.append(("parity", "of arrays that are asked for", str(sorted(set(parity) - set(names)))))
    if wrong:
        raise SpecError(
            where="CacheWriter.open",
            expected="; ".join(f"{name}: {rule}" for name, rule, _ in wrong),
            got="; ".join(f"{name}: {got}" for name, _, got in wrong),
            todo="Correct these arguments; nothing was written.",
        )
    return Request(
        spec=spec,
        arrays=tuple(sorted(arrays, key=array_order)),
        static=static_arrays(labels, sample_ids),
        sample_ids=sample_ids,
        batch_size=batch_size,
        attributes=attributes,
        parity=parity,
        versions=library_versions(),
    )


def library_versions() -> dict[str, str]:
    """What a store made now records of the libraries that make it."""
    return {"numpy": np.__version__, "python": platform.python_version(), "zarr": zarr.__version__}
