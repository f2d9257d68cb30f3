"""What stores there are under a folder, and what each of them holds, without reading tokens."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import CacheError
from .header import HEADER_FILE, Header, read_header
from .journal import Journal, read_journal
from .locking import LockOwner, owners_of
from .spec import ArraySpec, CacheSpec

STORE_SUFFIX = ".zarr"


@dataclass(frozen=True, kw_only=True)
class StoreInfo:
    """One store.

    Args:
        path: where it is.
        size_bytes: of all its files.
        modified: when its header was last written, seconds since the epoch.
        owners: who writes it now: nobody, one alone, or several workers.
        problem: why it cannot be read, None if it can; the fields below are then empty.
        header: identity, geometry, state.
        journal: committed blocks.
    """

    path: Path
    size_bytes: int
    modified: float
    owners: tuple[LockOwner, ...]
    problem: CacheError | None
    header: Header | None
    journal: Journal | None

    @property
    def spec(self) -> CacheSpec | None:
        return self.header.spec if self.header else None

    @property
    def state(self) -> str:
        """``complete``, ``writing`` (by somebody now, or interrupted) or ``unreadable``."""
        return self.header.state if self.header else "unreadable"

    @property
    def attributes(self) -> dict[str, Any]:
        """What the caller of the writer recorded at creation."""
        return dict(self.header.attributes) if self.header else {}

    @property
    def arrays(self) -> list[ArraySpec]:
        """Every array the store has or is to have, by level and kind."""
        return [entry.spec for entry in self.header.arrays.values()] if self.header else []

    @property
    def complete_arrays(self) -> list[ArraySpec]:
        return self.header.complete_arrays if self.header else []

    @property
    def num_blocks(self) -> int:
        return self.header.hash_grid.num_blocks if self.header else 0

    @property
    def num_blocks_done(self) -> int:
        """Blocks in which every array is committed."""
        return self.num_blocks - len(self.missing_blocks)

    @property
    def missing_blocks(self) -> list[int]:
        """Blocks in which an array is not committed."""
        if self.header is None or self.journal is None:
            return []
        journal, names = self.journal, list(self.header.arrays)
        return [b for b in range(self.num_blocks) if not all(journal.holds(b, name) for name in names)]

    @property
    def missing_rows(self) -> list[range]:
        """The rows of those blocks; neighbours are joined."""
        joined: list[range] = []
        for block in self.missing_blocks:
            assert self.header is not None, "a store without one has no blocks"
            rows = self.header.hash_grid.block(block)
            if joined and joined[-1].stop == rows.start:
                rows = range(joined.pop().start, rows.stop)
            joined.append(rows)
        return joined


def list_stores(root: str | Path) -> list[StoreInfo]:
    """Every store under a folder, sorted by path; broken ones too, with their problem. An absent folder has none."""
    return [read_store_info(path) for path in find_stores(Path(root))]


def read_store_info(path: str | Path) -> StoreInfo:
    """One store."""
    store = Path(path)
    header, journal, problem = None, None, None
    try:
        header = read_header(store)
        journal = read_journal(store)
    except CacheError as error:
        problem = error
    return StoreInfo(
        path=store,
        size_bytes=size_of(store),
        modified=_modified(store),
        owners=tuple(owners_of(store)),
        problem=problem,
        header=header,
        journal=journal,
    )


def find_stores(root: Path) -> Iterator[Path]:
    """Folders that are named like stores; not those inside a store."""
    for folder, names, _ in os.walk(root):
        names.sort()
        for name in [name for name in names if name.endswith(STORE_SUFFIX)]:
            names.remove(name)
            yield Path(folder) / name


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    if not path.is_dir():
        return path.stat().st_size if path.exists() else 0
    return measure_files(path)[0]


def measure_files(folder: Path) -> tuple[int, int]:
    """Bytes and number of all files in a folder; those that a writer renames meanwhile may be left out."""
    size_bytes = num_files = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                size_bytes += os.lstat(os.path.join(place, name)).st_size
                num_files += 1
    return size_bytes, num_files


def list_specs(root: str | Path) -> list[tuple[Path, CacheSpec]]:
    """Path and identity of every store under a folder, complete or not; those that cannot be read are left out."""
    found = []
    for path in find_stores(Path(root)):
        with suppress(CacheError):
            found.append((path, read_header(path).spec))
    return found


def _modified(store: Path) -> float:
    newest = next((path for path in (store / HEADER_FILE, store) if path.exists()), None)
    return newest.stat().st_mtime if newest else 0.0
