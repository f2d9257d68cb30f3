"""Arrays in NPZ files that anybody may have written: what is asked for is read, or one error says why not."""

from __future__ import annotations

import struct
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DAMAGE = (  # MemoryError: NumPy believes any shape; RuntimeError: a member is encrypted, or compressed in another way
    *(OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError, RecursionError),
    *(RuntimeError, SyntaxError, struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)
"""What reading an NPZ file raises if it is not as NumPy writes it."""


class UnreadableArrays(Exception):
    """A file that cannot be read; its argument says why."""


def load_arrays(path: Path, names: Sequence[str], optional: Sequence[str] = ()) -> list[NDArray[Any]]:
    """Arrays of an NPZ file, without unpickling anything.

    Args:
        path: the file.
        names: the arrays that it must have.
        optional: arrays that it may have; those that are there come last.

    Raises:
        UnreadableArrays: there is no such file, it is damaged, or it lacks an array.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise ValueError("it is not a file")
        with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
            arrays = [saved[name] for name in [*names, *(name for name in optional if name in saved)]]
    except DAMAGE as error:
        raise UnreadableArrays(str(error) or type(error).__name__) from error
    if not all(isinstance(array, np.ndarray) for array in arrays):  # NumPy gives other members as bytes
        raise UnreadableArrays("a member that is no array")
    return arrays
