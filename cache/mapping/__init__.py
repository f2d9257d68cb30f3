"""Rows of Zarr arrays without zarr in between: chunk files mapped into memory, those of one store or of several.

`rows` has the ways to read them and the positions of rows in several stores, `chunk_files` finds the files of any Zarr array,
`memory_maps` speaks to the operating system.
"""

from .chunk_files import ChunkFiles, find_chunk_files
from .memory_maps import DONT_NEED, WILL_NEED
from .rows import (
    START_ROWS,
    ChunkRows,
    ContiguousRows,
    JoinedRows,
    Rows,
    ZarrRows,
    can_be_contiguous,
    join_rows,
    map_rows,
    open_rows,
    part_starts,
)

__all__ = [
    "ChunkFiles",
    "find_chunk_files",
    "open_rows",
    "map_rows",
    "join_rows",
    "part_starts",
    "START_ROWS",
    "Rows",
    "ContiguousRows",
    "ChunkRows",
    "JoinedRows",
    "ZarrRows",
    "can_be_contiguous",
    "WILL_NEED",
    "DONT_NEED",
]
