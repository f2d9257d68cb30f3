"""Join stores of one model into one: the union of their rows, with the arrays that all of them have.

The decision taken here: rows are ordered by their content hashes, so that any stretch of the new store is a fair sample of its
classes, whatever the order of the merged ones. It is written by a `CacheWriter` like any other store: killed, the same call goes
on. Every chunk that is read is compared with its checksum first, so that damage is never copied under a new one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..damage import chunk_damage, quick_damage, require_sound, static_damage
from ..errors import FieldDifference, SpecError, SpecMismatchError
from ..format import SAMPLE_ID_BYTES, SAMPLE_ID_OFFSETS, ChunkedArray, token_array
from ..journal import read_journal
from ..reader import ArrayKey, StoreFiles, require_complete
from ..spec import StoreSpec
from ..targets import LABEL, Target, list_targets, read_target, target_staging, write_target
from ..writing.locking import StoreLock
from ..writing.writer import CacheWriter
from .format1_content import label_target
from .merge_sources import Sources
from .upgrade import delete_with_folders


@dataclass(frozen=True, kw_only=True)
class Merge:
    """The result of a merge.

    Args:
        store: the new store.
        num_rows: its rows.
        num_repeated: rows of the merged stores beyond those, since another store has the same image in the same view.
        arrays_left_out: paths of arrays that not all of the stores have.
        targets_left_out: targets that not all of the stores have, or not with the same type and class names.
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
    """Make one store of the rows of several; after an interruption the same call goes on.

    Args:
        paths: stores of one model, of either format.
        root: the cache folder of the new store; None is the one that the first store lies in.
        name: name of the new store; None is the first store's.
        delete: delete each merged store afterwards, unless it has something that the new one lacks.

    Raises:
        SpecMismatchError: stores of different models, or with hashes or views by different rules.
        SpecError: stores without a common array, or without rows.
        StoreMissingError, NotAStoreError, NewerStoreError, DamagedStoreError: a store that cannot be read or is not sound.
        StoreLockedError: another process writes the new store, or one that is to be deleted.
        StorageFullError, NotWritableError: the disk refuses; committed row blocks are kept.
    """
    unique = {os.path.abspath(path): Path(path) for path in paths}
    parts = [StoreFiles.read(path) for path in unique.values()]
    _check_same_model(parts)
    sources = Sources(parts)
    if not sources.arrays or not len(sources.rows):
        values = {"arrays": ", ".join(sources.names) or "none", "num_rows": len(sources.rows)}
        raise SpecError("cache.nothing_to_merge", store=parts[0].path, num_stores=len(parts), **values)
    for part in parts:
        _require_sound(part, list(sources.arrays))
    targets, targets_left_out = _join_targets(sources)
    root = _cache_of(parts[0]) if root is None else Path(root)
    store = _write(sources, root, name or parts[0].header.spec.name)
    _write_targets(store, targets, len(sources.rows))
    left_out = dict.fromkeys(name for part in parts for key, name in part.arrays.items() if key not in sources.arrays)
    return Merge(
        store=store,
        num_rows=len(sources.rows),
        num_repeated=sources.num_found - len(sources.rows),
        arrays_left_out=tuple(left_out),
        targets_left_out=tuple(targets_left_out),
        kept=_delete_merged(sources, store, root, targets_left_out, delete=delete),
    )


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


def _write(sources: Sources, root: Path, name: str) -> Path:
    """Write the new store, or what it lacks yet."""
    first, rows = sources.parts[0].header, sources.rows
    spec = StoreSpec.of_rows(first.spec.model, rows, name)
    writer = CacheWriter.open(
        spec.path(root),
        spec.model,
        rows,
        list(sources.arrays.values()),
        name=name,
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


def _join_targets(sources: Sources) -> tuple[dict[str, Target], list[str]]:
    """The targets that all stores have, with equal values for equal rows, joined; the names of the others."""
    known = [_targets_of(part) for part in sources.parts]
    joined, left_out = {}, []
    for name in sorted({name for targets in known for name in targets}):
        found = [targets[name] for targets in known if name in targets]
        kinds = {(one.type, tuple(one.class_names), one.values.dtype, one.values.shape[1:]) for one in found}
        if len(found) < len(known) or len(kinds) > 1:
            left_out.append(name)
        else:
            values = sources.column([one.values for one in found])
            if all(
                np.array_equal(values[at], one.values[rows], equal_nan=values.dtype.kind == "f")
                for one, (at, rows) in zip(found, sources.places(), strict=True)
            ):
                joined[name] = replace(found[0], values=values)
            else:  # an image has another value in another store
                left_out.append(name)
    return joined, left_out


def _targets_of(part: StoreFiles) -> dict[str, Target]:
    if part.header.format == 1:
        return {LABEL: label_target(part)}
    return {name: read_target(part.path, name) for name in list_targets(part.path)}


def _cache_of(part: StoreFiles) -> Path:
    """The cache folder: the stores of format 1 lie one folder deeper."""
    return Path(os.path.abspath(part.path)).parents[2 if part.header.format == 1 else 1]


def _delete_merged(
    sources: Sources, store: Path, root: Path, targets_left_out: Sequence[str], *, delete: bool
) -> dict[Path, str]:
    """Delete the merged stores, if that is wanted; returns those that are kept, and why."""
    kept = {}
    for part in sources.parts:
        if os.path.abspath(part.path) == os.path.abspath(store):
            continue
        if not delete:
            kept[part.path] = "nobody asked for its deletion"
            continue
        arrays = [name for key, name in part.arrays.items() if key not in sources.arrays]
        targets = [name for name in _targets_of(part) if name in targets_left_out]
        lock = StoreLock(part.path)
        lock.acquire()
        try:
            if arrays or targets:
                kept[part.path] = f"the new store has no {', '.join([*arrays, *targets])}"
            elif read_journal(part.path).entries != part.journal.entries:
                kept[part.path] = "it was written meanwhile"
            else:
                delete_with_folders(part.path, root)
        finally:
            lock.release()
    return kept
