"""`layerbank cache`: delete stores, and make them of each other and of files."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import options as shared

if TYPE_CHECKING:
    from layerbank.cache import Unfinished


@click.command()
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


@click.command()
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


@click.command()
@shared.one_store
@click.argument("file", type=shared.OutputFile(dash=False))
def export(store: Path, file: Path) -> None:
    """Write a store as one HDF5 file.

    \b
    layerbank cache export caches/demo-vit-s-focus-1a2b3c4d/photos-train-5e6f7a8b.zarr photos.h5
    """
    from layerbank.cache import export_hdf5

    export_hdf5(store, file)


@click.command()
@shared.one_store
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


@click.command("from")
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


@click.command("import")
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


@click.command()
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


@click.command()
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


COMMANDS = (gc, rm, export, to, from_, import_, upgrade, merge)
