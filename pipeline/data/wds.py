"""`wds:`: WebDataset tars on a local disk, read by row through an index of their headers.

A sample is the members of a tar with one key (the name up to its first dot): an image (`jpg`, `jpeg`, `png`, `webp`; the first of
these if there are several) and `cls`, the class index as text. Nothing is extracted: an image is one read at its offset.
`classnames.txt` above the splits names the classes.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError
from .image_files import require_inside
from .image_source import ImageSource, Stored, numbers_as_names, split_where
from .patterns import ShardFolder, ShardPattern
from .sources import DataSource
from .tar_index import DamagedTar, Member, walk_tar

BLOCK_BYTES = 1 << 20  # read at a time where every image is read: stays in the processor's cache
IMAGE_KEYS = ("jpg", "jpeg", "png", "webp")


class WdsSource(ImageSource):
    """The samples of one split in the order of shards and of members; ids are `<shard>/<key>`, relative."""

    keeps_order = True
    is_encoded = True

    def __init__(self, address: str, split: str) -> None:
        layout = ShardPattern(address) if "{" in address else ShardFolder(address)
        self._shards = layout.shards(split)
        names = [shard.relative_to(layout.root).as_posix() for shard in self._shards]
        samples = [
            (number, sample) for number, shard in enumerate(self._shards) for sample in _samples(shard, names[number])
        ]
        if not samples:
            raise RequestError("data.no_samples", data=f"wds:{address}", split=split, count=len(self._shards))
        class_names = _class_names(layout, split, [sample for _, sample in samples])
        self._shard_of = np.array([number for number, _ in samples], dtype=np.int32)
        self._offsets = np.array([sample.image.offset for _, sample in samples], dtype=np.int64)
        self._open: tuple[int, _OpenFile] | None = None  # the shard read last
        super().__init__(
            name=layout.name,
            split=split,
            ids=[sample.id for _, sample in samples],
            labels=np.array([sample.label for _, sample in samples], dtype=np.int64),
            class_names=class_names,
            sizes=np.array([sample.image.size for _, sample in samples], dtype=np.int64),
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
        buffer = bytearray(2 * BLOCK_BYTES)
        blocks = self._offsets[rows] // BLOCK_BYTES
        for wanted in split_where(blocks[1:] != blocks[:-1], rows):
            starts, sizes = self._offsets[wanted], self.sizes[wanted]
            start, stop = int(starts.min()), int((starts + sizes).max())
            if stop - start > len(buffer):
                buffer = bytearray(stop - start)
            block = memoryview(buffer)[: stop - start]
            if _read_into(block, file, start):
                for first, size in zip((starts - start).tolist(), sizes.tolist(), strict=True):
                    yield block[first : first + size]
            else:  # a part of the disk cannot be read, or the file was cut
                yield from map(self._read_or_none, wanted.tolist())

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


@dataclass(frozen=True, slots=True)
class _Sample:
    id: str
    label: int
    image: Member


def _samples(shard: Path, name: str) -> Iterator[_Sample]:
    """Index one shard. Raises RequestError for damage, and for a sample that lacks or repeats a member."""
    by_key: dict[str, dict[str, Member]] = {}
    classes: dict[str, bytes] = {}
    with shard.open("rb") as file:
        try:
            for member in walk_tar(file):
                folder, slash, base = member.name.rpartition("/")
                stem, _, extension = base.partition(".")
                if not stem:
                    continue  # a name that starts with a dot belongs to no sample, as in webdataset
                key, extension = folder + slash + stem, extension.lower()
                members = by_key.setdefault(key, {})
                if extension in members:
                    raise RequestError(
                        "data.repeated_member", key=key, shard=shard, extension=extension, offset=member.offset
                    )
                members[extension] = member
                if extension == "cls":
                    file.seek(member.offset)
                    classes[key] = file.read(member.size)
        except DamagedTar as error:
            whole = sum(key in classes and _image_of(members) is not None for key, members in by_key.items())
            values = {"shard": shard, "offset": error.offset, "problem": error.problem, "count": whole}
            raise RequestError("data.damaged_tar", **values) from error
    for key, members in by_key.items():
        image, found = _image_of(members), ", ".join(sorted(members))
        if image is None:
            raise RequestError(
                "data.sample_without_image", key=key, shard=shard, extensions=", ".join(IMAGE_KEYS), found=found
            )
        if key not in classes:
            raise RequestError("data.sample_without_class", key=key, shard=shard, found=found)
        if not classes[key].strip().isdigit():
            raise RequestError("data.bad_class_index", key=key, shard=shard, content=repr(classes[key][:20]))
        yield _Sample(f"{name}/{key}", int(classes[key]), image)


def _image_of(members: dict[str, Member]) -> Member | None:
    return next((members[key] for key in IMAGE_KEYS if key in members), None)


def _class_names(layout: ShardFolder | ShardPattern, split: str, samples: list[_Sample]) -> list[str]:
    """The lines of classnames.txt; without that file the numbers up to the highest class of any split."""
    highest = max(samples, key=lambda sample: sample.label)
    file = layout.root / "classnames.txt"
    if not file.is_file():
        labels = {highest.label}
        for other in set(layout.splits()) - {split}:
            labels.update(sample.label for shard in layout.shards(other) for sample in _samples(shard, ""))
        return numbers_as_names(max(labels), f"{layout.root}, sample {highest.id}")
    require_inside(f"wds:{layout.root}", layout.root, [file])
    names = [line.strip() for line in file.read_text(encoding="utf-8").strip().split("\n")]
    if highest.label >= len(names):
        place = f"{layout.root}, sample {highest.id}"
        raise RequestError("data.class_without_name", place=place, count=len(names), label=highest.label)
    return names


WDS = DataSource(
    form="wds:DIR | wds:DIR/{split}/{000..010}.tar",
    meaning="WebDataset tars: jpg, png or webp, and cls",
    example="wds:wds_cifar10/{split}/{000..010}.tar",
    open=WdsSource,
)
