"""What lies in the folder of all stores: unfinished ones with the command that goes on, leftovers, what cannot be read."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from .finding import OK, PROBLEM, WARNING, Finding, first_line
from .libraries import BROKEN

if TYPE_CHECKING:
    from layerbank.cache import StoreInfo


def check_stores(cache_root: Path) -> list[Finding]:
    """Every store that needs attention, and a count of those that do not."""
    try:
        from layerbank.cache import BENCHMARK_PREFIX, find_garbage, list_stores
    except BROKEN as error:
        return [Finding("stores", WARNING, f"not looked at: {first_line(error)}", "Mend the imports first.")]
    stores = list_stores(cache_root)
    findings = [finding for store in stores if (finding := _look_at(store, cache_root)) is not None]
    todo = f"layerbank cache gc --cache {shlex.quote(str(cache_root))} --delete"
    findings += [Finding("leftover", WARNING, f"{one.path}: {one.reason}", todo) for one in find_garbage(cache_root)]
    # of a `layerbank plan` that was killed; it may have been made beside a folder that was not there
    trials = [
        path for folder in (cache_root, cache_root.absolute().parent) for path in folder.glob(f"{BENCHMARK_PREFIX}*")
    ]
    findings += [Finding("leftover", WARNING, f"{path}: of a plan that was killed", "Delete it.") for path in trials]
    num_complete = sum(store.state == "complete" for store in stores)
    return [*findings, Finding("stores", OK, f"{num_complete} complete under {cache_root}")]


def resume_command(store: StoreInfo, cache_root: Path) -> str | None:
    """The `layerbank extract` that completes a store; None for one that does not say what it was made from."""
    request = store.attributes.get("request") or {}
    if store.header is None or "model" not in request or "data" not in request:
        return None
    model, views, spec = request["model"], request.get("views"), store.header.spec
    missing = [entry.spec for entry in store.header.arrays.values() if not entry.complete]
    words = ["layerbank", "extract", "--model", model["model"], "--data", request["data"], "--split", spec.split]
    words += ["--levels", ",".join(dict.fromkeys(array.level for array in missing))]
    words += ["--kinds", ",".join(dict.fromkeys(array.kind for array in missing))]
    words += ["--precision", spec.compute_dtype, "--storage-dtype", spec.storage_dtype, "--cache", str(cache_root)]
    if model["weights"] is not None:
        words += ["--weights", model["weights"], "--weights-seed", str(model["seed"])]
    if model["image_size"] is not None:
        words += ["--image-size", str(model["image_size"])]
    tap = model["tap"]
    words += ["--tap-module", tap.removeprefix("module:")] if tap.startswith("module:") else ["--tap", tap]
    if views is not None:
        words += ["--views", str(views["num_views"]), "--view-scale", str(views["min_scale"])]
        words += ["--view-flip" if views["flip"] else "--no-view-flip", "--views-split", spec.split]
    return shlex.join(words)


def _look_at(store: StoreInfo, cache_root: Path) -> Finding | None:
    if store.problem is not None:
        return Finding("store", PROBLEM, f"{store.path}: {store.problem.got}", store.problem.todo)
    if store.owners:
        return Finding("store", OK, f"{store.path}: being written by {'; '.join(map(str, store.owners))}")
    if store.state == "complete":
        return None
    command = resume_command(store, cache_root)
    done = f"unfinished, {store.num_blocks_done} of {store.num_blocks} blocks, and nobody writes it"
    todo = "Run the command that made it once more." if command is None else command
    return Finding("store", WARNING, f"{store.path}: {done}", todo)
