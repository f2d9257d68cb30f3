"""The samples in WebDataset tars, found by a walk over the headers and kept for the next process.

A sample is the members of a tar with one key (the name up to its first dot): an image (an extension of `IMAGE_KEYS`,
the first of them if there are several) and a label: the text of `cls` or of another member, or a value in a JSON member. Its other
members are left out and counted.

The walk takes 20 s for a million samples, so what it found lies in the user's cache folder, one file for the tars of a split. A tar
is walked again unless its size, mtime, ctime and inode are those of its record, by the rules of the content index
(`layerbank.cache.index`). A file that is damaged, or that cannot be written, only costs the walk.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_hexdigest, xxh3_64_intdigest

from layerbank.cache.checked_arrays import UnusableIndex, read_arrays, write_arrays
from layerbank.cache.index import RECORD, find_records, read_status, same_status, user_folders

from ...errors import RequestError
from .headers import CompressedTar, DamagedTar, Member, has_more, walk_tar

IMAGE_KEYS = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "ppm", "pgm")
MOST_LABEL_BYTES, MOST_JSON_BYTES = 1024, 1 << 24
FORMAT, FORMAT_VERSION = "layerbank tar index", 2  # 1 did not say what was left out, and had numbers for labels
SUFFIX = ".tars"
SAMPLE = np.dtype([("offset", "<i8"), ("size", "<i8")])
DTYPES = {"tars": RECORD, "samples": SAMPLE} | dict.fromkeys(("keys", "labels", "left_out"), np.dtype("u1"))
AFTER_THE_END = "bytes after the end of a tar"
SEPARATOR = "\0"  # of keys and of labels; no name in a tar holds it, except in damaged pax headers

Table = NDArray[np.void]


@dataclass(frozen=True)
class LabelMember:
    """Where the label of a sample is.

    Attributes:
        extension: of the member.
        key: of the value in a JSON object; empty for a member that is the label as text.

    >>> LabelMember("cls").read(b"3\\n"), LabelMember("json", "kind").read(b'{"kind": "owl"}')
    ('3', 'owl')
    >>> LabelMember("json", "one_hot").read(b'{"one_hot": [0, 0, 1]}')
    '2'
    """

    extension: str = "cls"
    key: str = ""

    @property
    def most_bytes(self) -> int:
        """Bytes of the longest member that is read."""
        return MOST_JSON_BYTES if self.key else MOST_LABEL_BYTES

    def read(self, content: bytes) -> str:
        """The label as text. Raises ValueError for anything else than a text, a whole number or a one-hot list."""
        if len(content) > self.most_bytes:
            raise ValueError("longer than a label")
        if not self.key:
            value: Any = content.decode().strip()
        else:
            value = json.loads(content)[self.key]
            if isinstance(value, list) and sorted(value) == [0] * (len(value) - 1) + [1]:
                value = value.index(1)
        if not isinstance(value, str | int | float) or value != value or not str(value).strip():
            raise ValueError("no text or number")
        return str(value).strip()


CLASS_INDEX = LabelMember()


@dataclass(frozen=True, eq=False)
class TarSamples:
    """N samples of F tars, tar by tar.

    Attributes:
        records: [F] RECORD, one a tar.
        keys: N keys.
        labels: N labels as text.
        table: [N] SAMPLE: place and bytes of the image.
        left_out: [F] of each tar, extension -> members that are neither the image nor the label of a sample, and 1 for
            `AFTER_THE_END` if anything follows the tar in its file.
    """

    records: Table
    keys: list[str]
    labels: list[str]
    table: Table
    left_out: Sequence[Mapping[str, int]]

    @property
    def counts(self) -> NDArray[np.int64]:
        """[F] samples of each tar."""
        counts: NDArray[np.int64] = self.records["num_rows"]
        return counts


def read_samples(tars: Sequence[Path], scope: str, label: LabelMember = CLASS_INDEX) -> TarSamples:
    """Return the samples of some tars; only tars that are new or have changed are walked.

    Args:
        tars: F paths.
        scope: names these tars among all tars of this user, whichever of them are there.
        label: where labels are.

    Raises:
        RequestError: a tar is damaged, or a sample lacks or repeats a member.
    """
    scope = scope if label == CLASS_INDEX else f"{scope}\n{label.extension}:{label.key}"
    name = f"{xxh3_64_hexdigest(_encode(scope))}{SUFFIX}"
    files = [folder / name for folder in user_folders()]
    paths = [os.path.abspath(tar) for tar in tars]
    records = np.zeros(len(tars), dtype=RECORD)
    records["key"] = [xxh3_64_intdigest(_encode(path)) for path in paths]
    records["recorded_ns"] = time.time_ns()  # before the first tar is looked at: what changes from here on is younger
    records["status"] = read_status(paths)
    known = _read_known(files, scope)
    places = find_records(known.records, records["key"], lambda found: records["status"][found])
    stops = np.cumsum(known.counts)
    parts, left_out = [], []
    for number, place in enumerate(places.tolist()):
        if place < 0:
            keys, labels, table, rest = _walk(tars[number], label)
        else:
            rows = slice(int(stops[place] - known.counts[place]), int(stops[place]))
            keys, labels, table = known.keys[rows], known.labels[rows], known.table[rows]
            rest = known.left_out[place]
            records["recorded_ns"][number] = known.records["recorded_ns"][place]
        records["num_rows"][number] = len(keys)
        parts.append((keys, labels, table))
        left_out.append(rest)
    samples = TarSamples(
        records,
        [key for keys, _, _ in parts for key in keys],
        [label for _, labels, _ in parts for label in labels],
        np.concatenate([np.empty(0, dtype=SAMPLE), *(table for _, _, table in parts)]),
        left_out,
    )
    if (places < 0).any():
        has_changed = ~same_status(records["status"], read_status(paths))
        records["recorded_ns"][has_changed] = 0  # while it was walked
        _write(files, samples, scope)
    return samples


def _read_known(files: Sequence[Path], scope: str) -> TarSamples:
    for file in files:
        try:
            arrays = read_arrays(file, FORMAT, FORMAT_VERSION, scope, DTYPES)
        except UnusableIndex:
            continue
        if arrays is not None:
            keys, labels = (_split(arrays[name]) for name in ("keys", "labels"))
            shared = {label: label for label in labels}  # one object for each label, not for each sample
            labels = [shared[label] for label in labels]
            try:
                left_out = json.loads(arrays["left_out"].tobytes())
            except (ValueError, RecursionError):
                continue
            samples = TarSamples(arrays["tars"], keys, labels, arrays["samples"], left_out)
            if _is_whole(samples):
                return samples
    return TarSamples(np.empty(0, dtype=RECORD), [], [], np.empty(0, dtype=SAMPLE), [])


def _is_whole(samples: TarSamples) -> bool:
    """Whether an index has everything of each of its tars."""
    counts = {len(samples.keys), len(samples.labels), len(samples.table), int(samples.counts.sum())}
    left_out = samples.left_out
    if len(counts) > 1 or not isinstance(left_out, list) or len(left_out) != len(samples.records):
        return False
    return all(isinstance(one, dict) and all(type(count) is int for count in one.values()) for one in left_out)


def _split(joined: NDArray[np.uint8]) -> list[str]:
    return joined.tobytes().decode(errors="surrogateescape").split(SEPARATOR)[:-1]


def _write(files: Sequence[Path], samples: TarSamples, scope: str) -> None:
    arrays: dict[str, NDArray[Any]] = {"tars": samples.records, "samples": samples.table}
    for name, texts in (("keys", samples.keys), ("labels", samples.labels)):
        joined = "".join(text + SEPARATOR for text in texts)
        if joined.count(SEPARATOR) > len(texts):
            return
        arrays[name] = np.frombuffer(_encode(joined), dtype=np.uint8)
    arrays["left_out"] = np.frombuffer(json.dumps(samples.left_out, allow_nan=False).encode(), dtype=np.uint8)
    write_arrays(files, FORMAT, FORMAT_VERSION, scope, arrays)


def _encode(text: str) -> bytes:
    return text.encode(errors="surrogateescape")


def _walk(shard: Path, label: LabelMember) -> tuple[list[str], list[str], Table, Counter[str]]:
    """Keys, labels and table of the samples of one tar, and what it has beside them.

    Raises:
        RequestError: damage, compression, or a sample that lacks or repeats a member.
    """
    left_out: Counter[str] = Counter()
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
                if extension == label.extension:
                    file.seek(member.offset)
                    classes[key] = file.read(min(member.size, label.most_bytes + 1))
            left_out[AFTER_THE_END] += has_more(file)
        except CompressedTar as error:
            raise RequestError("data.compressed_tar", shard=shard) from error
        except DamagedTar as error:
            whole = sum(key in classes and _image_of(members) is not None for key, members in by_key.items())
            values = {"shard": shard, "offset": error.offset, "problem": error.problem, "count": whole}
            raise RequestError("data.damaged_tar", **values) from error
    labels, samples = [], []
    for key, members in by_key.items():
        image, found = _image_of(members), ", ".join(sorted(members))
        if image is None:
            raise RequestError(
                "data.sample_without_image", key=key, shard=shard, extensions=", ".join(IMAGE_KEYS), found=found
            )
        if key not in classes:
            raise RequestError("data.sample_without_class", key=key, shard=shard, member=label.extension, found=found)
        try:
            labels.append(label.read(classes[key]))
        except (ValueError, KeyError, TypeError, RecursionError):
            place = f"{label.extension}:{label.key}" if label.key else label.extension
            content = repr(classes[key][:40])
            raise RequestError("data.bad_class", key=key, shard=shard, member=place, content=content) from None
        samples.append((image.offset, image.size))
        if len(members) > 2:
            left_out.update(
                f".{extension}" if extension else "no extension"
                for extension, member in members.items()
                if member is not image and extension != label.extension
            )
    return list(by_key), labels, np.array(samples, dtype=SAMPLE), +left_out


def _image_of(members: dict[str, Member]) -> Member | None:
    return next((members[key] for key in IMAGE_KEYS if key in members), None)
