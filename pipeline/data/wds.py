"""`wds:`: WebDataset tars on a local disk, read by row through an index of their headers.

A sample is the members of a tar with one key (the name up to its first dot): an image (`jpg`, `jpeg`, `png`,
`webp`; the first of these if there are several) and `cls`, the class index as text. Nothing is extracted: an
image is one read at its offset. `classnames.txt` above the splits names the classes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import RequestError
from .image_source import ImageSource
from .shards import ShardFolder, ShardPattern, shards_at
from .tar_index import DamagedTar, Member, walk_tar

IMAGE_KEYS = ("jpg", "jpeg", "png", "webp")


class WdsSource(ImageSource):
    """The samples of one split in the order of shards and of members; ids are `<shard>/<key>`, relative."""

    def __init__(self, address: str, split: str) -> None:
        layout = shards_at(address)
        self._shards = layout.of(split)
        names = [shard.relative_to(layout.root).as_posix() for shard in self._shards]
        samples = [
            (number, sample) for number, shard in enumerate(self._shards) for sample in _samples(shard, names[number])
        ]
        if not samples:
            raise RequestError(
                where=f"wds:{address}, split {split}",
                expected="samples with an image and a class",
                got=f"{len(self._shards)} tars without samples",
                todo="Check how the shards were written.",
            )
        class_names = _class_names(layout, split, samples)
        self._shard_of = np.array([number for number, _ in samples], dtype=np.int32)
        self._offsets = np.array([sample.image.offset for _, sample in samples], dtype=np.int64)
        self._sizes = np.array([sample.image.size for _, sample in samples], dtype=np.int64)
        self._last: _OpenShard | None = None
        super().__init__(
            name=layout.name,
            split=split,
            ids=[sample.id for _, sample in samples],
            labels=np.array([sample.label for _, sample in samples], dtype=np.int64),
            class_names=class_names,
            locations=[f"{names[number]}:{sample.image.offset}" for number, sample in samples],
            sizes=self._sizes,
        )

    def read(self, row: int) -> bytes:
        number = int(self._shard_of[row])
        shard = self._last  # kept in a local name: another thread may put its own shard there meanwhile
        if shard is None or shard.number != number:
            shard = self._last = _OpenShard(number, self._shards[number])
        encoded = os.pread(shard.descriptor, int(self._sizes[row]), int(self._offsets[row]))
        if len(encoded) != self._sizes[row]:
            raise OSError(f"the tar ends after {len(encoded)} of {self._sizes[row]} bytes")
        return encoded

    def file_of(self, row: int) -> str:
        return f"{self._shards[self._shard_of[row]]} at byte {self._offsets[row]}"

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_last": None}  # a descriptor means nothing in another process


class _OpenShard:
    """The shard read last. Rows come in order, so one is enough; a thousand would use up the descriptors."""

    def __init__(self, number: int, path: Path) -> None:
        self.number = number
        self.descriptor = -1
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
                    raise _bad_sample(shard, key, f"one {extension}", f"a second one at byte {member.offset}")
                members[extension] = member
                if extension == "cls":
                    file.seek(member.offset)
                    classes[key] = file.read(member.size)
        except DamagedTar as error:
            whole = sum(key in classes and _image_of(members) is not None for key, members in by_key.items())
            raise RequestError(
                where=f"{shard} at byte {error.offset}",
                expected="a whole, uncompressed tar",
                got=f"{error.problem}; {whole} whole samples lie before",
                todo="Copy or download this shard again.",
            ) from error
    for key, members in by_key.items():
        image = _image_of(members)
        if image is None:
            raise _bad_sample(shard, key, f"an image ({', '.join(IMAGE_KEYS)})", f"only {', '.join(sorted(members))}")
        if key not in classes:
            raise _bad_sample(shard, key, "a class (cls)", f"only {', '.join(sorted(members))}")
        if not classes[key].strip().isdigit():
            raise _bad_sample(shard, key, "a class index in cls", repr(classes[key][:20]))
        yield _Sample(f"{name}/{key}", int(classes[key]), image)


def _image_of(members: dict[str, Member]) -> Member | None:
    return next((members[key] for key in IMAGE_KEYS if key in members), None)


def _bad_sample(shard: Path, key: str, expected: str, got: str) -> RequestError:
    return RequestError(where=f"sample {key} in {shard}", expected=expected, got=got, todo="Write this shard again.")


def _class_names(layout: ShardFolder | ShardPattern, split: str, samples: list[tuple[int, _Sample]]) -> list[str]:
    """The lines of classnames.txt; without that file the numbers up to the highest class of any split."""
    _, highest = max(samples, key=lambda sample: sample[1].label)
    file = layout.root / "classnames.txt"
    if not file.is_file():
        labels = {highest.label}
        for other in set(layout.splits()) - {split}:
            labels.update(sample.label for shard in layout.of(other) for sample in _samples(shard, ""))
        return [str(label) for label in range(max(labels) + 1)]
    names = [line.strip() for line in file.read_text(encoding="utf-8").strip().split("\n")]
    if highest.label >= len(names):
        raise RequestError(
            where=f"sample {highest.id} in {layout.root}",
            expected=f"a class from 0 to {len(names) - 1} ({file} has {len(names)} names)",
            got=str(highest.label),
            todo="Correct classnames.txt or the sample's cls.",
        )
    return names
