"""`layerbank cache`: list, inspect, verify, repair, delete, export and clean up stores."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import options as shared

if TYPE_CHECKING:
    from layerbank.cache import Damage, StoreInfo, TokenStore, Unfinished

_store = click.argument("store", type=shared.FOLDER)


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
@_store
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
@_store
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


@cache.command()
@shared.cache_root
@click.option("--delete", is_flag=True, help="Delete what is listed.")
@click.option(
    "--unfinished",
    metavar="AGE",
    help="Also list unfinished stores without a write for this long: 7d, 12h, 30min, 0d for all. [default: keep them]",
)
@click.option(
    "--unused",
    metavar="AGE",
    help="Also list complete stores whose tokens nobody has read or written for this long: 7d or more. [default: keep them]",
)
@click.option(
    "--superseded",
    is_flag=True,
    help="Also list complete stores when another complete store of the model has all their rows, arrays and targets.",
)
@shared.as_json
def gc(
    cache_root: Path, delete: bool, unfinished: str | None, unused: str | None, superseded: bool, as_json: bool
) -> None:
    """List files that are no longer needed, such as leftovers of killed writers; delete them on request.

    Unfinished stores are kept, since the next shard may still wait in a queue. They are listed with the command that finishes
    them.

    \b
    layerbank cache gc --delete
    layerbank cache gc --unfinished 30d --delete
    layerbank cache gc --unused 90d --superseded
    """
    import math

    from layerbank.cache import find_garbage, find_unfinished, remove_garbage

    from ..console import print_json, print_lines
    from ..quantities import age_text, parse_age, size

    unfinished_for_s = math.inf if unfinished is None else parse_age(unfinished, "--unfinished")
    unused_for_s = math.inf if unused is None else parse_age(unused, "--unused")
    found = find_garbage(
        cache_root, unfinished_for_s=unfinished_for_s, unused_for_s=unused_for_s, superseded=superseded
    )
    listed = {one.path for one in found}
    kept = [one for one in find_unfinished(cache_root) if one.path not in listed]
    freed_bytes = remove_garbage(found) if delete else 0
    if as_json:
        print_json(
            {
                "garbage": [
                    {"path": str(one.path), "size_bytes": one.size_bytes, "reason": one.reason} for one in found
                ],
                "kept": [asdict(one) | {"path": str(one.path)} for one in kept],
                "freed_bytes": freed_bytes,
            }
        )
        return
    print_lines(f"{size(one.size_bytes):>9}  {one.path}: {one.reason}" for one in found)
    if delete:
        print_lines([f"{size(freed_bytes)} freed"])
    elif found:
        print_lines([f"{size(sum(one.size_bytes for one in found))} can be freed with --delete"])
    else:
        print_lines(["nothing to delete"])
    for one in kept:
        done = f"{one.num_blocks_done} of {one.num_blocks} blocks are done"
        print_lines(
            [
                f"kept: {one.path} ({size(one.size_bytes)}): unfinished, {done}, last written {age_text(one.age_s)} ago",
                f"  to finish it: {_how_to_finish(one)}",
            ]
        )
    if kept:
        print_lines(["delete those too with --unfinished AGE, such as 7d"])


@cache.command()
@click.argument("stores", type=shared.FOLDER, nargs=-1, required=True)
@click.option("--delete", is_flag=True, help="Delete what is listed.")
@click.option("--remove-foreign", is_flag=True, help="Also delete files in the stores that do not belong to them.")
@shared.as_json
def rm(stores: tuple[Path, ...], delete: bool, remove_foreign: bool, as_json: bool) -> None:
    """List stores with their sizes, and delete them with --delete.

    If a process writes one of them, one has files that do not belong to it, or one is no store of layerbank, all are left alone.

    \b
    layerbank cache rm caches/demo-vit-s-focus-1a2b3c4d/photos-train-5e6f7a8b.zarr
    layerbank cache rm caches/*/*.zarr --delete
    """
    from layerbank.cache import DamagedStoreError, SpecError, delete_store, read_store_info
    from layerbank.cache.writing.locking import is_locked, locked_error

    from ..console import print_json, print_lines
    from ..quantities import few, size

    found = [read_store_info(store) for store in dict.fromkeys(stores)]
    foreign = {one.path: one.foreign_files for one in found}
    for one in found:
        if one.problem is not None and not isinstance(one.problem, DamagedStoreError):
            raise one.problem
        if is_locked(one.path):
            raise locked_error(one.path, one.owners[0] if one.owners else None)
        if delete and not remove_foreign and (files := foreign[one.path]):
            raise SpecError("cache.foreign_in_store", store=one.path, number=len(files), files=few(files))
    for one in found:
        if not as_json:
            print_lines([f"{size(one.size_bytes):>9}  {one.path}: {one.state}"])
            print_lines(f"           does not belong to it: {file}" for file in foreign[one.path])
        if delete:
            delete_store(one.path)
    total_bytes = sum(one.size_bytes for one in found)
    if as_json:
        listed = [
            {
                "path": str(one.path),
                "state": one.state,
                "size_bytes": one.size_bytes,
                "foreign_files": foreign[one.path],
            }
            for one in found
        ]
        print_json({"stores": listed, "freed_bytes": total_bytes if delete else 0})
        return
    print_lines([f"{size(total_bytes)} freed" if delete else f"{size(total_bytes)} can be freed with --delete"])


@cache.command()
@_store
@click.argument("file", type=shared.OutputFile(dash=False))
def export(store: Path, file: Path) -> None:
    """Write a store as one HDF5 file.

    \b
    layerbank cache export caches/demo-vit-s-focus-1a2b3c4d/photos-train-5e6f7a8b.zarr photos.h5
    """
    from layerbank.cache import export_hdf5

    export_hdf5(store, file)


@cache.command()
@_store
@click.argument("file", type=shared.OutputFile(dash=False))
@click.option("--tap", help="Tap whose tokens are written, for a store with several. [default: the only one]")
@shared.as_json
def to(store: Path, file: Path, tap: str | None, as_json: bool) -> None:
    """Write the tokens, ids and targets of a store as one .npz or .parquet file, for other tools.

    Images without usable tokens are left out. Use `layerbank cache export` to move a store.

    \b
    layerbank cache to caches/demo-vit-s-focus-1a2b3c4d/photos-train-5e6f7a8b.zarr photos.npz
    """
    from layerbank.cache import write_features

    from ..console import print_json, print_lines
    from ..quantities import counted

    num_images = write_features(store, file, tap=tap)
    if as_json:
        print_json({"file": str(file), "num_images": num_images})
    else:
        print_lines([f"{file}: {counted(num_images, 'image')}"])


@cache.command("from")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--model", default="", help="What computed the features. [default: what the file says, else features]")
@click.option("--name", default="", help="Name of the data. [default: that of the file]")
@click.option(
    "--second-axis",
    type=click.Choice(["levels", "tokens"]),
    help="What the second axis of an array of three axes is. [default: none; such an array is refused]",
)
@shared.cache_root
def from_(file: Path, model: str, name: str, second_axis: str | None, cache_root: Path) -> None:
    """Make a store of features that another tool has computed.

    FILE is .npz, .npy, .h5 or .parquet with an array `features`, or arrays called after level and kind (block.6/cls), and where
    there are any `ids`, and `labels` or targets/NAME; a folder of thingsvision or TRIDENT; or what `layerbank cache to` wrote. Rows
    are known by their features, not by images. Stores of one --model belong together.

    \b
    layerbank cache from features.npz --model my-encoder --cache caches
    """
    from layerbank.cache import store_features

    from ..console import print_lines

    print_lines([str(store_features(file, cache_root, model=model, name=name, second_axis=second_axis))])


@cache.command("import")
@click.argument("file", type=shared.FILE)
@shared.cache_root
def import_(file: Path, cache_root: Path) -> None:
    """Make a store from an exported file, byte for byte equal to the original.

    \b
    layerbank cache import photos.h5 --cache caches
    """
    from layerbank.cache import import_hdf5, read_hdf5_spec

    from ..console import print_lines

    store = read_hdf5_spec(file).path(cache_root)
    import_hdf5(file, store)
    print_lines([str(store)])


@cache.command()
@click.argument("stores", type=shared.FOLDER, nargs=-1)
@click.option(
    "--cache",
    "cache_root",
    type=shared.FOLDER,
    help="Folder of all stores. [default: caches; for stores that are named, the folder that they lie in]",
)
def upgrade(stores: tuple[Path, ...], cache_root: Path | None) -> None:
    """Make stores of the current format from stores of format 1, all under a folder or those that are named.

    Needs neither images nor models. Files of tokens are linked, so no space is needed; the old store is deleted when the new
    one is whole. Exit code 1 if something was damaged; such a store is kept beside the new one.

    \b
    layerbank cache upgrade --cache caches
    layerbank cache upgrade caches/photos/train/*.zarr
    """
    from layerbank.cache import CacheError, find_format1, remove_leftovers, upgrade_store

    from ..console import print_error, print_lines

    root = Path("caches") if cache_root is None else cache_root
    found = stores or find_format1(root)
    if not found:
        print_lines([f"no stores of format 1 under {root}"])
    has_failed = False
    for store in found:
        try:
            done = upgrade_store(store, cache_root if stores else root)
        except CacheError as error:
            if len(stores) == 1:
                raise
            print_error(error.where, {"expected": error.expected, "got": error.got, "do": error.todo})
            has_failed = True
            continue
        print_lines([f"{store} -> {done.store}: {done.num_rows:,} rows"])
        if done.num_rows_left_behind:
            left = f"{done.num_rows_left_behind:,} of {done.num_rows:,} rows"
            print_lines([f"  {left} have no tokens, since they were never extracted or are damaged"])
        print_lines(f"  damaged: {one}" for one in done.damages)
        if done.damages:
            print_lines(
                [
                    "  The old store was kept. Everything sound in it is in the new store. "
                    "Delete the old one when you no longer need it."
                ]
            )
            has_failed = True
    if not stores:
        remove_leftovers(root)
    if has_failed:
        click.get_current_context().exit(1)


@cache.command()
@click.argument("stores", type=shared.FOLDER, nargs=-1, required=True)
@click.option("--name", help="Name of the new store, for people. [default: that of the first store]")
@click.option(
    "--cache",
    "cache_root",
    type=shared.FOLDER,
    help="Folder of all stores. [default: the one that the first store lies in]",
)
@click.option(
    "--delete",
    is_flag=True,
    help="Delete the merged stores afterwards, unless they have something that the new one lacks.",
)
def merge(stores: tuple[Path, ...], name: str | None, cache_root: Path | None, delete: bool) -> None:
    """Join stores of one model into one store with all their rows, each image once.

    The new store has the levels and kinds that all of them have. Its rows are in an order that depends on the images alone, so
    that streamed training reads fair samples of the classes. After an interruption, the same command continues.

    \b
    layerbank cache merge caches/demo-vit-s-focus-1a2b3c4d/*.zarr --name photos
    """
    from layerbank.cache import merge_stores

    from ..console import print_lines

    done = merge_stores(stores, cache_root, name=name, delete=delete)
    repeated = f" ({done.num_repeated:,} more are equal to one of them)" if done.num_repeated else ""
    print_lines([f"{done.store}: {done.num_rows:,} rows{repeated}"])
    print_lines(f"  left out, not in all stores: {one}" for one in done.arrays_left_out)
    print_lines(f"  target left out, not alike in all stores: {one}" for one in done.targets_left_out)
    print_lines(f"  kept: {path}{f': {reason}' if delete else ''}" for path, reason in done.kept.items())
    if done.kept and not delete:
        print_lines(["  the same command with --delete deletes the merged stores"])


def _how_to_finish(store: Unfinished) -> str:
    if not store.has_hashes:
        return "layerbank extract computes the rest into another store: this one does not say which images it lacks"
    return f"the same `layerbank extract` again, or: layerbank cache repair {shlex.quote(str(store.path))}"


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
