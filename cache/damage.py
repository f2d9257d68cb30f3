"""Damage of a store that shows without reading its tokens: files that are missing, cut off, or of another store."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from .errors import DamagedStoreError
from .format import CHECKSUM_BYTES, ChunkedArray, block_arrays, static_array
from .header import Header
from .journal import Journal


@dataclass(frozen=True, kw_only=True)
class Damage:
    """One file that is not as it was written.

    Args:
        file: path inside the store.
        problem: a description.
        array: the array that it is a chunk of; None for other files.
        rows: the rows it holds (for `sample_ids/bytes`, bytes); None for other files.
    """

    file: str
    problem: str
    array: str | None = None
    rows: range | None = None

    @property
    def level(self) -> str | None:
        return self.array.split("/")[-2] if self.array and self.array.startswith("tokens/") else None

    @property
    def kind(self) -> str | None:
        return self.array.split("/")[-1] if self.array and self.array.startswith("tokens/") else None

    def __str__(self) -> str:
        rows = "" if self.rows is None else f" (rows {self.rows.start} to {self.rows.stop})"
        return f"{self.file}{rows}: {self.problem}"


def chunk_damage(array: ChunkedArray, chunk: int, problem: str) -> Damage:
    """The damage of a chunk file."""
    file = f"{array.name}/{array.file_name(chunk)}"
    return Damage(file=file, problem=problem, array=array.name, rows=array.grid.chunk(chunk))


def quick_damage(store: Path, header: Header, journal: Journal, names: Collection[str]) -> Iterator[Damage]:
    """Committed chunks of the named arrays that are missing or of another size: one listing per folder."""
    for array in block_arrays(header):
        if array.name in names:
            sizes = _file_sizes(store / array.name)
            for block, entry in journal.entries.items():
                if array.name not in entry.checksums:
                    continue
                for chunk in array.grid.chunks_of(block):
                    size_bytes = sizes.get(array.file_name(chunk))
                    if problem := "missing" if size_bytes is None else array.size_problem(size_bytes):
                        yield chunk_damage(array, chunk, problem)


def static_damage(store: Path, header: Header, names: Collection[str] | None = None) -> Iterator[Damage]:
    """Altered or missing files of the arrays that are written once, of all or of some; reads them."""
    for name, entry in header.static.items():
        if names is not None and name not in names:
            continue
        array = static_array(header, name)
        if problem := array.problem(store, 0, entry.crc32c):
            yield chunk_damage(array, 0, problem)


def swapped_chunks(store: Path, array: ChunkedArray, chunks: Collection[int], journal: Journal) -> Iterator[Damage]:
    """Chunk files whose own checksum is not the journal's: without reading the data, this finds files of another store."""
    for chunk in chunks:
        with open(array.file(store, chunk), "rb") as file:
            file.seek(array.chunk_data_bytes)
            stored = int.from_bytes(file.read(CHECKSUM_BYTES), "little")
        if f"{stored:08x}" != journal.checksum(array.name, chunk, array.grid):
            yield chunk_damage(array, chunk, "altered")


def require_sound(store: Path, damages: list[Damage]) -> None:
    """Raise DamagedStoreError if there is damage."""
    if damages:
        more = f" and {len(damages) - 3} more" if len(damages) > 3 else ""
        raise DamagedStoreError("cache.store_damaged", store=store, damages="; ".join(map(str, damages[:3])) + more)


def _file_sizes(folder: Path) -> Mapping[str, int]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry.stat().st_size for entry in entries}
    except OSError:
        return {}
