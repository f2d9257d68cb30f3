"""The row block that is being written: the batches it is made of, and its chunk files under staging names.

Rows arrive in order and are checksummed as they arrive, so nothing is ever read back. Staging files lie in the
journal's folder until `put_in_place` renames them; nothing counts until the journal has it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from ..atomic_files import sync_folder, write_all
from ..errors import BatchError
from ..format import CHECKSUM_BYTES, CONTENT_HASHES, ChunkedArray, storage_dtype, token_array
from ..header import Header
from ..journal import JOURNAL_FOLDER, STAGING_PREFIX, BatchNotes, Entry
from ..spec import ArraySpec, ModelSpec


@dataclass(frozen=True)
class Batch:
    """Rows to be computed together.

    Args:
        block: the row block that they lie in.
        start: first row.
        stop: one past the last row.
        arrays: the arrays that are missing there, sorted by level and kind.
    """

    block: int
    start: int
    stop: int
    arrays: tuple[ArraySpec, ...]

    def __len__(self) -> int:
        return self.stop - self.start


def check_batch(
    store: Path,
    batch: Batch,
    tokens: Mapping[str, NDArray[Any]],
    content_hashes: NDArray[np.uint64],
    notes: BatchNotes,
    model: ModelSpec,
) -> None:
    """Compare what arrived for a batch with what the batch lists.

    Raises:
        BatchError: lists all arrays with other names, shapes or dtypes, and notes on other rows or arrays.
    """
    expected = {a.name: f"{storage_dtype(model, a.kind)} {(len(batch), *a.row_shape)}" for a in batch.arrays}
    expected[CONTENT_HASHES] = f"uint64 {(len(batch),)}"
    got = {
        name: f"{values.dtype} {values.shape}" for name, values in {**tokens, CONTENT_HASHES: content_hashes}.items()
    }
    wrong = [
        (name, expected.get(name, "no such array"), got.get(name, "nothing"))
        for name in {**expected, **got}
        if expected.get(name) != got.get(name)
    ]
    if not all(batch.start <= row < batch.stop for row in notes.skipped):
        wrong.append(("notes.skipped", "rows of the batch", str(sorted(notes.skipped))))
    if unknown := {*notes.saturated, *notes.nonfinite} - {array.name for array in batch.arrays}:
        wrong.append(("notes", "arrays of the batch", str(sorted(unknown))))
    if wrong:
        raise BatchError(
            "cache.invalid_batch",
            store=store,
            start=batch.start,
            stop=batch.stop,
            expected="; ".join(f"{name}: {rule}" for name, rule, _ in wrong),
            got="; ".join(f"{name}: {got}" for name, _, got in wrong),
        )


class OpenBlock:
    """The row block that is being written: its missing token arrays.

    Attributes:
        next_row: the row that comes next.
    """

    def __init__(self, store: Path, header: Header, block: int, missing: Sequence[ArraySpec]) -> None:
        self.block = block
        self.next_row = block * header.block_rows
        self._notes = BatchNotes()
        self._files = {array.name: BlockFiles(store, token_array(header, array.name), block) for array in missing}

    def write(self, tokens: Mapping[str, NDArray[Any]], num_rows: int, notes: BatchNotes) -> None:
        """Append the next rows of every array that is written: name -> ``[num_rows, *row_shape]``."""
        for name, files in self._files.items():
            files.write(tokens[name])
        self._notes = self._notes.merged(notes)
        self.next_row += num_rows

    def put_in_place(self) -> Entry:
        """Finish every file, then rename every file; return the entry for the journal."""
        checksums = {name: files.finish() for name, files in self._files.items()}
        for files in self._files.values():
            files.put_in_place()
        return Entry(block=self.block, checksums=checksums, notes=self._notes)

    def discard(self) -> None:
        for files in self._files.values():
            files.discard()


class BlockFiles:
    """The chunk files of one array in one row block."""

    def __init__(self, store: Path, array: ChunkedArray, block: int) -> None:
        self._array = array
        self._store = store
        self._chunks = array.grid.chunks_of(block)
        self._checksums: list[str] = []  # of finished chunks
        self._fd: int | None = None
        self._crc = 0
        self._bytes = 0  # data written to the open chunk

    def write(self, rows: NDArray[Any]) -> None:
        """Append rows ``[n, *row_shape]`` of the array's dtype; they may cross the end of a chunk."""
        data = np.ascontiguousarray(rows, dtype=self._array.dtype).reshape(-1).view(np.uint8)
        while len(data):
            if self._fd is None:
                self._open_chunk()
            piece = data[: self._array.chunk_data_bytes - self._bytes]
            self._append(piece)
            data = data[len(piece) :]
            if self._bytes == self._array.chunk_data_bytes:
                self._close_chunk()

    def finish(self) -> tuple[str, ...]:
        """Pad the last chunk with zeros; every file is fsynced afterwards.

        Returns:
            The CRC-32C of each chunk's data, 8 hex digits.
        """
        if self._fd is not None:
            self._append(np.zeros(self._array.chunk_data_bytes - self._bytes, dtype=np.uint8))
            self._close_chunk()
        assert len(self._checksums) == len(self._chunks), "a block is finished when all its rows are there"
        return tuple(self._checksums)

    def put_in_place(self) -> None:
        for chunk in self._chunks:
            os.replace(self._staging(chunk), self._array.file(self._store, chunk))
        sync_folder(self._store / self._array.name)

    def discard(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        for chunk in self._chunks:
            self._staging(chunk).unlink(missing_ok=True)

    def _staging(self, chunk: int) -> Path:
        name = self._array.name.replace("/", "~")
        return self._store / JOURNAL_FOLDER / f"{STAGING_PREFIX}{name}~{self._array.file_name(chunk)}"

    def _open_chunk(self) -> None:
        chunk = self._chunks[len(self._checksums)]
        self._fd = os.open(self._staging(chunk), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        self._crc = self._bytes = 0

    def _append(self, data: NDArray[np.uint8]) -> None:
        assert self._fd is not None
        write_all(self._fd, data.data)
        self._crc = google_crc32c.extend(self._crc, data)
        self._bytes += len(data)

    def _close_chunk(self) -> None:
        assert self._fd is not None
        write_all(self._fd, self._crc.to_bytes(CHECKSUM_BYTES, "little"))
        os.fsync(self._fd)
        os.close(self._fd)
        self._fd = None
        self._checksums.append(f"{self._crc:08x}")
