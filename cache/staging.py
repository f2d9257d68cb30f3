"""The block that is being written: its chunk files, aside.

Rows arrive in order and are checksummed as they arrive, so nothing is ever read back. Files stay aside, in
the journal's folder, until `put_in_place` renames them; nothing counts until the journal says so.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from .atomic_files import sync_folder, write_all
from .header import Header
from .journal import ASIDE_PREFIX, JOURNAL_FOLDER, BatchNotes, Entry, Journal
from .layout import CHECKSUM_BYTES, CONTENT_HASHES, ChunkedArray, content_hash_array, token_array
from .spec import ArraySpec


class OpenBlock:
    """The block that is being written.

    Args:
        store: the store.
        header: its header.
        journal: says whether the block's content hashes are there already.
        block: the block.
        missing: the token arrays to be written.

    Attributes:
        next_row: the row that comes next.
        stored_hashes: content hashes of the block if they are there, else None: then they are written too.
    """

    def __init__(self, store: Path, header: Header, journal: Journal, block: int, missing: Sequence[ArraySpec]) -> None:
        self.block = block
        self.next_row = block * header.block_rows
        self.stored_hashes: NDArray[np.uint64] | None = None
        self._notes = BatchNotes()
        arrays = [token_array(header, array.name) for array in missing]
        hashes = content_hash_array(header)
        if journal.holds(self.block, CONTENT_HASHES):
            file = hashes.file(store, self.block)
            self.stored_hashes = np.fromfile(file, dtype=hashes.dtype, count=len(hashes.grid.block(self.block)))
        else:
            arrays.append(hashes)
        self._files = {array.name: BlockFiles(store, array, self.block) for array in arrays}

    def write(self, values: Mapping[str, NDArray[Any]], notes: BatchNotes) -> None:
        """Append the next rows of every array that is written, ``[n, *row_shape]`` by name."""
        for name, files in self._files.items():
            files.write(values[name])
        self._notes = self._notes.merged(notes)
        self.next_row += len(values[CONTENT_HASHES])

    def put_in_place(self) -> Entry:
        """Finish every file, then rename every file; returns what the journal is to say."""
        checksums = {name: files.finish() for name, files in self._files.items()}
        for files in self._files.values():
            files.put_in_place()
        return Entry(block=self.block, checksums=checksums, notes=self._notes)

    def discard(self) -> None:
        """Remove everything that is still aside."""
        for files in self._files.values():
            files.discard()


class BlockFiles:
    """Writes the rows of one array in one block.

    Args:
        store: the store.
        array: the array.
        block: the block.
    """

    def __init__(self, store: Path, array: ChunkedArray, block: int) -> None:
        self._array = array
        self._store = store
        self._chunks = array.grid.chunks_of(block)
        self._checksums: list[str] = []  # of the chunks that are whole
        self._fd: int | None = None
        self._crc = 0
        self._bytes = 0  # data written to the open chunk

    def write(self, rows: NDArray[Any]) -> None:
        """Append rows ``[n, *row_shape]`` of the array's dtype; they may run over the end of a chunk."""
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
        """Pad the last chunk with zeros; every file is on the disk afterwards.

        Returns:
            The CRC-32C of each chunk's data, 8 hex digits.
        """
        if self._fd is not None:
            self._append(np.zeros(self._array.chunk_data_bytes - self._bytes, dtype=np.uint8))
            self._close_chunk()
        assert len(self._checksums) == len(self._chunks), "a block is finished when all its rows are there"
        return tuple(self._checksums)

    def put_in_place(self) -> None:
        """Rename every file to where the array has it."""
        for chunk in self._chunks:
            os.replace(self._staging(chunk), self._array.file(self._store, chunk))
        sync_folder(self._store / self._array.name)

    def discard(self) -> None:
        """Close and remove what is still aside."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        for chunk in self._chunks:
            self._staging(chunk).unlink(missing_ok=True)

    def _staging(self, chunk: int) -> Path:
        name = self._array.name.replace("/", "~")
        return self._store / JOURNAL_FOLDER / f"{ASIDE_PREFIX}{name}~{self._array.file_name(chunk)}"

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
