"""Which files make a split: folders of tar shards, and paths with `{split}` for the split's name.

In a pattern, `{000..010}` and `{a,b}` stand for several files:

>>> expand_braces("train-{08..10}.tar")
['train-08.tar', 'train-09.tar', 'train-10.tar']
"""

from __future__ import annotations

import glob
import itertools
import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..errors import RequestError, advice
from .image_files import require_inside

SPLIT = "{split}"
MOST_SHARDS = 1_000_000  # of a pattern: more is a slip of the pen, and would fill the memory


class ShardFolder:
    """DIR/<split>/*.tar: 0.tar, 1.tar ... as many as `nshards.txt` says; without that file, all there are."""

    def __init__(self, address: str) -> None:
        self.root = require_folder("wds", address)
        self.name = self.root.resolve().name

    def splits(self) -> list[str]:
        return sorted({path.parent.name for path in self.root.glob("*/*.tar")})

    def place(self, split: str) -> str:
        """The absolute place of a split's shards, whichever of them are there."""
        return os.path.abspath(self.root / split)

    def shards(self, split: str) -> list[Path]:
        """The shards of a split, in order. Raises RequestError for no such split or a missing shard."""
        folder = self.root / split
        count_file = folder / "nshards.txt"
        if count_file.is_file():
            count = read_text(count_file).strip()
            if not re.fullmatch(r"\d{1,7}", count, re.ASCII):
                raise RequestError("data.bad_shard_count", file=count_file, content=repr(count))
            return _require_shards(self.root, [folder / f"{number}.tar" for number in range(int(count))])
        shards = sorted(folder.glob("*.tar"), key=lambda path: (len(path.name), path.name))  # 10.tar after 9.tar
        if not shards:
            if compressed := sorted([*folder.glob("*.tar.*"), *folder.glob("*.tgz")]):
                raise RequestError("data.compressed_tar", shard=compressed[0])
            raise no_such_split(f"wds:{self.root}", split, f"{folder}/*.tar", self.splits())
        return _require_shards(self.root, shards)

    def other_files(self, split: str) -> Counter[str]:
        """Extension -> number of files beside the shards of a split."""
        files = {path for path in (self.root / split).iterdir() if path.is_file() and not path.name.startswith(".")}
        others = files - {*self.shards(split), self.root / split / "nshards.txt"}
        return Counter("".join(path.suffixes[-2:]).lower() or "no extension" for path in others)


class ShardPattern:
    """A path with `{split}` and braces, such as `DIR/{split}/{000..010}.tar`."""

    def __init__(self, address: str) -> None:
        require_split(f"wds:{address}")
        self.pattern = os.path.expanduser(address)
        self.root = fixed_folder(self.pattern)
        self.name = data_name(self.pattern)

    def splits(self) -> list[str]:
        return splits_of(self.pattern)

    def place(self, split: str) -> str:
        """The absolute place of a split's shards, whichever of them are there."""
        return os.path.abspath(self.pattern.replace(SPLIT, split))

    def shards(self, split: str) -> list[Path]:
        """The shards of a split, in order. Raises RequestError for no such split or a missing shard."""
        shards = [Path(path) for path in expand_braces(self.pattern.replace(SPLIT, split))]
        if not any(shard.exists() for shard in shards):
            raise no_such_split(f"wds:{self.pattern}", split, str(shards[0]), self.splits())
        return _require_shards(self.root, shards)

    def other_files(self, split: str) -> Counter[str]:
        """None: a pattern names its shards."""
        return Counter()


def _require_shards(root: Path, shards: list[Path]) -> list[Path]:
    """The shards, all of which are there and lie in the folder of the data."""
    missing = [shard.name for shard in shards if not shard.exists()]
    if missing:
        first = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        folder = shards[0].parent
        raise RequestError("data.missing_shards", folder=folder, count=len(shards), missing=len(missing), names=first)
    require_inside(f"wds:{root}", root, shards)
    return shards


def read_text(file: Path) -> str:
    """A text file in UTF-8, with or without a byte order mark.

    Raises:
        RequestError: another encoding, or a file that cannot be read.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise RequestError(
            "data.not_utf8_text", file=file, line=line, byte=f"{error.object[error.start]:#04x}"
        ) from None
    except OSError as error:
        raise RequestError("data.unreadable_text", file=file, reason=error.strerror or error) from error


def require_folder(scheme: str, address: str) -> Path:
    """The folder of an address.

    Raises:
        RequestError: it is none.
    """
    folder = Path(address).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise RequestError("data.not_a_folder", data=f"{scheme}:{address}")
    raise RequestError("data.no_such_folder", data=f"{scheme}:{address}")


def require_split(uri: str) -> None:
    """Refuse a pattern that means the same files for every split: test data would be training data."""
    if SPLIT not in uri:
        raise RequestError("data.pattern_without_split", uri=uri)


def parse_options(scheme: str, address: str, known: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Split an address `PATH?option=value&...` into the path and its options; a path that exists may have a question mark.

    Values are taken as they are written: nothing in them is decoded.

    Raises:
        RequestError: an option that is not known, with the nearest one, or one that is given twice.

    >>> parse_options("csv", "photos.csv?label=C++&seed=3", ["label", "seed"])
    ('photos.csv', {'label': 'C++', 'seed': '3'})
    """
    if os.path.exists(os.path.expanduser(address)):
        return os.path.expanduser(address), {}
    path, _, query = address.partition("?")
    given = [(name, value) for name, _, value in (one.partition("=") for one in query.split("&") if one)]
    options = dict(given)
    if len(options) < len(given):
        repeated = Counter(name for name, _ in given).most_common(1)[0][0]
        raise RequestError("data.repeated_option", uri=f"{scheme}:{address}", option=repeated)
    if unknown := sorted(set(options) - set(known)):
        values = {"option": unknown[0], "known": ", ".join(known), "advice": advice(unknown[0], known)}
        raise RequestError("data.unknown_option", uri=f"{scheme}:{address}", **values)
    return os.path.expanduser(path), options


def no_such_split(data: str, split: str, place: str, splits: list[str]) -> RequestError:
    """The error for a split that is not at its `place`; it lists those that are there."""
    if splits:
        return RequestError("data.no_such_split", data=data, split=split, place=place, splits=", ".join(splits))
    return RequestError("data.no_splits", data=data, split=split, place=place)


def expand_braces(pattern: str) -> list[str]:
    """All paths of a pattern, in order; the last group changes fastest. A range keeps its leading zeros.

    Raises:
        RequestError: a group is neither a rising range nor a list.

    >>> expand_braces("{a,b}-{0..1}")
    ['a-0', 'a-1', 'b-0', 'b-1']
    """
    choices = [_choices(part, pattern) for part in re.split(r"(\{[^{}]*\})", pattern)]
    if math.prod(map(len, choices)) > MOST_SHARDS:
        raise RequestError("data.bad_braces", pattern=pattern, part=f"more than {MOST_SHARDS:,} paths")
    return ["".join(choice) for choice in itertools.product(*choices)]


def _choices(part: str, pattern: str) -> list[str]:
    if not part.startswith("{"):
        return [part]
    inside = part[1:-1]
    if numbers := re.fullmatch(r"([0-9]{1,9})\.\.([0-9]{1,9})", inside):
        first, last = numbers.groups()
        if 0 <= int(last) - int(first) < MOST_SHARDS:
            return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    elif "," in inside:
        return inside.split(",")
    raise RequestError("data.bad_braces", pattern=pattern, part=part)


def splits_of(pattern: str) -> list[str]:
    """The names that make a path that exists, in place of `{split}`; of other groups the first choice."""
    keep = "\0"  # no path holds it, so it survives the expansion of the other groups
    fixed = expand_braces(pattern.replace(SPLIT, keep))[0].split(keep)
    name = re.compile("([^/]+)" + r"\1".join(map(re.escape, fixed[1:])))
    matches = (name.fullmatch(path, len(fixed[0])) for path in glob.glob("*".join(map(glob.escape, fixed))))
    return sorted(match.group(1) for match in matches if match)


def fixed_folder(pattern: str) -> Path:
    """The deepest folder above every path of the pattern."""
    return Path(pattern.split("{", 1)[0] + "x").parent


def data_name(pattern: str) -> str:
    """A name for the data behind a pattern: the part with `{split}`, without it, or else the folder above.

    >>> data_name("/data/pcam_{split}_x.h5"), data_name("/data/imagenet/{split}/{000..639}.tar")
    ('pcam_x', 'imagenet')
    """
    part = next((part for part in Path(pattern).parts if SPLIT in part), Path(pattern).name)
    name = re.sub(r"\{[^{}]*\}", "", part).removesuffix(Path(part).suffix)
    name = re.sub(r"([-_.])[-_.]+", r"\1", name).strip("-_. ")
    return name or fixed_folder(pattern).resolve().name
