"""Refuse an extraction for which the disk has too little space, before the first image.

There is no option to go on regardless: tokens hardly compress, and the forecast is the size of the finished store.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from layerbank.cache import (
    NotWritableError,
    StoreForecast,
    check_writable,
    free_bytes,
    free_files,
    nearest_folder,
    needed_bytes,
)

from ..errors import RequestError
from ..quantities import size


def check_disk_space(cache_root: Path, forecasts: Sequence[StoreForecast], *, repaired: Path | None = None) -> None:
    """Check that the disk of a cache folder takes what the stores under it still lack.

    Args:
        cache_root: the folder of all stores; it need not exist.
        forecasts: the stores of one command. Those that lack nothing may lie on a read-only disk.
        repaired: the store that is repaired in place; None if stores are extracted, which could be done on another disk.

    Raises:
        RequestError: too little space, too few files, or a folder that cannot be written.
    """
    needed = needed_bytes(cache_root, forecasts)
    if not needed:
        return
    free, folder = free_bytes(cache_root), nearest_folder(cache_root)
    if needed > free:
        sizes = {"needed": size(needed), "by_kind": _by_kind(forecasts), "free": size(free)}
        lacking = size(needed - free)
        if repaired is not None:
            raise RequestError(
                "extraction.disk_too_small_for_repair", store=repaired, folder=folder, lacking=lacking, **sizes
            )
        less = _less(forecasts)
        raise RequestError(
            "extraction.disk_too_small", cache_root=cache_root, folder=folder, lacking=lacking, less=less, **sizes
        )
    num_files, free_for = sum(one.written_files for one in forecasts), free_files(cache_root)
    if free_for is not None and num_files > free_for:
        if repaired is not None:
            raise RequestError(
                "extraction.too_many_files_for_repair", store=repaired, folder=folder, needed=num_files, free=free_for
            )
        raise RequestError(
            "extraction.too_many_files", cache_root=cache_root, folder=folder, needed=num_files, free=free_for
        )
    for one in forecasts:
        if one.written_files or one.written_bytes:
            _check_writable(one.path)


def _by_kind(forecasts: Sequence[StoreForecast]) -> str:
    parts = [f"{kind} {size(missing)}" for kind, missing in _missing_by_kind(forecasts).items()]
    return ", ".join(parts) or "labels, ids and metadata"


def _missing_by_kind(forecasts: Sequence[StoreForecast]) -> dict[str, int]:
    """Return kind -> bytes of its tokens that are still to be written, if any, the largest first."""
    total: Counter[str] = Counter()
    for one in forecasts:
        for array in one.arrays:
            total[array.spec.kind] += array.missing_bytes
    return {kind: missing for kind, missing in total.most_common() if missing}


def _less(forecasts: Sequence[StoreForecast]) -> str:
    """What would be less, in words: a probe chooses levels and kinds by its name."""
    largest, *others = _missing_by_kind(forecasts) or ["patch"]
    kinds = f"no tokens of kind {largest}" if others else "kinds with fewer tokens"
    wide = any(array.storage_dtype == "float32" and array.missing_bytes for one in forecasts for array in one.arrays)
    return f"{kinds}, fewer levels" + (", --storage-dtype float16" if wide else "")


def _check_writable(store: Path) -> None:
    try:
        check_writable(store)
    except NotWritableError as error:
        raise RequestError(
            "extraction.cache_not_writable",
            where=error.where,
            expected=error.expected,
            got=error.got,
            todo=error.todo,
        ) from error
