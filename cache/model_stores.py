"""The stores of one model, and where each row lies in them.

The decision taken here: a row is looked up by its content, in all stores of the model, finished or not; a row block counts when
it is committed. Whichever data set a store was made for does not matter. Of several stores that hold a row, the one with the
smallest path is read, also if their tokens differ: each store is sound, and a computation elsewhere may differ in last bits. A row
whose tokens are usable comes before one that was skipped, and hash rule 2 before rule 1.

Stores of format 1 lie in folders of data sets. They are read as they are, after all others, and never written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .damage import require_sound, static_damage
from .errors import CacheError, StoreMissingError
from .format import CONTENT_HASHES
from .header import read_header
from .reader import ArrayKey, StoreFiles
from .rows import HASH_RULE, MISSING, RowSet, find_keys
from .spec import FINAL, ModelSpec

STORE_SUFFIX = ".zarr"


@dataclass(frozen=True, kw_only=True, eq=False)
class WantedRows:
    """Rows to find.

    Args:
        rows: image and view of each, by hash rule 2.
        rule1_hashes: ``[N]`` uint64, hashes of the same images by rule 1, for old stores; None where both rules agree.
    """

    rows: RowSet
    rule1_hashes: NDArray[np.uint64] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def keys(self, hash_rule: int) -> NDArray[np.uint64]:
        """``[N]`` uint64 keys of the rows by a hash rule."""
        if hash_rule == 1 and self.rule1_hashes is not None:
            return replace(self.rows, hashes=self.rule1_hashes).keys
        return self.rows.keys

    def are_in(self, rows: RowSet) -> NDArray[np.bool_]:
        """``[n]`` which rows of a store are among these; a row without a hash is not."""
        found: NDArray[np.bool_] = np.isin(rows.keys, self.keys(rows.hash_rule)) & (rows.keys != MISSING)
        return found

    def select(self, rows: NDArray[np.int64]) -> WantedRows:
        """Some of the rows, in the order given."""
        rule1 = None if self.rule1_hashes is None else self.rule1_hashes[rows]
        return WantedRows(rows=self.rows.select(rows), rule1_hashes=rule1)


class Location(NamedTuple):
    """Where rows lie.

    Attributes:
        store: ``[n]`` int64, number of the store in `ModelStores.stores`; -1 for a row that none holds.
        row: ``[n]`` int64, the row in that store.
        skipped: ``[n]`` bool, its tokens are not usable.
    """

    store: NDArray[np.int64]
    row: NDArray[np.int64]
    skipped: NDArray[np.bool_]


class ModelStores:
    """The readable stores of a model under a cache folder, by path, those of format 1 last.

    Args:
        root: the cache folder; it need not exist.
        model: the model.

    Attributes:
        stores: the stores.
        unreadable: path of a store of this model that cannot be read -> why; its rows count as missing. A store of format 1 with a
            damaged header does not show its model and is not among them.
    """

    def __init__(self, root: str | Path, model: ModelSpec) -> None:
        self.root, self.model = Path(root), model
        self.stores: list[StoreFiles] = []
        self.unreadable: dict[Path, str] = {}
        for path in sorted(_paths_of_model(self.root, model)):
            self._read(path, is_of_model=True)
        for path in sorted(_paths_of_format1(self.root)):
            self._read(path, is_of_model=False)

    def _read(self, path: Path, *, is_of_model: bool) -> None:
        try:
            header = read_header(path)
            is_of_model = header.spec.model.identity() == self.model.identity()
            if is_of_model:
                files = StoreFiles.with_header(path, header)
                files.rows  # noqa: B018  # damaged hashes make a store unreadable
                self.stores.append(files)
        except StoreMissingError:  # deleted just now
            pass
        except (CacheError, OSError) as error:
            if is_of_model:
                self.unreadable[path] = error.got if isinstance(error, CacheError) else error.strerror or str(error)

    def find(self, wanted: WantedRows, arrays: Collection[ArrayKey], *, leave_out: Collection[Path] = ()) -> Location:
        """Find rows in row blocks in which all of these arrays are committed.

        Args:
            wanted: n rows.
            arrays: (tap, level, kind) of each array.
            leave_out: stores that are not looked into.
        """
        found = Location(np.full(len(wanted), -1), np.zeros(len(wanted), np.int64), np.zeros(len(wanted), np.bool_))
        for rule in range(HASH_RULE, 0, -1):
            numbers = [
                number
                for number, files in enumerate(self.stores)
                if files.header.spec.hash_rule == rule and files.path not in leave_out
            ]
            here = self._find(wanted.keys(rule), numbers, arrays)
            better = (here.store >= 0) & ((found.store < 0) | (found.skipped & ~here.skipped))
            for ours, theirs in zip(found, here, strict=True):
                ours[better] = theirs[better]
        return found

    def _find(self, keys: NDArray[np.uint64], numbers: Sequence[int], arrays: Collection[ArrayKey]) -> Location:
        candidates = [rows for number in numbers if (rows := self._rows_of(number, arrays)) is not None]
        if not candidates or not len(keys):
            return Location(np.full(len(keys), -1), np.zeros(len(keys), np.int64), np.zeros(len(keys), np.bool_))
        known, store, row, skipped = (np.concatenate(parts) for parts in zip(*candidates, strict=True))
        if skipped.any():  # usable rows first; within both, candidates are sorted by path and row
            usable_first = np.argsort(skipped, kind="stable")
            known, store, row, skipped = (part[usable_first] for part in (known, store, row, skipped))
        place = find_keys(keys, known)
        chosen, is_there = np.maximum(place, 0), place >= 0
        return Location(
            np.where(is_there, store[chosen], -1), np.where(is_there, row[chosen], 0), skipped[chosen] & is_there
        )

    def _rows_of(self, number: int, arrays: Collection[ArrayKey]) -> tuple[NDArray[np.generic], ...] | None:
        """Key, store, row and whether it was skipped, of the committed rows of a store."""
        files = self.stores[number]
        names = array_names(files, arrays)
        if names is None:
            return None
        blocks = files.committed(names)
        if not blocks.any():
            return None
        rows = np.flatnonzero(files.rows_of(blocks))
        is_skipped = np.zeros(files.header.spec.num_rows, dtype=np.bool_)
        is_skipped[[*files.skipped]] = True
        return files.rows.keys[rows], np.full(len(rows), number), rows, is_skipped[rows]


def known_hashes(
    root: str | Path,
    name: str,
    ids: Sequence[str],
    sizes: NDArray[np.int64],
    *,
    believe: Callable[[Mapping[str, Any]], bool] | None = None,
) -> NDArray[np.uint64]:
    """Content hashes of images that stores of the same data, of any model, record under the same name and size.

    Args:
        root: the cache folder.
        name: name of the data; stores of other data are not believed, whatever their images are called.
        ids: n names of images.
        sizes: ``[n]`` bytes of the encoded images.
        believe: whether to believe a store, by the attributes that it has recorded; None believes all.

    Returns:
        ``[n]`` uint64, 0 for images that no store names, that stores disagree about, or that have name and size of another one.
    """
    named = list(zip(ids, sizes.tolist(), strict=True))
    counts = Counter(named)
    wanted = {one: number for number, one in enumerate(named) if counts[one] == 1}
    found: dict[int, int] = {}
    for path in sorted(Path(root).glob(f"*-????????/*{STORE_SUFFIX}")):
        with suppress(CacheError, OSError):
            files = StoreFiles.read(path)
            if files.sizes is None or files.header.spec.hash_rule != HASH_RULE or files.header.spec.name != name:
                continue
            if believe is not None and not believe(files.header.attributes):
                continue
            require_sound(path, list(static_damage(path, files.header)))
            rows = zip(files.sample_ids, files.sizes.tolist(), files.rows.hashes.tolist(), strict=True)
            for name_of_image, size, hash in rows:
                number = wanted.get((name_of_image, size))
                if number is not None and found.setdefault(number, hash) != hash:
                    found[number] = int(MISSING)
    hashes = np.zeros(len(ids), dtype=np.uint64)
    hashes[list(found)] = np.array(list(found.values()), dtype=np.uint64)
    return hashes


def array_names(files: StoreFiles, arrays: Collection[ArrayKey]) -> list[str] | None:
    """The paths of arrays in a store, and of what else must be committed with them; None if it lacks one."""
    names = [files.arrays.get(array) for array in arrays]
    if None in names:
        return None
    hashes = [CONTENT_HASHES] if files.header.format == 1 else []
    return [*hashes, *(name for name in names if name is not None)]


def array_key(tap: str, level: str, kind: str) -> ArrayKey:
    """The key of an array: `final` has no tap."""
    return ("" if level == FINAL else tap, level, kind)


def _paths_of_model(root: Path, model: ModelSpec) -> Iterator[Path]:
    for folder in root.glob(f"*-{model.digest[:8]}"):
        yield from folder.glob(f"*{STORE_SUFFIX}")


def _paths_of_format1(root: Path) -> Iterator[Path]:
    for split in root.glob("*/*/"):
        if split.suffix != STORE_SUFFIX and not split.parent.name.startswith("."):
            yield from split.glob(f"*{STORE_SUFFIX}")
