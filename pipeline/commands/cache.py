"""`layerbank cache`: list, inspect, verify and repair stores; `cache_changes` has the other commands."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import options as shared
from .cache_changes import COMMANDS

if TYPE_CHECKING:
    from layerbank.cache import Damage, StoreInfo, TokenStore


@click.group(cls=shared.CommandGroup)
def cache() -> None:
    """List, inspect, verify, repair, export and clean up token stores.

    \b
    layerbank cache ls
    layerbank cache verify caches/*/*.zarr
    """


@cache.command()
@shared.cache_root
@shared.as_json
def ls(cache_root: Path, as_json: bool) -> None:
    """List every store under a folder.

    \b
    layerbank cache ls --cache caches
    """
    from layerbank.cache import list_stores

    from ..console import print_json, print_lines, print_table
    from ..quantities import size

    stores = list_stores(cache_root)
    if as_json:
        print_json([_summary(store) for store in stores])
    elif stores:
        columns = ("store", "state", "rows", "levels", "kinds", "dtype", "size")
        print_table(columns, [_line(store, cache_root, size(store.size_bytes)) for store in stores])
    else:
        print_lines([f"no stores under {cache_root}"])


@cache.command()
@shared.one_store
@shared.as_json
def info(store: Path, as_json: bool) -> None:
    """Show what a store holds: model, data, arrays, precision, skipped images.

    \b
    layerbank cache info caches/demo-vit-s-focus-1a2b3c4d/photos-train-5e6f7a8b.zarr
    """
    from layerbank.cache import TokenStore, read_store_info

    from ..console import print_json, print_lines, print_table

    found = read_store_info(store)
    if found.problem is not None:
        raise found.problem
    summary = _summary(found) | {"attributes": found.attributes}
    if found.complete_arrays:
        opened = TokenStore.open(store)
        summary |= {
            "batch_size": opened.batch_size,
            "block_rows": opened.block_rows,
            "versions": opened.versions,
            "skipped": {opened.sample_ids[row]: reason for row, reason in opened.skipped.items()},
            "saturated": dict(opened.notes.saturated),
            "nonfinite": dict(opened.notes.nonfinite),
            "parity": _parity(opened),
        }
    if as_json:
        print_json(summary)
    else:
        parity = summary.pop("parity", None)
        print_lines(_flat(summary))
        if parity is not None:
            print_lines([f"parity: {parity['compared']}"])
            print_table(("level", *_PARITY_COLUMNS), _parity_lines(parity["levels"]))


@cache.command()
@click.argument("stores", type=shared.FOLDER, nargs=-1, required=True)
@shared.as_json
def verify(stores: tuple[Path, ...], as_json: bool) -> None:
    """Read stores completely and list every damaged file, and what killed processes left; exit code 1 if there is any.

    \b
    layerbank cache verify caches/*/*.zarr
    """
    from layerbank.cache import CacheError, Damage, verify_store
    from layerbank.cache.maintenance.verify import find_unfinished_work, harmless_files

    from ..console import print_error, print_json, print_lines

    damages: dict[str, list[Damage]] = {}
    for store in stores:
        try:
            found = damages[str(store)] = [*verify_store(store), *find_unfinished_work(store)]
        except CacheError as error:
            if len(stores) == 1:
                raise
            damages[str(store)] = [Damage(file=".", problem=error.got)]
            print_error(error.where, {"expected": error.expected, "got": error.got, "do": error.todo})
            continue
        if not as_json:
            print_lines([f"{store}: {f'{len(found)} damaged' if found else 'sound'}", *(f"  {one}" for one in found)])
            print_lines(
                f"  harmless, written by a file manager: {file.relative_to(store)}" for file in harmless_files(store)
            )
            if found:
                print_lines([f"  to repair it: layerbank cache repair {shlex.quote(str(store))}"])
    if as_json:
        print_json({store: [_damage(one) for one in found] for store, found in damages.items()})
    if any(damages.values()):
        click.get_current_context().exit(1)


@cache.command()
@shared.one_store
@shared.device
@shared.workers
@click.option("--remove-foreign", is_flag=True, help="Also delete files that do not belong to the store.")
@shared.allow_code
def repair(store: Path, device: str, workers: int | None, remove_foreign: bool, allow_code: tuple[str, ...]) -> None:
    """Drop damaged rows and compute them again, and no others.

    Model and data set are those the store was made from. If they are no longer there, the store keeps its sound rows; the
    same `layerbank extract` fills it later. A damaged target is deleted; the classes of the data set are written again. Exit
    code 1 if damage or foreign files remain.

    \b
    layerbank cache repair caches/demo-vit-s-focus-1a2b3c4d/photos-train-5e6f7a8b.zarr
    """
    from layerbank.cache import list_targets

    from ..console import Listener, print_lines
    from ..extraction.repair import repair_and_fill
    from ..models.request import choose_device, choose_workers

    device = choose_device(device)
    with Listener() as listener:
        done = repair_and_fill(
            store,
            device=device,
            num_workers=choose_workers(workers, device),
            remove_foreign=remove_foreign,
            allow_code=allow_code,
            on_event=listener.show,
        )
    print_lines(f"  dropped and computed again: {one}" for one in done.dropped)
    written = list_targets(store)
    print_lines(
        f"  target {name}: damaged, {'written again' if name in written else 'deleted: write it again'}"
        for name in done.dropped_targets
    )
    print_lines(f"  restored: {one}" for one in done.restored_later if one not in done.still_damaged)
    print_lines(
        f"  {'deleted' if remove_foreign else 'left alone (see --remove-foreign)'}: {one}" for one in done.foreign
    )
    print_lines(f"  removed: {one}" for one in done.left_behind)
    print_lines(f"  still damaged: {one}" for one in done.still_damaged)
    print_lines([f"{store}: {done.num_rows:,} rows computed again"])
    if done.still_damaged or (done.foreign and not remove_foreign):
        click.get_current_context().exit(1)


for command in COMMANDS:
    cache.add_command(command)


def _summary(store: StoreInfo) -> dict[str, Any]:
    arrays = store.complete_arrays
    return {
        "path": str(store.path),
        "state": store.state,
        "owners": [str(owner) for owner in store.owners],
        "problem": None if store.problem is None else str(store.problem),
        "blocks": f"{store.num_blocks_done} of {store.num_blocks}",
        "missing_rows": [f"{rows.start} to {rows.stop - 1}" for rows in store.missing_rows],
        "fingerprint": None if store.spec is None else store.spec.fingerprint,
        "spec": None if store.spec is None else store.spec.to_dict(),
        "levels": list(dict.fromkeys(array.level for array in arrays)),
        "kinds": list(dict.fromkeys(array.kind for array in arrays)),
        "size_bytes": store.size_bytes,
    }


def _line(store: StoreInfo, root: Path, shown_size: str) -> Sequence[str]:
    arrays = store.complete_arrays
    state = f"{store.state} ({'; '.join(map(str, store.owners))})" if store.owners else store.state
    if store.state == "writing":
        state += f", {store.num_blocks_done} of {store.num_blocks} blocks"
    return (
        str(store.path.relative_to(root)),
        state,
        "-" if store.spec is None else f"{store.spec.num_rows:,}",
        str(len({array.level for array in arrays})),
        ", ".join(dict.fromkeys(array.kind for array in arrays)) or "-",
        "-" if store.spec is None else store.spec.model.storage_dtype,
        shown_size,
    )


def _damage(one: Damage) -> dict[str, Any]:
    rows = None if one.rows is None else [one.rows.start, one.rows.stop]
    return {"file": one.file, "problem": one.problem, "level": one.level, "kind": one.kind, "rows": rows}


_PARITY_COLUMNS = ("cosine_min", "cosine_mean", "max_relative_error", "saturated", "nonfinite")


def _parity(cache: TokenStore) -> dict[str, Any] | None:
    """The parity of the first images by level and by array; None if it was not measured."""
    from ..extraction.parity_levels import parity_by_level

    if not cache.parity:
        return None
    num_images = max(one["num_images"] for one in cache.parity.values())
    what = (
        "storage rounding error alone (the model ran in float32)"
        if cache.spec.model.compute_dtype == "float32"
        else f"{cache.spec.model.compute_dtype} and the storage dtype against a float32 run"
    )
    return {
        "compared": f"{what}, on {num_images} images",
        "levels": parity_by_level(cache.parity),
        "arrays": cache.parity,
    }


def _parity_lines(levels: dict[str, dict[str, Any]]) -> list[Sequence[str]]:
    return [
        (level, *(f"{one[name]:,}" if isinstance(one[name], int) else f"{one[name]:.7g}" for name in _PARITY_COLUMNS))
        for level, one in levels.items()
    ]


def _flat(values: dict[str, Any], prefix: str = "") -> list[str]:
    """Nested values as `name: value` lines, empty ones left out."""
    lines: list[str] = []
    for name, value in values.items():
        if isinstance(value, dict):
            lines += _flat(value, f"{prefix}{name}.")
        elif value not in (None, []):
            shown = ", ".join(map(str, value)) if isinstance(value, list) else value
            lines.append(f"{prefix}{name}: {shown}")
    return lines
