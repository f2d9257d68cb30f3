"""Paths with blanks: `{split}` stands for the split's name, `{000..010}` and `{a,b}` for several files.

>>> expand_braces("train-{08..10}.tar")
['train-08.tar', 'train-09.tar', 'train-10.tar']
"""

from __future__ import annotations

import glob
import itertools
import re
from pathlib import Path

from ..errors import RequestError

SPLIT = "{split}"


def expand_braces(pattern: str) -> list[str]:
    """All paths of a pattern, in order; the last group changes fastest. A range keeps its leading zeros.

    Raises RequestError for a group that is neither a rising range nor a list.

    >>> expand_braces("{a,b}-{0..1}")
    ['a-0', 'a-1', 'b-0', 'b-1']
    """
    parts = re.split(r"(\{[^{}]*\})", pattern)
    return ["".join(choice) for choice in itertools.product(*(_choices(part, pattern) for part in parts))]


def fill_split(pattern: str, split: str) -> str:
    return pattern.replace(SPLIT, split)


def require_split(uri: str) -> None:
    """Refuse a pattern that means the same files for every split: test data would be training data."""
    if SPLIT not in uri:
        raise RequestError(
            where=uri,
            expected=f"{SPLIT} where the split's name stands, so that training and test data differ",
            got=f"no {SPLIT}",
            todo="Put it into the path.",
        )


def splits_of(pattern: str) -> list[str]:
    """The names that make a path that exists, in place of `{split}`; of other groups the first choice."""
    keep = "\0"  # no path holds it, so it survives the expansion of the other groups
    fixed = expand_braces(pattern.replace(SPLIT, keep))[0].split(keep)
    name = re.compile("([^/]+)" + r"\1".join(map(re.escape, fixed[1:])))
    matches = (name.fullmatch(path, len(fixed[0])) for path in glob.glob("*".join(map(glob.escape, fixed))))
    return sorted(match.group(1) for match in matches if match)


def no_such_split(where: str, expected: str, splits: list[str]) -> RequestError:
    """The error for a split that is not there; it lists those that are."""
    return RequestError(
        where=where,
        expected=expected,
        got=f"the splits {', '.join(splits)}" if splits else "no split at all",
        todo="Choose one of them with --split." if splits else "Check the path.",
    )


def fixed_folder(pattern: str) -> Path:
    """The deepest folder above every path of the pattern."""
    return Path(pattern.split("{", 1)[0] + "x").parent


def data_name(pattern: str) -> str:
    """What to call the data behind a pattern: the part with `{split}`, without it, or else the folder above.

    >>> data_name("/data/pcam_{split}_x.h5"), data_name("/data/imagenet/{split}/{000..639}.tar")
    ('pcam_x', 'imagenet')
    """
    part = next((part for part in Path(pattern).parts if SPLIT in part), Path(pattern).name)
    name = re.sub(r"\{[^{}]*\}", "", part).removesuffix(Path(part).suffix)
    name = re.sub(r"([-_.])[-_.]+", r"\1", name).strip("-_. ")
    return name or fixed_folder(pattern).resolve().name


def _choices(part: str, pattern: str) -> list[str]:
    if not part.startswith("{"):
        return [part]
    inside = part[1:-1]
    if numbers := re.fullmatch(r"(\d+)\.\.(\d+)", inside):
        first, last = numbers.groups()
        if int(first) <= int(last):
            return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    elif "," in inside:
        return inside.split(",")
    raise RequestError(
        where=f"the pattern {pattern}",
        expected=f"{SPLIT}, a range like {{000..010}} or a list like {{a,b}}",
        got=part,
        todo="Correct the braces.",
    )
