"""Join stores of one model into one: the union of their rows, with the arrays that all of them have.

The decision taken here: rows are ordered by their content hashes, so that any stretch of the new store is a fair sample of its
classes, whatever the order of the merged ones. It is written by a `CacheWriter` like any other store: killed, the same call goes
on. Every chunk that is read is compared with its checksum first, so that damage is never copied under a new one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ..atomic_files import storage_errors
from ..damage import chunk_damage, quick_damage, require_sound, static_damage
from ..errors import CacheError, FieldDifference, SpecError, SpecMismatchError
from ..format import SAMPLE_ID_BYTES, SAMPLE_ID_OFFSETS, ChunkedArray, token_array
from ..header import FORMAT_VERSION, read_header
from ..header_values import COMPLETE
from ..reader import ArrayKey, StoreFiles, require_complete
from ..spec import StoreSpec
from ..targets import Target, target_staging, write_target
from ..writing.locking import StoreLock
from ..writing.writer import CacheWriter
from .catalog import read_store_info
from .merge_sources import MERGED_FROM, Sources, names_of
from .superseded import arrays_left_out, has_values, left_out, targets_left_out, targets_of
from .upgrade import cache_of, delete_with_folders, remove_leftovers_of
from .verify import verify_store


@dataclass(frozen=True, kw_only=True)
class Merge:
    """The result of a merge.

    Args:
        store: the new store.
        num_rows: its rows.
        num_repeated: rows of the merged stores beyond those, since another store has the same image in the same view; 0 where an
            earlier call was interrupted while it deleted them.
        arrays_left_out: paths of arrays that the new store lacks, since not all of the stores have them.
        targets_left_out: targets that not all of the stores have, or not with the same type, class names and values.
        kept: merged store -> why it was not deleted.
    """

    store: Path
    num_rows: int
    num_repeated: int
    arrays_left_out: tuple[str, ...]
    targets_left_out: tuple[str, ...]
    kept: Mapping[Path, str]


def merge_stores(
    paths: Sequence[str | Path], root: str | Path | None = None, *, name: str | None = None, delete: bool = False
) -> Merge:
    """Make one store of the rows of several; after an interruption the same call goes on, also with the deletion.

    Args:
        paths: stores of one model, of either format.
        root: the cache folder of the new store; None is the one that the first store lies in.
        name: name of the new store; None is the first store's.
        delete: read the new store back, then delete each merged store, unless it has something that the new one lacks.

    Raises:
        SpecMismatchError: stores of different models, or with hashes or views by different rules.
        SpecError: stores without a common array, or without rows.
        StoreMissingError, NotAStoreError, NewerStoreError, DamagedStoreError: a store that cannot be read or is not sound.
        StoreLockedError: another process writes the new store, or one that is to be deleted.
        StorageFullError, NotWritableError: the disk refuses; committed row blocks are kept.
    """
    given = list({os.path.realpath(path): Path(path) for path in paths}.values())
    gone = [path for path in given if not path.exists()]
    if delete and gone and (store := _find_merged(given, root)):
        for path in gone:
            remove_leftovers_of(path, store.parent.parent)
        return _finish(store, [StoreFiles.read(path) for path in given if path not in gone], delete=True)
    parts = [StoreFiles.read(path) for path in given]
    _check_same_model(parts)
    sources = Sources(parts)
    if not sources.arrays or not len(sources.rows):
        values = {"arrays": ", ".join(sources.names) or "none", "num_rows": len(sources.rows)}
        raise SpecError("cache.nothing_to_merge", store=parts[0].path, num_stores=len(parts), **values)
    for part in parts:
        _require_sound(part, list(sources.arrays))
    targets = _join_targets(sources)
    root = cache_of(parts[0].path, parts[0].header.format) if root is None else Path(root)
    store = _write(sources, root, name)
    _write_targets(store, targets, len(sources.rows))
    return replace(_finish(store, parts, delete=delete), num_repeated=sources.num_found - len(sources.rows))


def _find_merged(given: Sequence[Path], root: str | Path | None) -> Path | None:
    """The complete store that an earlier call made from these; None if there is none."""
    roots = [cache_of(given[0], version) for version in (FORMAT_VERSION, 1)] if root is None else [Path(root)]
    for store in sorted(path for one in roots for path in one.glob("*/*.zarr")):
        with suppress(CacheError):
            header = read_header(store)
            if header.state == COMPLETE and header.attributes.get(MERGED_FROM) == names_of(given):
                return store
    return None


def _check_same_model(parts: Sequence[StoreFiles]) -> None:
    first = parts[0].header.spec
    view_rule = first.view_rule
    for part in parts[1:]:
        spec = part.header.spec
        differences = first.model.difference(spec.model)
        if spec.hash_rule != first.hash_rule:
            differences.append(FieldDifference("hash_rule", first.hash_rule, spec.hash_rule))
        if view_rule and spec.view_rule and spec.view_rule != view_rule:
            differences.append(FieldDifference("view_rule", view_rule, spec.view_rule))
        view_rule = view_rule or spec.view_rule
        if differences:
            raise SpecMismatchError(
                "cache.other_model_to_merge", differences=differences, store=part.path, first=parts[0].path
            )


def _require_sound(part: StoreFiles, keys: Sequence[ArrayKey]) -> None:
    """Read the ids, and every committed chunk of some arrays, and compare them with their checksums."""
    require_sound(part.path, list(static_damage(part.path, part.header, names=(SAMPLE_ID_BYTES, SAMPLE_ID_OFFSETS))))
    names = [part.arrays[key] for key in keys]
    require_sound(part.path, list(quick_damage(part.path, part.header, part.journal, names)))
    require_complete(part, [name for name in names if part.header.arrays[name].complete])
    for array in (token_array(part.header, name) for name in names):
        require_sound(part.path, [chunk_damage(array, chunk, one) for chunk, one in _problems(part, array)])


def _problems(part: StoreFiles, array: ChunkedArray) -> list[tuple[int, str]]:
    blocks = [block for block in part.journal.entries if part.journal.holds(block, array.name)]
    committed = [(c, part.journal.checksum(array.name, c, array.grid)) for b in blocks for c in array.grid.chunks_of(b)]
    return [(c, problem) for c, one in committed if (problem := array.problem(part.path, c, one))]


def _write(sources: Sources, root: Path, name: str | None) -> Path:
    """Write the new store, or what it lacks yet."""
    first, rows = sources.parts[0].header, sources.rows
    wanted = StoreSpec.of_rows(first.spec.model, rows, name or first.spec.name)
    # a store of these rows may be there; one without tokens of a row that has some cannot be completed
    spec = next(
        spec
        for spec in wanted.numbered()
        if not (path := spec.path(root)).exists() or StoreFiles.read(path).skipped.keys() <= sources.skipped.keys()
    )
    writer = CacheWriter.open(
        spec.path(root),
        spec.model,
        rows,
        list(sources.arrays.values()),
        name=spec.name,
        sample_ids=sources.sample_ids(),
        batch_size=first.batch_size,
        sizes=sources.sizes(),
        attributes=sources.attributes(),
        parity=sources.parity(),
    )
    with writer:
        arrays = {array.name: sources.tokens(key) for key, array in sources.arrays.items()}
        for batch in writer.pending():
            tokens = {}
            for array in batch.arrays:
                source = arrays[array.name]
                tokens[array.name] = source.take(sources.positions[batch.start : batch.stop])
                source.release(0, source.shape[0])  # rows come from all over the stores
            hashes = rows.hashes[batch.start : batch.stop]
            writer.append(batch, tokens, content_hashes=hashes, notes=sources.notes(batch))
        writer.complete()
    return writer.path


def _write_targets(store: Path, targets: Mapping[str, Target], num_rows: int) -> None:
    lock = StoreLock(store)
    lock.acquire()
    try:
        for left_behind in target_staging(store):  # by a merge that was killed
            shutil.rmtree(left_behind, ignore_errors=True)
        for name, target in targets.items():
            write_target(store, name, target, num_rows=num_rows)
    finally:
        lock.release()


def _join_targets(sources: Sources) -> dict[str, Target]:
    """The targets that all stores have, with equal values for equal rows, joined."""
    known = [targets_of(part) for part in sources.parts]
    joined = {}
    for name in sorted(set.intersection(*map(set, known))):
        found = [targets[name] for targets in known]
        if len({(one.values.dtype, one.values.shape[1:]) for one in found}) == 1:
            target = replace(found[0], values=sources.column([one.values for one in found]))
            if all(has_values(target, sources.rows, *one) for one in zip(found, sources.parts, strict=True)):
                joined[name] = target
    return joined


def _finish(store: Path, parts: Sequence[StoreFiles], *, delete: bool) -> Merge:
    """Delete the merged stores, if that is wanted; the result."""
    new = StoreFiles.read(store)
    _check_same_model([new, *parts])
    merged = [part for part in parts if not os.path.samefile(part.path, store)]
    if delete and merged:
        require_sound(store, verify_store(store))  # an earlier call may have written it
    arrays = dict.fromkeys(name for part in parts for name in arrays_left_out(part, new))
    targets = sorted({name for part in parts for name in targets_left_out(part, new)})
    reasons = {part.path: _delete(part, new) if delete else "nobody asked for its deletion" for part in merged}
    return Merge(
        store=store,
        num_rows=new.header.spec.num_rows,
        num_repeated=0,
        arrays_left_out=tuple(arrays),
        targets_left_out=tuple(targets),
        kept={path: reason for path, reason in reasons.items() if reason},
    )


def _delete(part: StoreFiles, new: StoreFiles) -> str:
    """Delete a merged store, unless it has something that the new one lacks; returns why it is kept, or an empty text."""
    lock = StoreLock(part.path)
    lock.acquire()
    try:
        if StoreFiles.read(part.path).journal.entries != part.journal.entries:
            return "it was written meanwhile"
        if lacking := left_out(part, new):
            return f"the new store has no {', '.join(lacking)}"
        if foreign := read_store_info(part.path).foreign_files:
            return "it has files that do not belong to it: " + ", ".join(foreign[:3])
        with storage_errors(part.path):
            delete_with_folders(part.path, new.path.parent.parent)
    finally:
        lock.release()
    return ""
