"""The writer of a store: batches in, committed blocks out.

The decision taken here: the block is the unit. Rows of a block are written aside as they come; with its last
batch the files are renamed into place and one line goes into the journal. Whatever happens in between, the
store is as it was before the block. Two sound runs over the same images leave the same bytes, however often
either was interrupted.

Knows nothing of images or models; used by one thread at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .aside import OpenBlock
from .durable import storage_errors
from .errors import BatchError, ChangedDataError, IncompleteStoreError
from .geometry import cut_batches
from .header import Header, write_header
from .journal import BatchNotes, Journal, append_entry, rewrite_journal
from .layout import CONTENT_HASHES, storage_dtype
from .lock import StoreLock
from .request import Request, check_request
from .resume import (
    ANEW,
    clear_leftovers,
    create_store,
    header_aside,
    remove_store,
    resume_store,
)
from .spec import ArraySpec, CacheSpec


@dataclass(frozen=True)
class Batch:
    """Rows to be computed together.

    Args:
        block: the block they lie in.
        start: first row.
        stop: one past the last row.
        arrays: what is still missing there, sorted by level and kind.
    """

    block: int
    start: int
    stop: int
    arrays: tuple[ArraySpec, ...]

    def __len__(self) -> int:
        return self.stop - self.start


class CacheWriter:
    """Writes the token arrays of one store; made by `CacheWriter.open`.

    A context manager. Leaving it without `complete()` keeps everything committed; the same call later goes on
    from there.
    """

    def __init__(self, path: Path, request: Request, header: Header, journal: Journal, lock: StoreLock) -> None:
        self.path = path
        self.batch_size = header.batch_size
        self._request = request
        self._header = header
        self._journal = journal
        self._lock = lock
        self._grid = header.hash_grid
        self._missing: dict[int, tuple[ArraySpec, ...]] = {}
        for block in range(self._grid.num_blocks):
            arrays = tuple(array for array in request.arrays if not journal.holds(block, array.name))
            if arrays:
                self._missing[block] = arrays
        self._open: OpenBlock | None = None

    @classmethod
    def open(
        cls,
        path: str | Path,
        spec: CacheSpec,
        arrays: Sequence[ArraySpec],
        *,
        labels: NDArray[Any],
        sample_ids: Sequence[str],
        batch_size: int,
        attributes: Mapping[str, Any] | None = None,
        parity: Mapping[str, Mapping[str, Any]] | None = None,
        overwrite: bool = False,
    ) -> CacheWriter:
        """Make the store, or take up the one that is there: resume what was interrupted, add what is new.

        Args:
            path: the store; `CacheSpec.store_path` says where it belongs.
            spec: what it holds.
            arrays: the arrays wanted now; others in the store are left alone.
            labels: ``[N]`` integers, or ``[N]`` or ``[N, K]`` float32 or float64.
            sample_ids: N texts that are not empty.
            batch_size: rows a batch; an existing store keeps its own, see the attribute.
            attributes: what else to record (class names, versions), as JSON; of the first call only.
            parity: array name -> how far it is from a float32 run, as JSON; kept for arrays that have none yet.
            overwrite: begin anew.

        Raises:
            SpecError: arguments that contradict the spec or the store.
            SpecMismatchError: the store is one of something else.
            ChangedDataError: other labels or sample ids.
            NotAStoreError, DamagedStoreError: what is there cannot be resumed.
            StoreLockedError: another process writes it.
            StorageFullError, NotWritableError: the disk refuses.
        """
        request = check_request(spec, arrays, labels, sample_ids, batch_size, attributes or {}, parity or {})
        return cls.open_request(Path(path), request, overwrite=overwrite)

    @classmethod
    def open_request(cls, store: Path, request: Request, *, overwrite: bool = False) -> CacheWriter:
        """`open` for a request that was checked before: an import, which keeps the versions of the original."""
        lock = StoreLock(store)
        lock.acquire()
        try:
            with storage_errors(store):
                clear_leftovers(store)
                if overwrite:
                    remove_store(store)
                take_up = resume_store if store.exists() else create_store
                header, journal = take_up(store, request)
        except BaseException:
            lock.release()
            raise
        return cls(store, request, header, journal, lock)

    def pending(self) -> list[Batch]:
        """The batches still to come, in order: cut at fixed row numbers, none across the border of a block."""
        return [
            Batch(block, rows.start, rows.stop, arrays)
            for block, arrays in self._missing.items()
            for rows in cut_batches(self._grid.block(block), self.batch_size)
            if self._open is None or self._open.block != block or rows.start >= self._open.next_row
        ]

    def append(
        self,
        batch: Batch,
        tokens: Mapping[str, NDArray[Any]],
        *,
        content_hashes: NDArray[np.uint64],
        notes: BatchNotes | None = None,
    ) -> None:
        """Take the tokens of one batch; with the last batch of a block, commit the block.

        Args:
            batch: of `pending`; blocks in any order, the batches of a block one after the other. tokens:
            array name -> ``[n, *row_shape]`` in the storage dtype (bfloat16 as uint16), for each of
            `batch.arrays`. content_hashes: ``[n]`` uint64, of the encoded images. notes: what to remember of
            these rows.

        Raises:
            BatchError: not its turn, or arrays of other names, shapes or dtypes; nothing was written.
            ChangedDataError: the images are not those the store has tokens of. StorageFullError,
            NotWritableError: the disk refuses; this block is to be sent again, the others are kept.
        """
        notes = notes or BatchNotes()
        self._check_turn(batch)
        self._check_content(batch, tokens, content_hashes, notes)
        try:
            with storage_errors(self.path):
                if self._open is None:
                    self._open = OpenBlock(self.path, self._header, self._journal, batch.block, batch.arrays)
                self._check_hashes(self._open, batch, content_hashes)
                self._open.write({**tokens, CONTENT_HASHES: content_hashes}, notes)
                if batch.stop == self._grid.block(batch.block).stop:
                    self._commit(self._open)
        except BaseException:
            self._abandon_block()
            raise

    def complete(self) -> None:
        """Everything asked for is there: sort the journal, then mark the arrays complete, last and in one step.

        Raises:
            IncompleteStoreError: batches are pending.
        """
        if self._missing:
            blocks = self._grid.num_blocks
            raise IncompleteStoreError(
                where=str(self.path),
                expected=f"all {blocks} blocks",
                got=f"{blocks - len(self._missing)} of them",
                todo="Append the batches that `pending` still lists, or run the same `layerbank extract` again.",
            )
        arrays = {a.name: replace(self._header.arrays[a.name], complete=True) for a in self._request.arrays}
        header = replace(self._header, arrays={**self._header.arrays, **arrays})
        notes = self._journal.notes(array.name for array in header.complete_arrays)
        header = replace(header, notes=notes.totals())
        with storage_errors(self.path):
            if header != self._header:
                rewrite_journal(self.path, self._journal)
                write_header(self.path, header, header_aside(self.path))
        self._header = header

    def close(self) -> None:
        """Let go of the store; a block that is not whole is dropped."""
        self._abandon_block()
        self._lock.release()

    def __enter__(self) -> CacheWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _commit(self, block: OpenBlock) -> None:
        entry = block.put_in_place()
        append_entry(self.path, entry)
        known = self._journal.entries.get(block.block)
        self._journal.entries[block.block] = entry if known is None else known.merged(entry)
        del self._missing[block.block]
        self._open = None

    def _abandon_block(self) -> None:
        if self._open is not None:
            self._open.discard()
            self._open = None

    def _check_turn(self, batch: Batch) -> None:
        if self._open is not None:
            block, start = self._open.block, self._open.next_row
        else:
            block, start = batch.block, batch.block * self._grid.block_rows
        arrays = self._missing.get(block, ())
        stop = min(start + self.batch_size, self._grid.block(block).stop)
        if not arrays or batch != Batch(block, start, stop, arrays):
            wanted = f"rows {start} to {stop} of block {block}" if arrays else "a block that is pending"
            raise BatchError(
                where=str(self.path),
                expected=f"{wanted}, with the arrays that `pending` lists",
                got=f"rows {batch.start} to {batch.stop} of block {batch.block}",
                todo="Append the batches of `pending` in their order.",
            )

    def _check_content(
        self,
        batch: Batch,
        tokens: Mapping[str, NDArray[Any]],
        content_hashes: NDArray[np.uint64],
        notes: BatchNotes,
    ) -> None:
        names = {array.name for array in batch.arrays}
        wrong: list[tuple[str, str, str]] = []
        if set(tokens) != names:
            missing, unknown = sorted(names - set(tokens)), sorted(set(tokens) - names)
            wrong.append(("the arrays", "those of the batch", f"missing {missing}, unknown {unknown}"))
        expected = {
            array.name: ((len(batch), *array.row_shape), storage_dtype(self._header.spec, array.kind))
            for array in batch.arrays
        }
        expected[CONTENT_HASHES] = ((len(batch),), np.dtype("<u8"))
        for name, values in {**tokens, CONTENT_HASHES: content_hashes}.items():
            shape, dtype = expected.get(name, (values.shape, values.dtype))
            if values.shape != shape or values.dtype != dtype:
                wrong.append((name, f"{dtype} {shape}", f"{values.dtype} {values.shape}"))
        if not all(batch.start <= row < batch.stop for row in notes.skipped):
            wrong.append(("notes.skipped", "rows of this batch", str(sorted(notes.skipped))))
        if not {*notes.saturated, *notes.nonfinite} <= names:
            wrong.append(("notes", "arrays of this batch", str(sorted({*notes.saturated, *notes.nonfinite}))))
        if wrong:
            raise BatchError(
                where=f"{self.path} rows {batch.start} to {batch.stop}",
                expected="; ".join(f"{name}: {rule}" for name, rule, _ in wrong),
                got="; ".join(f"{name}: {got}" for name, _, got in wrong),
                todo="Pass each array of the batch in the storage dtype, bfloat16 as its uint16 bits.",
            )

    def _check_hashes(self, block: OpenBlock, batch: Batch, content_hashes: NDArray[np.uint64]) -> None:
        if block.stored_hashes is None:
            return
        start = self._grid.block(batch.block).start
        stored = block.stored_hashes[batch.start - start : batch.stop - start]
        if (stored != content_hashes).any():
            first = int(np.flatnonzero(stored != content_hashes)[0])
            row = batch.start + first
            raise ChangedDataError(
                where=f"{self.path} row {row} ({self._request.sample_ids[row]})",
                expected=f"the image the store was made with (content hash {int(stored[first]):016x})",
                got=f"another one (content hash {int(content_hashes[first]):016x})",
                todo=f"The data set has changed: restore it. {ANEW}",
            )
