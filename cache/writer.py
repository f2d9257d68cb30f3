"""The writer of a store: batches in, committed blocks out.

The decision taken here: the block is the unit. Rows of a block are written aside as they come; with its last
batch the files are renamed into place and one line goes into the journal. Whatever happens in between, the
store is as it was before the block. Two sound runs over the same images leave the same bytes, however often
either was interrupted, and however many workers shared the blocks.

Knows nothing of images or models; used by one thread at a time.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .atomic_files import storage_errors
from .batch import Batch, check_content
from .errors import BatchError, ChangedDataError, IncompleteStoreError, SpecError
from .geometry import cut_batches
from .header import Header, read_header, write_header
from .journal import BatchNotes, Journal, append_entry, cut_torn_line, read_journal, rewrite_journal
from .layout import CONTENT_HASHES
from .locking import StoreLock
from .request import Request, check_request
from .resume import ANEW, clear_leftovers, create_store, header_staging, remove_store, resume_store
from .spec import ArraySpec, CacheSpec
from .staging import OpenBlock
from .worker import Worker
from .worker_lock import WorkerLock

POLL_S = 0.5  # a worker that waits for the last blocks of others looks so often whether they still live


class CacheWriter:
    """Writes the token arrays of one store; made by `CacheWriter.open`.

    A context manager. Leaving it without `complete()` keeps everything committed; the same call later goes on
    from there.
    """

    def __init__(
        self, path: Path, request: Request, header: Header, journal: Journal, lock: StoreLock | WorkerLock
    ) -> None:
        self.path = path
        self.batch_size = header.batch_size
        self.num_missing_rows = 0  # of the whole store, for any of the arrays; as of the last `open` or `claim`
        self._request = request
        self._header = header
        self._journal = journal
        self._lock = lock
        self._grid = header.hash_grid
        self._worker = lock.worker if isinstance(lock, WorkerLock) else None
        missing = self._look_for_missing()
        self._missing = missing if self._worker is None else {}  # what this writer has to write
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
        worker: Worker | None = None,
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
            worker: which of several writers of this store this one is; None has the store alone. What the blocks are that
                a worker writes, `claim` says.

        Raises:
            SpecError: arguments that contradict the spec or the store.
            SpecMismatchError: the store is one of something else.
            ChangedDataError: other labels or sample ids.
            NotAStoreError, DamagedStoreError: what is there cannot be resumed.
            StoreLockedError: another process writes it, alone or as this worker or as one of another number of workers.
            StorageFullError, NotWritableError: the disk refuses.
        """
        request = check_request(spec, arrays, labels, sample_ids, batch_size, attributes or {}, parity or {})
        if worker is not None and overwrite:
            raise SpecError(
                where="CacheWriter.open",
                expected="overwrite by a writer that has the store alone",
                got=f"overwrite by worker {worker}, which would delete what the others have written",
                todo="Delete the store first, then let the workers begin without overwrite; nothing was written.",
            )
        return cls.open_request(Path(path), request, overwrite=overwrite, worker=worker)

    @classmethod
    def open_request(
        cls, store: Path, request: Request, *, overwrite: bool = False, worker: Worker | None = None
    ) -> CacheWriter:
        """`open` for a request that was checked before: an import, which keeps the versions of the original."""
        lock = StoreLock(store) if worker is None else WorkerLock(store, worker)
        try:
            with storage_errors(store), lock.exclusive():  # the first worker makes the store, the next ones find it
                lock.acquire()
                clear_leftovers(store)
                if overwrite:
                    remove_store(store)
                if store.exists():
                    header, journal = resume_store(store, request, has_company=lock.has_company)
                else:
                    header, journal = create_store(store, request)
                if worker is not None:
                    cut_torn_line(store, worker.index)
        except BaseException:
            lock.release()
            raise
        return cls(store, request, header, journal, lock)

    def claim(self) -> list[Batch]:
        """The batches to compute next, an empty list when nothing is left for this writer: ask again when all are appended.

        A writer that has the store alone gets everything that is missing. One of several workers gets some blocks that nobody
        else has; when the rest is with others, one that helps waits until it is committed, and takes over what a worker that
        has died has left.
        """
        while self._worker is not None and not self._missing:
            with storage_errors(self.path), self._lock.exclusive():
                self._journal = read_journal(self.path)
                missing = self._look_for_missing()
                taken = self._lock.taken_by_others()
                blocks = self._worker.choose(missing.keys() - taken)
                self._lock.take(blocks)
            self._missing = {block: missing[block] for block in blocks}
            if not self._worker.helps or not missing:
                break
            if not blocks:
                time.sleep(POLL_S)
        return self.pending()

    def pending(self) -> list[Batch]:
        """The batches still to come, in order: cut at fixed row numbers, none across the border of a block.

        Of a worker, those of the blocks that it has claimed.
        """
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
        check_content(self.path, batch, tokens, content_hashes, notes, self._header.spec)
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

    def complete(self) -> bool:
        """Where everything asked for is there: sort the journal, then mark the arrays complete, last and in one step.

        Any worker may call it, and several at once: whoever comes when the last block is there does it.

        Returns:
            Whether the store is complete now. False for a worker only: blocks of others are missing.

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
        with storage_errors(self.path), self._lock.exclusive():
            if self._worker is not None:  # others have written meanwhile
                self._header, self._journal = read_header(self.path), read_journal(self.path)
                if self._look_for_missing():
                    return False
            arrays = {a.name: replace(self._header.arrays[a.name], complete=True) for a in self._request.arrays}
            header = replace(self._header, arrays={**self._header.arrays, **arrays})
            notes = self._journal.notes(array.name for array in header.complete_arrays)
            header = replace(header, notes=notes.totals())
            if header != self._header:
                rewrite_journal(self.path, self._journal)
                write_header(self.path, header, header_staging(self.path))
        self._header = header
        return True

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

    def _look_for_missing(self) -> dict[int, tuple[ArraySpec, ...]]:
        """Block -> the arrays that are asked for and that the journal does not have there."""
        wanted = {
            block: tuple(array for array in self._request.arrays if not self._journal.holds(block, array.name))
            for block in range(self._grid.num_blocks)
        }
        missing = {block: arrays for block, arrays in wanted.items() if arrays}
        self.num_missing_rows = sum(len(self._grid.block(block)) for block in missing)
        return missing

    def _commit(self, block: OpenBlock) -> None:
        entry = block.put_in_place()
        with self._lock.exclusive():  # whoever completes other arrays rewrites the journal
            append_entry(self.path, entry, 0 if self._worker is None else self._worker.index)
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
