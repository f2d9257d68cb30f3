"""Files of a row that appear whole or not at all; whoever writes several of them syncs their folder once, at the end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from layerbank.cache.atomic_files import open_staging, staging_beside


@contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
    """A staging file to write; at the end it is on the disk and takes the place of `path`."""
    staging = staging_beside(path)
    with open(open_staging(staging), "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    staging.replace(path)


def save_arrays(path: Path, **arrays: NDArray[Any]) -> None:
    """Write an NPZ file."""
    with new_file(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # its stub takes the flag allow_pickle for one of them
