"""The exceptions of the cache.

CacheError
|-- SpecError            (ValueError)         a CacheSpec, an ArraySpec or an argument makes no sense
|-- StoreMissingError    (FileNotFoundError)  there is no store at this path
|-- NotAStoreError       (ValueError)         something else lies there, or another format version
|-- SpecMismatchError    (ValueError)         a store of something else; `.differences` says field by field
|-- ChangedDataError     (ValueError)         the images are no longer those the store was made from
|-- IncompleteStoreError (RuntimeError)       rows are missing
|-- DamagedStoreError    (RuntimeError)       files are missing, cut off or altered
|-- MissingArrayError    (LookupError)        the store has no such level or kind
|-- BatchError           (ValueError)         a batch of the wrong shape, dtype or position
|-- StoreLockedError     (RuntimeError)       another process writes this store
|-- StorageFullError     (OSError)            disk or quota full
`-- NotWritableError     (OSError)            no permission to write
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from layerbank.errors import LayerbankError


@dataclass(frozen=True)
class FieldDifference:
    """One field in which two specs differ."""

    field: str
    expected: object
    got: object


class CacheError(LayerbankError):
    """The cache cannot go on."""


class SpecError(CacheError, ValueError):
    """A spec or an argument makes no sense; nothing was touched."""


class StoreMissingError(CacheError, FileNotFoundError):
    """There is no store at this path."""


class NotAStoreError(CacheError, ValueError):
    """What lies at this path is not a token store that this version reads."""


class SpecMismatchError(CacheError, ValueError):
    """The store holds tokens of something else.

    Args:
        where: the store.
        differences: the identity fields that differ, expected and got.
        todo: what to do next.
    """

    def __init__(self, *, where: str, differences: Sequence[FieldDifference], todo: str) -> None:
        super().__init__(
            where=where,
            expected="; ".join(f"{d.field} = {d.expected!r}" for d in differences),
            got="; ".join(f"{d.field} = {d.got!r}" for d in differences),
            todo=todo,
        )
        self.differences = tuple(differences)


class ChangedDataError(CacheError, ValueError):
    """The images are no longer those the store was made from."""


class IncompleteStoreError(CacheError, RuntimeError):
    """Not every row is there yet."""


class DamagedStoreError(CacheError, RuntimeError):
    """Files of the store are missing, cut off or altered."""


class MissingArrayError(CacheError, LookupError):
    """The store has no complete array of this level and kind."""


class BatchError(CacheError, ValueError):
    """A batch that the writer cannot take; nothing of it was written."""


class StoreLockedError(CacheError, RuntimeError):
    """Another process writes this store."""


class StorageFullError(CacheError, OSError):
    """Disk or quota full; every committed block is kept."""


class NotWritableError(CacheError, OSError):
    """The folder is read-only, or not ours to write."""
