"""Join stores of one model into one: the union of their rows, with the arrays that all of them have.

The decision taken here: rows are ordered by their content hashes, so that any stretch of the new store is a fair sample of its
classes, whatever the order of the merged ones. It is written by a `CacheWriter` like any other store: killed, the same call goes
on. Every chunk that is read is compared with its checksum first, so that damage is never copied under a new one.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..damage import chunk_damage, quick_damage, require_sound
from ..errors import FieldDifference, SpecError, SpecMismatchError
from ..format import ChunkedArray, token_array
from ..journal import BatchNotes, read_journal
from ..mapping import join_rows, part_starts
from ..model_stores import array_names
from ..reader import NUM_VIEWS, ArrayKey, StoreFiles, chunk_files
from ..rows import MISSING, RowSet
from ..spec import ArraySpec, StoreSpec
from ..targets import POINTERS, Target, list_targets, read_target, write_target
from ..token_array import TokenArray
from ..writing.locking import StoreLock
from ..writing.staging import Batch
from ..writing.writer import CacheWriter
from .upgrade import FINGERPRINT, LABEL_TARGET, delete_store, label_target

MERGED_FROM = "merged_from"  # attribute of a merged store: the fingerprints of the stores


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


class _Sources:
    """The stores to merge, and where each row of the new one comes from.

    Attributes:
        parts: the stores, in the order given.
        arrays: (tap, level, kind) -> spec of the arrays that all of them have.
        rows: the rows of the new store.
        part, row: ``[N]`` int64, the store that each row is read from and the row there.
        num_found: rows of all stores together.
    """

    def __init__(self, parts: Sequence[StoreFiles]) -> None:
        self.parts = parts
        self.arrays = _common_arrays(parts)
        found = [_usable_rows(part, list(self.arrays)) for part in parts] if self.arrays else []
        columns = [np.concatenate(column) for column in zip(*found, strict=True)] or [np.zeros(0, np.int64)] * 4
        hashes, views, skipped, row = columns
        part = np.repeat(np.arange(len(found)), [len(rows) for *_, rows in found])
        order = np.lexsort((part, skipped, views, hashes))  # of equal rows a usable one, then the first store's
        hashes, views, part, row = hashes[order], views[order], part[order], row[order]
        is_first = np.ones(len(order), dtype=np.bool_)
        is_first[1:] = (hashes[1:] != hashes[:-1]) | (views[1:] != views[:-1])
        specs = [part.header.spec for part in parts]
        view_rule = max(spec.view_rule for spec in specs)
        self.rows = RowSet(
            hashes=hashes[is_first], views=views[is_first], view_rule=view_rule, hash_rule=specs[0].hash_rule
        )
        self.part, self.row, self.num_found = part[is_first], row[is_first], len(order)

    @property
    def names(self) -> list[str]:
        """The paths of the arrays in the new store."""
        return [array.name for array in self.arrays.values()]

    @cached_property
    def positions(self) -> NDArray[np.int64]:
        """``[N]`` int64, place of each row in the arrays that `tokens` gives."""
        starts = part_starts([part.header.spec.num_rows for part in self.parts])
        positions: NDArray[np.int64] = np.array(starts)[self.part] + self.row
        return positions

    @cached_property
    def skipped(self) -> dict[int, str]:
        """Row -> reason."""
        found: dict[int, str] = {}
        for number, part in enumerate(self.parts):
            for row in np.flatnonzero((self.part == number) & np.isin(self.row, [*part.skipped])).tolist():
                found[row] = part.skipped[int(self.row[row])]
        return dict(sorted(found.items()))

    def tokens(self, key: ArrayKey) -> TokenArray:
        """An array over all stores, by position; row blocks that are not committed are holes."""
        files = []
        for part in self.parts:
            array = token_array(part.header, part.arrays[key])
            known = chunk_files(part.path, array)
            has = [part.journal.checksum(array.name, chunk, array.grid) for chunk in range(array.grid.num_chunks)]
            files.append(
                replace(known, files=tuple(file if one else None for file, one in zip(known.files, has, strict=True)))
            )
        logical_dtype = self.parts[0].header.spec.model.dtype_of(key[-1])
        return TokenArray("/".join(filter(None, key)), join_rows(files), logical_dtype)

    def column(self, values: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """The values of the rows of the new store, from those of each merged store."""
        out = np.empty((len(self.rows), *values[0].shape[1:]), dtype=values[0].dtype)
        for number, one in enumerate(values):
            out[self.part == number] = one[self.row[self.part == number]]
        return out

    def sample_ids(self) -> list[str]:
        known = [part.sample_ids for part in self.parts]
        return [known[part][row] for part, row in zip(self.part.tolist(), self.row.tolist(), strict=True)]

    def sizes(self) -> NDArray[np.int64] | None:
        """None unless all stores recorded them."""
        sizes = [part.sizes for part in self.parts]
        return None if any(one is None for one in sizes) else self.column([one for one in sizes if one is not None])

    def notes(self, batch: Batch) -> BatchNotes:
        """Reasons of skipped rows; counts of values are known by store only, and their sums stand in the first batch."""
        skipped = {row: self.skipped[row] for row in range(batch.start, batch.stop) if row in self.skipped}
        counts: dict[str, Counter[str]] = {"saturated": Counter(), "nonfinite": Counter()}
        for part in self.parts if batch.start == 0 else ():
            notes = part.journal.notes(part.header.arrays)
            for field, known in (("saturated", notes.saturated), ("nonfinite", notes.nonfinite)):
                counts[field].update({a.name: known.get(part.arrays[key], 0) for key, a in self.arrays.items()})
        positive = {field: {name: n for name, n in count.items() if n} for field, count in counts.items()}
        return BatchNotes(skipped=skipped, **positive).of_arrays(array.name for array in batch.arrays)

    def parity(self) -> dict[str, Mapping[str, Any]]:
        """What the first store that has it says of each array."""
        known: dict[str, Mapping[str, Any]] = {}
        for part in self.parts:
            for key, array in self.arrays.items():
                if parity := part.header.parity.get(part.arrays[key]):
                    known.setdefault(array.name, parity)
        return known

    def attributes(self) -> dict[str, Any]:
        """What all stores recorded alike, and their fingerprints."""
        first, *others = [part.header.attributes for part in self.parts]
        own = (NUM_VIEWS, FINGERPRINT, MERGED_FROM)
        same = {
            name: value
            for name, value in first.items()
            if name not in own and all(other.get(name) == value for other in others)
        }
        return {**same, MERGED_FROM: [part.header.spec.fingerprint for part in self.parts]}


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
    sources = _Sources(parts)
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


def _common_arrays(parts: Sequence[StoreFiles]) -> dict[ArrayKey, ArraySpec]:
    """The arrays that each store has in all of its row blocks in which it has any."""
    common: dict[ArrayKey, ArraySpec] = {}
    for number, part in enumerate(parts):
        blocks = {key: part.committed(array_names(part, [key]) or []) for key in part.arrays}
        any_block = np.logical_or.reduce([*blocks.values()]) if blocks else np.zeros(0, np.bool_)
        has = {}
        for key, committed in blocks.items():
            spec = part.header.arrays[part.arrays[key]].spec
            if (committed | ~any_block).all():
                has[key] = ArraySpec(level=spec.level, kind=spec.kind, row_shape=spec.row_shape, tap=spec.tap)
        common = has if number == 0 else {key: spec for key, spec in common.items() if has.get(key) == spec}
    return common


def _usable_rows(part: StoreFiles, keys: Sequence[ArrayKey]) -> tuple[NDArray[Any], ...]:
    """Hash, view, whether it was skipped, and number, of the rows whose tokens of all these arrays are committed."""
    num_rows, rows = part.header.spec.num_rows, part.rows
    blocks = part.committed(array_names(part, keys) or [])
    chosen = np.flatnonzero(np.repeat(blocks, part.header.block_rows)[:num_rows] & (rows.hashes != MISSING))
    views = np.zeros(num_rows, np.uint16) if rows.views is None else rows.views
    return rows.hashes[chosen], views[chosen], np.isin(chosen, [*part.skipped]), chosen


def _require_sound(part: StoreFiles, keys: Sequence[ArrayKey]) -> None:
    """Read every committed chunk of some arrays and compare it with its checksum."""
    names = [part.arrays[key] for key in keys]
    require_sound(part.path, list(quick_damage(part.path, part.header, part.journal, names)))
    for array in (token_array(part.header, name) for name in names):
        require_sound(part.path, [chunk_damage(array, chunk, one) for chunk, one in _problems(part, array)])


def _problems(part: StoreFiles, array: ChunkedArray) -> list[tuple[int, str]]:
    committed = [(c, part.journal.checksum(array.name, c, array.grid)) for c in range(array.grid.num_chunks)]
    return [(c, problem) for c, one in committed if one and (problem := array.problem(part.path, c, one))]


def _write(sources: _Sources, root: Path, name: str) -> Path:
    """Write the new store, or what it lacks yet."""
    first, rows = sources.parts[0].header, sources.rows
    spec = StoreSpec(
        model=first.spec.model,
        rows_digest=rows.digest,
        num_rows=len(rows),
        hash_rule=rows.hash_rule,
        view_rule=rows.view_rule,
        name=name,
    )
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
        for left_behind in (store / POINTERS).glob("staging.*"):  # by a merge that was killed
            shutil.rmtree(left_behind, ignore_errors=True)
        for name, target in targets.items():
            write_target(store, name, target, num_rows=num_rows)
    finally:
        lock.release()


def _join_targets(sources: _Sources) -> tuple[dict[str, Target], list[str]]:
    """The targets that all stores have alike, joined; the names of the others."""
    known = [_targets_of(part) for part in sources.parts]
    joined, left_out = {}, []
    for name in sorted({name for targets in known for name in targets}):
        found = [targets[name] for targets in known if name in targets]
        kinds = {(one.type, tuple(one.class_names), one.values.dtype, one.values.shape[1:]) for one in found}
        if len(found) < len(known) or len(kinds) > 1:
            left_out.append(name)
        else:
            joined[name] = replace(found[0], values=sources.column([one.values for one in found]))
    return joined, left_out


def _targets_of(part: StoreFiles) -> dict[str, Target]:
    if part.header.format == 1:
        return {LABEL_TARGET: label_target(part)}
    return {name: read_target(part.path, name) for name in list_targets(part.path)}


def _cache_of(part: StoreFiles) -> Path:
    """The cache folder: the stores of format 1 lie one folder deeper."""
    return Path(os.path.abspath(part.path)).parents[2 if part.header.format == 1 else 1]


def _delete_merged(
    sources: _Sources, store: Path, root: Path, targets_left_out: Sequence[str], *, delete: bool
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
                delete_store(part.path, root)
        finally:
            lock.release()
    return kept
