"""The exceptions of the store; their messages are in messages.toml.

CacheError
|-- SpecError            (ValueError)         a spec of a model, store or array, or an argument, is invalid
|-- StoreMissingError    (FileNotFoundError)  there is no store at this path
|-- NotAStoreError       (ValueError)         something else lies there
|-- NewerStoreError      (ValueError)         a newer layerbank wrote the store; it is left as it is
|-- OldFormatError       (ValueError)         the store has an older format, which is read and not written
|-- SpecMismatchError    (ValueError)         the store has another identity; `differences` lists the fields
|-- ChangedDataError     (ValueError)         the images are no longer those the store was made from
|-- IncompleteStoreError (RuntimeError)       rows are missing
|-- DamagedStoreError    (RuntimeError)       files are missing, cut off or altered
|-- MissingArrayError    (LookupError)        the store has no such level or kind
|-- MissingRowsError     (LookupError)        no store of the model holds the tokens of some images
|-- MissingTargetError   (LookupError)        the store has no target of this name
|-- BatchError           (ValueError)         a batch of the wrong shape, dtype or position
|-- StoreLockedError     (RuntimeError)       another process writes this store
|-- StorageFullError     (OSError)            disk or quota full; every committed block is kept
`-- NotWritableError     (OSError)            no permission to write
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from layerbank.errors import LayerbankError


@dataclass(frozen=True)
class FieldDifference:
    """One identity field in which two specs differ."""

    field: str
    expected: object
    got: object

    def __str__(self) -> str:
        return f"{self.field} = {self.got!r} instead of {self.expected!r}"


class CacheError(LayerbankError): ...


class SpecError(CacheError, ValueError): ...


class StoreMissingError(CacheError, FileNotFoundError): ...


class NotAStoreError(CacheError, ValueError): ...


class NewerStoreError(CacheError, ValueError): ...


class OldFormatError(CacheError, ValueError): ...


class SpecMismatchError(CacheError, ValueError):
    """The store has another identity.

    Args:
        message: the key of a message that names `{differences}`.
        differences: the identity fields that differ, expected and got.
        values: what else the message names.
    """

    def __init__(self, message: str, /, *, differences: Sequence[FieldDifference], **values: object) -> None:
        super().__init__(message, differences="; ".join(map(str, differences)), **values)
        self.differences = tuple(differences)


class ChangedDataError(CacheError, ValueError): ...


class IncompleteStoreError(CacheError, RuntimeError): ...


class DamagedStoreError(CacheError, RuntimeError): ...


class MissingArrayError(CacheError, LookupError): ...


class MissingRowsError(CacheError, LookupError): ...


class MissingTargetError(CacheError, LookupError): ...


class BatchError(CacheError, ValueError): ...


class StoreLockedError(CacheError, RuntimeError): ...


class StorageFullError(CacheError, OSError): ...


class NotWritableError(CacheError, OSError): ...
