"""The content hash of each row of a source: what the images are, whatever they are called and wherever they lie.

`identify` takes hashes from the content index of the cache and reads only the files that the index does not know. It knows sources
and files, not models, stores or pixels: an image is hashed as it is stored, and is not decoded.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_hexdigest, xxh3_64_intdigest

from layerbank.cache import RowSet
from layerbank.cache.checked_arrays import UnusableIndex
from layerbank.cache.index import (
    INDEX_SUFFIX,
    MISSING,
    STATUS,
    ContentIndex,
    index_folders,
    read_index,
    read_status,
    read_whole,
    rows_of,
    write_index,
)
from layerbank.cache.rows import MISSING as UNREADABLE

from ..errors import WorkError
from ..events import (
    HashingFinished,
    HashingProgress,
    HashingStarted,
    ImagesTrusted,
    IndexIgnored,
    IndexNotKept,
    OnEvent,
    ignore,
)
from .image_source import ImageSource, split_where

TRIES = 3  # for a file that changes while it is read
PROGRESS_EVERY_S = 0.2
SAVE_EVERY_S = 60.0
ROWS_AT_A_TIME = 1024  # hashed before their files are looked at again

TrustedHashes = Callable[[Sequence[str], NDArray[np.int64]], NDArray[np.uint64]]
"""(ids, sizes [N] in bytes) -> [N] hashes, 0 for an image it does not know."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """The content of the N rows of a source, in its order.

    Attributes:
        hashes: [N] content hashes by rule 2; 0 for an image that cannot be read.
        rule1_hashes: [N] hashes by rule 1, for stores of format 1; None if they are the same.
        is_known: [N] False for a row that was not hashed, because it was not allowed.
        keeps_order: whether the order of the source is kept in reading.
    """

    hashes: NDArray[np.uint64]
    rule1_hashes: NDArray[np.uint64] | None
    is_known: NDArray[np.bool_]
    keeps_order: bool

    def __len__(self) -> int:
        return len(self.hashes)

    @cached_property
    def reading_order(self) -> NDArray[np.int64]:
        """[N] rows in the order in which they are extracted and streamed: by hash, which is random, or as they are."""
        if self.keeps_order:
            return np.arange(len(self), dtype=np.int64)
        return np.argsort(self.hashes, kind="stable").astype(np.int64)

    @cached_property
    def digest(self) -> str:
        """64 hex digits: the digest of the hashes in the order of the rows, `RowSet.digest` of their centre views."""
        return RowSet(hashes=self.hashes).digest


def images_with_two_labels(hashes: NDArray[np.uint64], labels: NDArray[Any]) -> NDArray[np.int64]:
    """Numbers of the images [n] that are byte for byte an image with another label, of labels [N] or [N, K].

    >>> images_with_two_labels(np.array([7, 7, 8, 7, 8, 0, 0], np.uint64), np.array([0, 0, 1, 2, 1, 0, 1])).tolist()
    [0, 1, 3]
    """
    if labels.ndim > 1:
        labels = np.unique(labels, axis=0, return_inverse=True)[1].reshape(-1)
    order = np.lexsort((labels, hashes))
    by_hash, by_label = hashes[order], labels[order]
    differ = (by_hash[1:] == by_hash[:-1]) & (by_label[1:] != by_label[:-1]) & (by_hash[1:] != UNREADABLE)
    return np.flatnonzero(np.isin(hashes, by_hash[1:][differ]))


def identify(
    source: ImageSource,
    cache_root: Path,
    *,
    may_hash: bool = True,
    trusted: TrustedHashes | None = None,
    on_event: OnEvent = ignore,
) -> ImageSet:
    """Return the content hash of each image of a source, reading the files that the content index does not know.

    Args:
        source: the images, N rows.
        cache_root: the cache, whose index is used and brought up to date.
        may_hash: False reads no image; `is_known` says which rows have a hash.
        trusted: hashes to take without reading the image, for rows that the index does not know. They are not kept. It is not
            asked for a source whose images are not encoded: their sizes do not tell them apart.
        on_event: callback for progress.

    Raises:
        WorkError: a file changes again and again while it is read.
    """
    identification = _Identification(source, cache_root, on_event)
    if trusted is not None and source.is_encoded:
        identification.trust(trusted)
    if may_hash:
        identification.hash_the_rest()
    return identification.image_set()


class _Identification:
    """Hashes of a source, filled in from the index, from trust and from the files, in this order."""

    def __init__(self, source: ImageSource, cache_root: Path, on_event: OnEvent) -> None:
        self.source, self.on_event = source, on_event
        self.hashes, self.rule1_hashes = (np.zeros(len(source), dtype=np.uint64) for _ in range(2))
        self.is_known = np.zeros(len(source), dtype=bool)
        self.is_trusted = np.zeros(len(source), dtype=bool)
        paths, self.file_of_row = source.files()
        self.paths = list(paths)
        by_file = np.argsort(self.file_of_row, kind="stable")
        self.rows = by_file[np.searchsorted(self.file_of_row[by_file], 0) :]  # file by file, without rows in no file
        self.num_rows = np.bincount(self.file_of_row[self.rows], minlength=len(self.paths))
        self.status = np.full(len(self.paths), np.array(MISSING, dtype=STATUS))  # of files that were looked at
        self.recorded_ns = np.zeros(len(self.paths), dtype=np.int64)
        self.keys = self._file_keys()
        origin = source.origin or f"{type(source).__module__}.{type(source).__qualname__}:{source.name}"
        self.is_reported = False  # that the index cannot be kept
        self.scope = f"{origin}\n{source.split}\n{source.pixel_rule.text}"
        label = re.sub(r"[^\w.-]+", "-", f"{source.name}-{source.split}")[:80]
        name = f"{label}-{xxh3_64_hexdigest(self.scope.encode(errors='surrogatepass'))}{INDEX_SUFFIX}"
        self.index_paths = [folder / name for folder in index_folders(cache_root)] if self.paths else []
        for path in self.index_paths:
            self._take_from_index(path)

    def _file_keys(self) -> NDArray[np.uint64]:
        """[F] hashes of the path of each file and of which rows it holds.

        Without the rows, an archive that is read in another way (another dataset, another choice of members) would seem known.
        """
        ids, sizes = self.source.ids, self.source.sizes.tolist()
        held = [f"{ids[row]} {sizes[row]}" for row in self.rows.tolist()]
        if len(held) != len(self.paths):  # archives
            stops = np.cumsum(self.num_rows).tolist()
            held = ["\n".join(held[start:stop]) for start, stop in zip([0, *stops], stops, strict=False)]
        texts = (f"{path}\n{rows}".encode(errors="surrogatepass") for path, rows in zip(self.paths, held, strict=True))
        return np.fromiter(map(xxh3_64_intdigest, texts), dtype=np.uint64, count=len(self.paths))

    def _take_from_index(self, path: Path) -> None:
        try:
            index = read_index(path, self.scope)
        except UnusableIndex as error:
            self.on_event(IndexIgnored(path=path, reason=str(error)))
            return
        places = index.find(self.keys, self.num_rows, self._look_at)
        places[self.recorded_ns > 0] = -1  # taken from an earlier index
        found = np.flatnonzero(places >= 0)
        rows = self.rows[rows_of(found, self.num_rows)]
        self.hashes[rows], self.rule1_hashes[rows] = index.hashes_of(places[found])
        self.is_known[rows] = self.hashes[rows] != UNREADABLE  # tried again: the disk may have failed for a moment
        self.recorded_ns[found] = index.records["recorded_ns"][places[found]]

    def _look_at(self, files: NDArray[np.int64]) -> NDArray[np.void]:
        """[F] STATUS of some files, read once."""
        unseen = files[self.status["size"][files] < 0]
        self.status[unseen] = read_status([self.paths[file] for file in unseen.tolist()])
        return self.status[files]

    def trust(self, trusted: TrustedHashes) -> None:
        """Take the hashes of rows that are not known yet from elsewhere."""
        rows = np.flatnonzero(~self.is_known)
        if not len(rows):
            return
        hashes = np.asarray(trusted([self.source.ids[row] for row in rows], self.source.sizes[rows]), dtype=np.uint64)
        is_there = hashes != UNREADABLE
        rows, hashes = rows[is_there], hashes[is_there]
        self.hashes[rows] = self.rule1_hashes[rows] = hashes
        self.is_known[rows] = self.is_trusted[rows] = True
        if len(rows):
            name, split = self.source.name, self.source.split
            self.on_event(ImagesTrusted(dataset=name, split=split, num_images=len(rows)))

    def hash_the_rest(self) -> None:
        """Hash the rows that are not known yet, and keep the hashes of files in the index, even if this is interrupted."""
        wanted = ~self.is_known
        if not wanted.any():
            return
        in_files = wanted[self.rows]
        numbers = self.file_of_row[self.rows[in_files]]
        progress = _Progress(self.source, wanted, self.on_event)
        if in_files.any():
            progress.start()
        self.last_saved = time.monotonic()
        try:
            for files in _slabs(np.unique(numbers), np.bincount(numbers, minlength=len(self.paths))):
                self._hash_files(files, wanted, progress)
                if time.monotonic() - self.last_saved > SAVE_EVERY_S:
                    self._save()
        finally:
            if in_files.any():
                self._save()
        self._hash_rows(np.flatnonzero(wanted & (self.file_of_row < 0)), progress)
        progress.finish()

    def _hash_files(self, files: NDArray[np.int64], wanted: NDArray[np.bool_], progress: _Progress) -> None:
        """Hash the wanted rows of some files; of a file that changes meanwhile again."""
        for _ in range(TRIES):
            if self.source.has_whole_files:
                files = files[~self._hash_whole_files(files, progress)]
            else:
                rows = self.rows[rows_of(files, self.num_rows)]
                files = files[~self._hash_parts(files, np.sort(rows[wanted[rows]]), progress)]
            if not len(files):
                return
            rows = self.rows[rows_of(files, self.num_rows)]
            progress.again(rows[wanted[rows]])
        raise WorkError("data.changing_file", file=self.paths[files[0]], tries=TRIES)

    def _hash_whole_files(self, files: NDArray[np.int64], progress: _Progress) -> NDArray[np.bool_]:
        """Hash files that are an image each; [F] whether each stayed as it is."""
        now = time.time_ns()
        hashes, status, are_settled = [], [], []
        for file in files.tolist():
            try:
                content, found, is_settled = read_whole(self.paths[file])
            except OSError:
                hashes.append(0)
                status.append(MISSING)
                are_settled.append(True)
            else:
                hashes.append(self.source.hashes_of(content)[0])
                del content  # its memory, which is in the processor's cache, serves the next file
                status.append(found)
                are_settled.append(is_settled)
            progress.done(file)
        self.hashes[files] = self.rule1_hashes[files] = np.array(hashes, dtype=np.uint64)
        self.status[files] = np.array(status, dtype=STATUS)
        self.recorded_ns[files] = np.where(are_settled, now, 0)
        self.is_known[files] = True
        return np.array(are_settled)

    def _hash_parts(self, files: NDArray[np.int64], rows: NDArray[np.int64], progress: _Progress) -> NDArray[np.bool_]:
        """Hash rows of some files; [F] whether each stayed as it is."""
        paths = [self.paths[file] for file in files.tolist()]
        now = time.time_ns()  # before the first byte is read: what changes from here on is younger than the record
        before = read_status(paths)
        self._hash_rows(rows, progress)
        self.status[files] = read_status(paths)
        same: NDArray[np.bool_] = self.status[files] == before
        self.recorded_ns[files] = np.where(same & (before["size"] >= 0), now, 0)
        return same

    def _hash_rows(self, rows: NDArray[np.int64], progress: _Progress) -> None:
        hashes, rule1_hashes = [], []
        for row, stored in zip(rows.tolist(), self.source.read_each(rows), strict=True):
            by_rules = (0, 0) if stored is None else self.source.hashes_of(stored)
            hashes.append(by_rules[0])
            rule1_hashes.append(by_rules[1])
            progress.done(row)
        self.hashes[rows] = np.array(hashes, dtype=np.uint64)
        self.rule1_hashes[rows] = np.array(rule1_hashes, dtype=np.uint64)
        self.is_known[rows] = True

    def _save(self) -> None:
        """Write the index of all files whose rows are all hashed and could all be read."""
        self.last_saved = time.monotonic()
        kept = (self.recorded_ns > 0) & (self.status["size"] >= 0)
        whole = ~self.is_trusted & (self.hashes != UNREADABLE)
        broken = np.bincount(self.file_of_row[self.rows], ~whole[self.rows], minlength=len(self.paths))
        files = np.flatnonzero(kept & (broken == 0))
        rows = self.rows[rows_of(files, self.num_rows)]
        index = ContentIndex.of_files(
            self.keys[files],
            self.status[files],
            self.recorded_ns[files],
            self.num_rows[files],
            self.hashes[rows],
            self.rule1_hashes[rows],
        )
        problem = write_index(self.index_paths, index, self.scope)
        if problem and not self.is_reported:
            self.is_reported = True
            self.on_event(IndexNotKept(dataset=self.source.name, split=self.source.split, reason=problem))

    def image_set(self) -> ImageSet:
        same = np.array_equal(self.hashes, self.rule1_hashes)
        return ImageSet(self.hashes, None if same else self.rule1_hashes, self.is_known, self.source.keeps_order)


def _slabs(files: NDArray[np.int64], num_wanted: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Cut files into groups of about `ROWS_AT_A_TIME` wanted rows; an archive with more is a group of its own."""
    group = np.cumsum(num_wanted[files]) // ROWS_AT_A_TIME
    return split_where(group[1:] != group[:-1], files)


class _Progress:
    """Counts rows and bytes, and reports them now and then."""

    def __init__(self, source: ImageSource, wanted: NDArray[np.bool_], on_event: OnEvent) -> None:
        self.names: dict[str, Any] = {"dataset": source.name, "split": source.split}
        self.sizes = source.sizes.tolist()
        self.on_event = on_event
        self.num_rows, self.num_images = len(source), int(wanted.sum())
        self.num_bytes = int(source.sizes[wanted].sum())
        self.num_done = self.bytes_done = 0
        self.began = self.last = time.monotonic()

    def start(self) -> None:
        self.on_event(
            HashingStarted(**self.names, num_images=self.num_images, num_rows=self.num_rows, size_bytes=self.num_bytes)
        )

    def done(self, row: int) -> None:
        self.num_done += 1
        self.bytes_done += self.sizes[row]
        now = time.monotonic()
        if now - self.last < PROGRESS_EVERY_S:
            return
        self.last = now
        self.on_event(
            HashingProgress(
                **self.names,
                num_done=self.num_done,
                num_images=self.num_images,
                bytes_done=self.bytes_done,
                size_bytes=self.num_bytes,
                elapsed_s=now - self.began,
            )
        )

    def again(self, rows: NDArray[np.int64]) -> None:
        """Take back rows that have to be hashed again."""
        self.num_done -= len(rows)
        self.bytes_done -= sum(self.sizes[row] for row in rows.tolist())

    def finish(self) -> None:
        elapsed_s = time.monotonic() - self.began
        self.on_event(
            HashingFinished(**self.names, num_images=self.num_done, size_bytes=self.bytes_done, elapsed_s=elapsed_s)
        )
