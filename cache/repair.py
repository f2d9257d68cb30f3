"""Forget what is damaged, so that the same extraction computes those rows again and no others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .atomic_files import storage_errors
from .header import read_header
from .journal import read_journal
from .layout import block_arrays
from .locking import StoreLock
from .resume import forget
from .verify import FOREIGN, Damage, verify_store


@dataclass(frozen=True, kw_only=True)
class Repair:
    """What a repair did.

    Args:
        dropped: chunks that the journal no longer has; the same extraction computes them again.
        restored_later: labels, sample ids and metadata, which the same extraction puts back.
        foreign: files that do not belong.
        num_rows: rows that have to be computed again, for at least one array.
    """

    dropped: tuple[Damage, ...]
    restored_later: tuple[Damage, ...]
    foreign: tuple[Damage, ...]
    num_rows: int


def repair_store(path: str | Path, damages: list[Damage] | None = None, *, remove_foreign: bool = False) -> Repair:
    """Drop damaged chunks from the journal and from the disk. A writer opened afterwards lists their rows as pending.

    Args:
        path: the store.
        damages: of `verify_store`; None verifies first.
        remove_foreign: also delete files that do not belong to the store.

    Raises:
        StoreMissingError, NotAStoreError: there is no store.
        DamagedStoreError: its header is damaged; such a store has to be made anew.
        StoreLockedError: somebody writes it.
        StorageFullError, NotWritableError: the disk refuses.
    """
    store = Path(path)
    header = read_header(store)
    lock = StoreLock(store)
    lock.acquire()
    try:
        with storage_errors(store):
            damages = verify_store(store) if damages is None else damages
            arrays = {array.name: array for array in block_arrays(header)}
            dropped = [damage for damage in damages if damage.array in arrays]
            foreign = [damage for damage in damages if damage.problem == FOREIGN]
            by_block: dict[int, set[str]] = {}
            for damage in dropped:
                assert damage.array is not None, "chosen above"
                assert damage.rows is not None, "a chunk has rows"
                by_block.setdefault(damage.rows.start // header.block_rows, set()).add(damage.array)
            forget(store, header, read_journal(store), by_block)
            for damage in [*dropped, *(foreign if remove_foreign else [])]:
                (store / damage.file).unlink(missing_ok=True)
    finally:
        lock.release()
    return Repair(
        dropped=tuple(dropped),
        restored_later=tuple(d for d in damages if d not in dropped and d not in foreign),
        foreign=tuple(foreign),
        num_rows=sum(len(header.hash_grid.block(block)) for block in by_block),
    )
