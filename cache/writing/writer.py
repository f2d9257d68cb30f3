"""The writer of a store: batches in, committed row blocks out.

The decision taken here: the row block is the unit. Rows of a row block are written to staging files as they come; with
its last batch the files are renamed into place and one line goes into the journal. Whatever happens in between, the
store is as it was before the row block. Two sound runs over the same images leave the same bytes, however often either
was interrupted, and however many workers shared the row blocks.

Independent of images and models; used by one thread at a time.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..atomic_files import storage_errors
from ..errors import BatchError, ChangedDataError, IncompleteStoreError
from ..geometry import cut_batches
from ..header import Header, read_header, write_header
from ..journal import BatchNotes, Journal, append_entry, cut_torn_line, read_journal, rewrite_journal
from ..rows import RowSet
from ..spec import ArraySpec, ModelSpec
from .checked_chunks import forget_checked
from .locking import StoreLock
from .resume import StoreRequest, check_request, create_store, resume_store, temporary_folders
from .staging import Batch, OpenBlock, check_batch
from .workers import Worker, WorkerLock

POLL_S = 0.5  # a worker that waits for the last row blocks of others checks so often whether they still live


class CacheWriter:
    """Writes the token arrays of one store; made by `CacheWriter.open`.

    A context manager. Leaving it without `complete()` keeps everything committed; the same call later goes on
    from there.
    """

    def __init__(
        self, path: Path, request: StoreRequest, header: Header, journal: Journal, lock: StoreLock | WorkerLock
    ) -> None:
        self.path = path
        self.batch_size = header.batch_size
        self.num_missing_rows = 0  # of the whole store, for any of the arrays; as of the last `open` or `claim`
        self._request = request
        self._header = header
        self._journal = journal
        self._lock = lock
        self._grid = header.block_grid
        self._worker_lock = lock if isinstance(lock, WorkerLock) else None
        missing = self._find_missing()
        self._missing = missing if self._worker_lock is None else {}  # what this writer has to write
        self._open: OpenBlock | None = None

    @classmethod
    def open(
        cls,
        path: str | Path,
        model: ModelSpec,
        rows: RowSet,
        arrays: Sequence[ArraySpec],
        *,
        name: str,
        sample_ids: Sequence[str],
        batch_size: int,
        sizes: NDArray[np.int64] | None = None,
        attributes: Mapping[str, Any] | None = None,
        parity: Mapping[str, Mapping[str, Any]] | None = None,
        worker: Worker | None = None,
    ) -> CacheWriter:
        """Create the store, or resume an existing one and add new arrays to it.

        Args:
            path: the store; `StoreSpec.path` gives its place.
            model: what computes the tokens.
            rows: image and view of each of the N rows.
            arrays: the requested arrays; others in the store are left alone.
            name: name of the data, for people.
            sample_ids: N texts that are not empty: the names of the images, for people.
            batch_size: rows per batch; an existing store keeps its own, see the attribute.
            sizes: ``[N]`` bytes of the encoded images, for `--trust-files`.
            attributes: what else to record, as JSON; kept from the first call.
            parity: path of an array -> how far it is from a float32 run, as JSON; kept for arrays that have none yet.
            worker: the number of this writer among several of this store, see `claim`; None for its only writer.

        Raises:
            SpecError: arguments that contradict each other or the store.
            SpecMismatchError: the store has another identity.
            NotAStoreError, NewerStoreError, OldFormatError, DamagedStoreError: what lies at this path cannot be resumed.
            StoreLockedError: another process writes it: a single writer, this worker, or one of another number of workers.
            StorageFullError, NotWritableError: the disk refuses.
        """
        request = check_request(
            model,
            rows,
            arrays,
            name=name,
            sample_ids=sample_ids,
            sizes=sizes,
            batch_size=batch_size,
            attributes=attributes,
            parity=parity,
        )
        return cls.open_request(Path(path), request, worker=worker)

    @classmethod
    def open_request(cls, store: Path, request: StoreRequest, *, worker: Worker | None = None) -> CacheWriter:
        """Like `open`, with the arguments as `check_request` returns them."""
        lock = StoreLock(store) if worker is None else WorkerLock(store, worker)
        try:
            with storage_errors(store), lock.exclusive():  # the first worker makes the store, the next ones find it
                lock.acquire()
                has_others = isinstance(lock, WorkerLock) and bool(lock.others())
                for left_behind in temporary_folders(store):
                    shutil.rmtree(left_behind, ignore_errors=True)
                if store.exists():
                    header, journal = resume_store(store, request, has_others=has_others)
                else:
                    header, journal = create_store(store, request)
                if worker is not None:
                    cut_torn_line(store, worker.index)
        except BaseException:
            lock.release()
            raise
        return cls(store, request, header, journal, lock)

    def claim(self) -> list[Batch]:
        """The batches to compute next; when all are appended, ask again: an empty list means that nothing is left for this writer.

        The only writer of a store gets everything that is missing. One of several workers gets row blocks that no other worker
        has claimed. When the others have claimed the rest, a worker that helps waits until it is committed, and takes over the
        row blocks of a worker that has died.
        """
        while self._worker_lock is not None and not self._missing:
            with storage_errors(self.path), self._worker_lock.exclusive():
                self._journal = read_journal(self.path)
                missing = self._find_missing()
                worker = self._worker_lock.worker
                blocks = worker.choose(missing.keys() - self._worker_lock.claimed_by_others())
                self._worker_lock.claim(blocks)
            self._missing = {block: missing[block] for block in blocks}
            if not worker.helps or not missing:
                break
            if not blocks:
                time.sleep(POLL_S)
        return self.pending()

    def pending(self) -> list[Batch]:
        """The batches still to come, in order: cut at fixed row numbers, none across the border of a row block.

        A worker's are those of the row blocks that it has claimed.
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
        """Write the tokens of one batch; with the last batch of a row block, commit the row block.

        Args:
            batch: one of `pending`; row blocks in any order, the batches of a row block one after the other.
            tokens: array name -> ``[n, *row_shape]`` in the storage dtype (bfloat16 as uint16), for each of `batch.arrays`.
            content_hashes: ``[n]`` uint64, hashes of the images that were read.
            notes: notes on these rows.

        Raises:
            BatchError: a batch out of order, or arrays with other names, shapes or dtypes; nothing was written.
            ChangedDataError: an image is not the one that the row stands for: the data have changed while they were read.
            StorageFullError, NotWritableError: the disk refuses; append this row block again, the others are kept.
        """
        notes = notes or BatchNotes()
        self._check_turn(batch)
        check_batch(self.path, batch, tokens, content_hashes, notes, self._header.spec.model)
        self._check_hashes(batch, content_hashes)
        try:
            with storage_errors(self.path):
                if self._open is None:
                    self._open = OpenBlock(self.path, self._header, batch.block, batch.arrays)
                self._open.write(tokens, len(batch), notes)
                if batch.stop == self._grid.block(batch.block).stop:
                    self._commit(self._open)
        except BaseException:
            self._abandon_block()
            raise

    def complete(self) -> bool:
        """If everything requested is there: sort the journal, then mark the arrays complete, last and in one step.

        Any worker may call it, and several at once: one of those that find the last row block committed does it.

        Returns:
            Whether the store is complete now. False only for a worker, while row blocks of others are missing.

        Raises:
            IncompleteStoreError: batches are pending.
        """
        if self._missing:
            num_blocks = self._grid.num_blocks
            num_done = num_blocks - len(self._missing)
            raise IncompleteStoreError(
                "cache.batches_pending", store=self.path, num_blocks=num_blocks, num_done=num_done
            )
        with storage_errors(self.path), self._lock.exclusive():
            if self._worker_lock is not None:  # others have written meanwhile
                self._header, self._journal = read_header(self.path), read_journal(self.path)
                if self._find_missing():
                    return False
            arrays = {a.name: replace(self._header.arrays[a.name], complete=True) for a in self._request.arrays}
            header = replace(self._header, arrays={**self._header.arrays, **arrays})
            notes = self._journal.notes(array.name for array in header.complete_arrays)
            header = replace(header, notes=notes.totals())
            forget_checked(self.path)
            if header != self._header:
                rewrite_journal(self.path, self._journal)
                write_header(self.path, header)
        self._header = header
        return True

    def close(self) -> None:
        """Release the store; a row block that is not whole is dropped."""
        self._abandon_block()
        self._lock.release()

    def __enter__(self) -> CacheWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _find_missing(self) -> dict[int, tuple[ArraySpec, ...]]:
        """Row block -> the requested arrays that are not committed there."""
        wanted = {
            block: tuple(array for array in self._request.arrays if not self._journal.holds(block, array.name))
            for block in range(self._grid.num_blocks)
        }
        missing = {block: arrays for block, arrays in wanted.items() if arrays}
        self.num_missing_rows = sum(len(self._grid.block(block)) for block in missing)
        return missing

    def _commit(self, block: OpenBlock) -> None:
        entry = block.put_in_place()
        with self._lock.exclusive():  # a worker that completes other arrays rewrites the journal
            append_entry(self.path, entry, self._worker_lock.worker.index if self._worker_lock else 0)
        self._journal.add(entry)
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
        given = {"store": self.path, "start": batch.start, "stop": batch.stop, "block": batch.block}
        arrays = self._missing.get(block)
        if not arrays:
            raise BatchError("cache.batch_not_pending", **given)
        stop = min(start + self.batch_size, self._grid.block(block).stop)
        if batch != Batch(block, start, stop, arrays):
            expected = {"expected_start": start, "expected_stop": stop, "expected_block": block}
            raise BatchError("cache.batch_out_of_order", **given, **expected)

    def _check_hashes(self, batch: Batch, content_hashes: NDArray[np.uint64]) -> None:
        expected = self._request.rows.hashes[batch.start : batch.stop]
        if (expected != content_hashes).any():
            first = int(np.flatnonzero(expected != content_hashes)[0])
            row = batch.start + first
            raise ChangedDataError(
                "cache.changed_image",
                store=self.path,
                row=row,
                sample_id=self._request.sample_ids[row],
                expected=f"{int(expected[first]):016x}",
                got=f"{int(content_hashes[first]):016x}",
            )
