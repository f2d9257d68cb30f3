"""The stores: unfinished ones with the command that continues them, leftovers, unreadable ones."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from .finding import OK, PROBLEM, WARNING, Finding

if TYPE_CHECKING:
    from layerbank.cache import StoreInfo


def check_stores(cache_root: Path) -> list[Finding]:
    """List every store that needs attention, and count those that do not."""
    from layerbank.cache import BENCHMARK_PREFIX, find_garbage, list_stores

    stores = list_stores(cache_root)
    findings = [finding for store in stores if (finding := _check_store(store, cache_root)) is not None]
    todo = f"layerbank cache gc --cache {shlex.quote(str(cache_root))} --delete"
    findings += [Finding("leftover", WARNING, f"{one.path}: {one.reason}", todo) for one in find_garbage(cache_root)]
    for folder in (cache_root, cache_root.absolute().parent):  # beside it where it did not exist yet
        for path in folder.glob(f"{BENCHMARK_PREFIX}*"):
            findings.append(Finding("leftover", WARNING, f"{path}: left by a plan that was killed", "Delete it."))
    num_complete = sum(store.state == "complete" for store in stores)
    return [*findings, Finding("stores", OK, f"{num_complete} complete under {cache_root}")]


def resume_command(store: StoreInfo, cache_root: Path) -> str | None:
    """Return the `layerbank extract` that completes a store; None if the store does not record what it was made from."""
    request = store.attributes.get("request") or {}
    if store.header is None or not {"model", "data", "split"} <= request.keys():
        return None
    model, views, spec = request["model"], request.get("views"), store.header.spec.model
    missing = [entry.spec for entry in store.header.arrays.values() if not entry.complete]
    tap = next((array.tap for array in missing if array.tap), model["tap"])
    options = {
        "--model": model["model"],
        "--data": request["data"],
        "--split": request["split"],
        "--levels": ",".join(dict.fromkeys(array.level for array in missing)),
        "--kinds": ",".join(dict.fromkeys(array.kind for array in missing)),
        "--precision": spec.compute_dtype,
        "--storage-dtype": spec.storage_dtype,
        "--cache": cache_root,
        "--weights": model["weights"],
        "--weights-seed": None if model["weights"] is None else model["seed"],
        "--weights-key": model.get("weights_key"),
        "--image-size": model["image_size"],
        "--tap-module" if tap.startswith("module:") else "--tap": tap.removeprefix("module:"),
    }
    flags = []
    if views is not None:
        options |= {
            "--views": views["num_views"],
            "--view-scale": views["min_scale"],
            "--views-split": request["split"],
        }
        flags = ["--view-flip" if views["flip"] else "--no-view-flip"]
    words = [str(word) for option in options.items() if option[1] is not None for word in option]
    return shlex.join(["layerbank", "extract", *words, *flags])


def _check_store(store: StoreInfo, cache_root: Path) -> Finding | None:
    if store.problem is not None:
        return Finding("store", PROBLEM, f"{store.path}: {store.problem.got}", store.problem.todo)
    if store.owners:
        return Finding("store", OK, f"{store.path}: being written by {'; '.join(map(str, store.owners))}")
    if store.state == "complete":
        return None
    command = resume_command(store, cache_root)
    done = f"unfinished, {store.num_blocks_done} of {store.num_blocks} row blocks, and no process writes it"
    todo = "Run the command that made it once more." if command is None else command
    return Finding("store", WARNING, f"{store.path}: {done}", todo)
