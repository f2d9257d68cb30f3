"""`wds:`: WebDataset tars on a local disk, read by row: an image is one read at its offset, nothing is extracted.

`samples` says what a sample is and where its image lies. The label is the text of `cls`, whose classes `classnames.txt` above the
splits names, or what `?label=` names: another member (`txt`), or a value in a JSON member (`json:label`).
"""

from __future__ import annotations

import io
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import RequestError
from ..image_files import require_inside
from ..image_source import ImageSource, Stored, classes_by_value, split_where
from ..patterns import ShardFolder, ShardPattern, parse_options, read_text
from ..pixels import parse_range
from ..sources import DataSource
from ..tables.class_column import classes_of
from .samples import CLASS_INDEX, LabelMember, read_samples

_INDEX = re.compile(r"[0-9]{1,18}")  # fits into 64 bits
BLOCK_BYTES = 1 << 20  # read at a time where every image is read: stays in the processor's cache


class WdsSource(ImageSource):
    """The samples of one split in the order of shards and of members; ids are `<shard>/<key>`, relative."""

    keeps_order = True
    is_encoded = True

    def __init__(self, address: str, split: str) -> None:
        pattern, options = parse_options("wds", address, ("label", "range"))
        layout = ShardPattern(pattern) if "{" in pattern else ShardFolder(pattern)
        self._shards = layout.shards(split)
        self.value_range = parse_range(f"wds:{address}", options)
        extension, _, key = options.get("label", "cls").partition(":")
        member = LabelMember(extension.lower(), key)
        samples = read_samples(self._shards, layout.place(split), member)
        if not samples.keys:
            raise RequestError("data.no_samples", data=f"wds:{address}", split=split, count=len(self._shards))
        names = [shard.relative_to(layout.root).as_posix() for shard in self._shards]
        self._shard_of = np.repeat(np.arange(len(names), dtype=np.int32), samples.counts)
        ids = [f"{names[shard]}/{key}" for shard, key in zip(self._shard_of.tolist(), samples.keys, strict=True)]
        names_of_cls = _class_names(layout.root) if member == CLASS_INDEX else []
        labels, class_names = _classes(layout.root, samples.labels, ids, names_of_cls)
        self._offsets = samples.table["offset"].copy()
        self.left_out = sum(map(Counter, samples.left_out), layout.other_files(split))
        self._open: tuple[int, _OpenFile] | None = None  # the shard read last
        super().__init__(
            name=layout.name,
            split=split,
            ids=ids,
            labels=labels,
            class_names=class_names,
            sizes=samples.table["size"],
        )

    def read(self, row: int) -> bytes:
        number = int(self._shard_of[row])
        shard = self._open  # kept in a local name: another thread may put its own shard there meanwhile
        if shard is None or shard[0] != number:
            shard = self._open = (number, _OpenFile(self._shards[number]))
        encoded = os.pread(shard[1].descriptor, int(self.sizes[row]), int(self._offsets[row]))
        if len(encoded) != self.sizes[row]:
            raise OSError(f"the tar ends after {len(encoded)} of {self.sizes[row]} bytes")
        return encoded

    def read_each(self, rows: NDArray[np.int64]) -> Iterator[Stored | None]:
        """Yield images as `ImageSource.read_each`, in one pass over each shard."""
        self._open = None
        shards = self._shard_of[rows]
        for in_shard in split_where(shards[1:] != shards[:-1], rows):
            file = _open(self._shards[self._shard_of[in_shard[0]]])
            if file is None:
                yield from [None] * len(in_shard)
                continue
            with file:
                yield from self._read_shard(file, in_shard)

    def _read_shard(self, file: io.FileIO, rows: NDArray[np.int64]) -> Iterator[Stored | None]:
        """Yield images of one shard, read in blocks of many members."""
        buffer = memoryview(bytearray(2 * BLOCK_BYTES))
        # as numbers of Python: ten images a block are too few for arrays
        starts, sizes = self._offsets[rows].tolist(), self.sizes[rows].tolist()
        blocks = self._offsets[rows] // BLOCK_BYTES
        for first, last in pairwise([0, *(np.flatnonzero(np.diff(blocks)) + 1).tolist(), len(rows)]):
            places = list(zip(starts[first:last], sizes[first:last], strict=True))
            start, stop = min(places)[0], max(map(sum, places))
            if stop - start > len(buffer):
                buffer = memoryview(bytearray(stop - start))
            if _read_into(buffer[: stop - start], file, start):
                for offset, size in places:
                    yield buffer[offset - start : offset - start + size]
            else:  # a part of the disk cannot be read, or the file was cut
                yield from map(self._read_or_none, rows[first:last].tolist())

    def files(self) -> tuple[Sequence[Path], NDArray[np.int64]]:
        return [shard.absolute() for shard in self._shards], self._shard_of.astype(np.int64)

    def file_of(self, row: int) -> str:
        return f"{self._shards[self._shard_of[row]]} at byte {self._offsets[row]}"

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": None}  # a descriptor means nothing in another process


def _open(path: Path) -> io.FileIO | None:
    try:
        return open(path, "rb", buffering=0)
    except OSError:
        return None


def _read_into(block: memoryview, file: io.FileIO, start: int) -> bool:
    """Fill a block from a file; whether that was possible."""
    try:
        file.seek(start)
        return file.readinto(block) == len(block)
    except OSError:
        return False


class _OpenFile:
    """A file for positioned reads. Rows come in order, so one is open at a time; a thousand would use up the descriptors."""

    descriptor = -1

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


def _classes(root: Path, texts: Sequence[str], ids: Sequence[str], names: list[str]) -> tuple[NDArray[Any], list[str]]:
    """Class indices [N] and the names of the classes, or numbers; without names, the labels that occur are the classes."""
    if not all(map(_INDEX.fullmatch, texts)):
        place = f"labels of wds:{root}"
        labels, found = classes_of(texts, ids, place)
        if not found:
            return labels, found
        are_numbers = [bool(_INDEX.fullmatch(text)) for text in texts]
        if mixed := sum(are_numbers):
            is_rare = 2 * mixed < len(texts)
            example = f", such as {ids[are_numbers.index(is_rare)]}"
            numbers, others = f"{mixed:,} whole numbers", f"{len(texts) - mixed:,} texts"
            counts = f"{numbers}{example}, {others}" if is_rare else f"{numbers}, {others}{example}"
            raise RequestError("data.mixed_labels", place=place, found=counts)
        if set(found) <= set(names):
            return np.array([names.index(name) for name in found])[labels], names
        return labels, found
    labels = np.array([int(text) for text in texts], dtype=np.int64)
    if len(distinct := set(texts)) > len(set(map(int, distinct))):
        number, _ = Counter(map(int, distinct)).most_common(1)[0]
        alike = ", ".join(sorted(text for text in distinct if int(text) == number))
        raise RequestError("data.labels_look_alike", data=f"wds:{root}", number=number, names=alike)
    if not names:
        return classes_by_value(labels)
    highest = int(labels.argmax())
    if labels[highest] >= len(names):
        place = f"{root}, sample {ids[highest]}"
        raise RequestError("data.class_without_name", place=place, count=len(names), label=labels[highest])
    return labels, names


def _class_names(root: Path) -> list[str]:
    file = root / "classnames.txt"
    if not file.is_file():
        return []
    require_inside(f"wds:{root}", root, [file])
    return [line.strip() for line in read_text(file).strip().split("\n")]


WDS = DataSource(
    form="wds:DIR | wds:DIR/{split}/{000..010}.tar",
    meaning="WebDataset tars: an image (jpg, png, webp, ...) and cls, or ?label=txt, ?label=json:KEY",
    example="wds:wds_cifar10/{split}/{000..010}.tar",
    open=WdsSource,
)
