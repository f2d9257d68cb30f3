"""The token store: every layer's tokens of a data set, written once, read many times. The format is in README.md."""

from .errors import CacheError
from .journal import BatchNotes
from .reader import TokenArray, TokenCache, open_array
from .spec import ArraySpec, CacheSpec
from .writer import Batch, CacheWriter

__all__ = [
    "CacheSpec",
    "ArraySpec",
    "CacheWriter",
    "Batch",
    "BatchNotes",
    "TokenCache",
    "TokenArray",
    "open_array",
    "CacheError",
]
