"""Refuse an extraction that its disk cannot take, before the first image.

There is no switch to go on regardless: tokens hardly compress, and a forecast is that of the finished store to the byte.
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


def check_disk_space(cache_root: Path, forecasts: Sequence[StoreForecast], *, mended: Path | None = None) -> None:
    """Raise unless the disk of a cache folder takes what stores under it still lack.

    Args:
        cache_root: the folder of all stores; it may be missing.
        forecasts: of every store of one command. Those that lack nothing may lie on a read-only disk.
        mended: the store that is mended in place, which has no choice of disk or tokens; None: stores are extracted.

    Raises:
        RequestError: it does not fit, or the folder cannot be written.
    """
    needed = needed_bytes(cache_root, forecasts)
    if not needed:
        return
    where = f"--cache {cache_root}" if mended is None else str(mended)
    free = free_bytes(cache_root)
    if needed > free:
        instead = f", choose another disk with --cache, or ask for less: {_less(forecasts)}; nothing was written."
        raise RequestError(
            where=where,
            expected=f"room for {size(needed)} more ({_by_kind(forecasts)})",
            got=f"{size(free)} free on the disk of {nearest_folder(cache_root)}",
            todo=f"Free {size(needed - free)}" + (instead if mended is None else " there; nothing was dropped."),
        )
    num_files, free_for = sum(one.written_files for one in forecasts), free_files(cache_root)
    if free_for is not None and num_files > free_for:
        instead = (
            "Choose another disk with --cache, or fewer --kinds or --levels, each a file a block; nothing was written."
        )
        raise RequestError(
            where=where,
            expected=f"room for {num_files:,} more files",
            got=f"{free_for:,} that the disk of {nearest_folder(cache_root)} still takes",
            todo=instead if mended is None else "Delete other files there; nothing was dropped.",
        )
    for one in forecasts:
        if one.written_files or one.written_bytes:
            _check_writable(one.path)


def missing_by_kind(forecasts: Sequence[StoreForecast]) -> dict[str, int]:
    """Kind -> bytes of its tokens that are still to be written, if any, the largest first."""
    total: Counter[str] = Counter()
    for one in forecasts:
        for array in one.arrays:
            total[array.spec.kind] += array.missing_bytes
    return {kind: missing for kind, missing in total.most_common() if missing}


def _by_kind(forecasts: Sequence[StoreForecast]) -> str:
    parts = [f"{kind} {size(missing)}" for kind, missing in missing_by_kind(forecasts).items()]
    return ", ".join(parts) or "labels, ids and metadata"


def _less(forecasts: Sequence[StoreForecast]) -> str:
    largest, *others = missing_by_kind(forecasts) or ["patch"]
    kinds = f"--kinds without {largest}" if others else "--kinds with fewer tokens"
    wide = any(array.storage_dtype == "float32" and array.missing_bytes for one in forecasts for array in one.arrays)
    return f"{kinds}, fewer --levels" + (", --storage-dtype float16" if wide else "")


def _check_writable(store: Path) -> None:
    try:
        check_writable(store)
    except NotWritableError as error:
        raise RequestError(
            where=error.where, expected=error.expected, got=error.got, todo=f"{error.todo} Nothing was written."
        ) from error
