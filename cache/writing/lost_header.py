"""The header of a store that lost it, made again from what a writer requests, the arrays' metadata and the journal.

The decision taken here: such a header is believed only if all that is left agrees with it. The path has the digests of the model
and the rows in it, the content hashes are those of the requested rows, the metadata of each array in the journal are those that
this version writes, and at least one of its chunks has the checksum in the journal. Arrays with a chunk that has another one are
left in progress, so that a writer computes those rows again. Batch size and optional attributes are those of the request.

Changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import google_crc32c
from numpy.typing import NDArray

from ..errors import DamagedStoreError, NotAStoreError, SpecError
from ..format import CONTENT_HASHES, VIEWS, metadata_files, static_array, token_array
from ..header import HEADER_FILE, Header, read_header
from ..journal import JOURNAL_FOLDER, Journal, read_journal
from ..spec import ArraySpec


def find_header(
    store: Path, blank: Header, requested: Sequence[ArraySpec], static: Mapping[str, NDArray[Any]]
) -> tuple[Header, bool]:
    """The header of a store, made again if it is missing or altered; and whether it was read.

    Args:
        store: its path.
        blank: the header that the store would have if it was made now, before its arrays.
        requested: the arrays that it would have.
        static: what would be stored of its rows.

    Raises:
        NotAStoreError, NewerStoreError: as `read_header`.
        DamagedStoreError: the header is lost, and something that is left contradicts the request.
    """
    try:
        return read_header(store), True
    except (DamagedStoreError, NotAStoreError):
        if not (store / JOURNAL_FOLDER).is_dir():
            raise
    journal = read_journal(store)
    names = sorted({name for entry in journal.entries.values() for name in entry.checksums})
    try:
        arrays = {array.name: array for array in (*requested, *_specs(store, names, requested))}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SpecError):
        raise _disagrees(store, "metadata of an array that the journal names") from None
    entries, metadata = metadata_files(blank.spec, list(arrays.values()), static)
    header = replace(
        blank,
        arrays=entries,
        metadata={path: f"{google_crc32c.value(content):08x}" for path, content in metadata.items()},
    )
    _check_identity(store, header)
    journal = journal.of_store(names, header.block_grid)
    whole = {name for name in names if _is_whole(store, header, journal, name, metadata[f"{name}/{HEADER_FILE}"])}
    header = replace(header, arrays={name: replace(one, complete=name in whole) for name, one in entries.items()})
    return replace(header, notes=journal.notes(whole).totals()) if whole else header, False


def _specs(store: Path, names: Iterable[str], requested: Iterable[ArraySpec]) -> list[ArraySpec]:
    """The arrays of these names, from their metadata and the taps that are requested."""
    taps = {array.name.split("/")[1]: array.tap for array in requested if array.tap}
    found = []
    for name in names:
        shape = json.loads((store / name / HEADER_FILE).read_bytes())["shape"]
        _, *place, level, kind = name.split("/")
        tap = taps.get(place[0], place[0]) if place else ""
        array = ArraySpec(level=level, kind=kind, row_shape=tuple(shape[1:]), tap=tap)
        if array.name != name:
            raise ValueError(f"array {name} is not {array.name}")
        found.append(array)
    return found


def _check_identity(store: Path, header: Header) -> None:
    """Compare the path of a store and its content hashes with those of the rows that are requested."""
    expected = header.spec.path(store.parent.parent)
    if (store.parent.name[-9:], store.name[-14:]) != (expected.parent.name[-9:], expected.name[-14:]):
        raise _disagrees(store, "the digests of model and images in its path")
    for name in (CONTENT_HASHES, VIEWS):
        if name not in header.static:
            if (store / name).exists():
                raise _disagrees(store, "views of images, which are not requested")
        elif static_array(header, name).problem(store, 0, header.static[name].crc32c):
            raise _disagrees(store, f"{name}, which are damaged or of other images")


def _is_whole(store: Path, header: Header, journal: Journal, name: str, metadata: bytes) -> bool:
    """Whether all chunks of an array have their checksum in the journal.

    Raises:
        DamagedStoreError: none has, or its metadata are others.
    """
    array, blocks = token_array(header, name), [b for b, one in journal.entries.items() if name in one.checksums]
    if (store / name / HEADER_FILE).read_bytes() != metadata:
        raise _disagrees(store, f"metadata of {name}")
    chunks = [chunk for block in blocks for chunk in array.grid.chunks_of(block)]
    sound = [not array.problem(store, chunk, journal.checksum(name, chunk, array.grid)) for chunk in chunks]
    if chunks and not any(sound):
        raise _disagrees(store, f"all chunks of {name}")
    return len(blocks) == array.grid.num_blocks and all(sound)


def _disagrees(store: Path, what: str) -> DamagedStoreError:
    return DamagedStoreError("cache.header_not_rebuilt", store=store, what=what)
