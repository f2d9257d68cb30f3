"""The exceptions of layerbank, and the tables that hold their messages.

    LayerbankError
    |-- RequestError   (ValueError)    the request was wrong: exit code 2
    |-- WorkError      (RuntimeError)  the work failed: exit code 1
    |-- CacheError                     see `layerbank.cache.errors`
    `-- ProbeError                     see `layerbank.probes.errors`

A message has four parts: where, expected, got, what to do. Each package keeps its messages in a file `messages.toml` of its own,
one table a message, and code names a message by its key: `RequestError("data.no_address", uri=uri)` takes the table
`no_address` of `layerbank.data` and fills in `{uri}`. The tables are read when the first error occurs.
"""

from __future__ import annotations

import difflib
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

LONGEST_VALUE = 1000  # characters of a value in a message: the longest paths and lists that somebody reads


@dataclass(frozen=True, kw_only=True)
class Message:
    """The four parts of a message, with the names of values in braces, as in `str.format`.

    Attributes:
        where: the option, file, sample or model concerned.
        expected: what would have been right.
        got: what was found.
        todo: what the user can do next, a full sentence.
    """

    where: str
    expected: str
    got: str
    todo: str


@cache
def messages_of(package: str) -> dict[str, Message]:
    """Return the messages of a package by name: `data` for `layerbank.data`, `layerbank` for the root package."""
    import tomllib  # slow imports, for the rare case of an error
    from importlib.resources import files

    module = "layerbank" if package == "layerbank" else f"layerbank.{package}"
    text = files(module).joinpath("messages.toml").read_text(encoding="utf-8")
    return {name: Message(**parts) for name, parts in tomllib.loads(text).items()}


def find_message(key: str) -> Message:
    """Return the message of a key such as `data.no_address`."""
    package, _, name = key.partition(".")
    return messages_of(package)[name]


def nearest_name(name: str, names: Iterable[str]) -> str:
    """Return the most similar one of some names, for messages.

    >>> nearest_name("foldr", ["folder", "wds", "hdf5"])
    'folder'
    """
    by_lower_case = {one.casefold(): one for one in names}
    return by_lower_case[difflib.get_close_matches(name.casefold(), list(by_lower_case), n=1, cutoff=0)[0]]


def advice(name: str, names: Iterable[str], *, most: int = 1, otherwise: str = "Choose one of them.") -> str:
    """What to do about an unknown name: take one that looks like it, of which `most` are named, if one does.

    >>> advice("foldr", ["folder", "wds"]), advice("csv", ["folder", "wds"])
    ("Did you mean 'folder'?", 'Choose one of them.')
    >>> advice("bock", ["block", "rock", "final"], most=2)
    "Did you mean 'block' or 'rock'?"
    """
    by_lower_case = {one.casefold(): one for one in names}
    near = difflib.get_close_matches(name.casefold(), list(by_lower_case), n=most)
    return did_you_mean([by_lower_case[one] for one in near]) or otherwise


def did_you_mean(names: Sequence[str]) -> str:
    """A question with these names; "" without any.

    >>> did_you_mean(["a", "b", "c"])
    "Did you mean 'a', 'b' or 'c'?"
    """
    *others, last = [repr(one) for one in names] or [""]
    return f"Did you mean {', '.join(others)}{' or ' * bool(others)}{last}?" if names else ""


def shortened(text: str, most: int = LONGEST_VALUE) -> str:
    """A text of at most about so many characters: of a longer one the beginning, the end and how much there is.

    >>> shortened("abc" * 40, most=20)
    'abcabcabca... (120 characters) ...cabcabcabc'
    """
    if len(text) <= most:
        return text
    return f"{text[: most // 2]}... ({len(text):,} characters) ...{text[-(most // 2) :]}"


def shown(value: object) -> str:
    """A value of any type as a message shows it, in a bounded length.

    >>> shown(True), shown(10 ** 5000)
    ('True', 'a number of more than 4,300 digits')
    """
    try:
        return shortened(repr(value), 80)
    except ValueError:  # Python writes no longer ones, wherever they stand
        return "a number of more than 4,300 digits"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; the name of its class if there is none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


class _Bounded(string.Formatter):
    """`str.format` that shortens each value."""

    def format_field(self, value: Any, format_spec: str) -> str:
        return shortened(super().format_field(value, format_spec))


_BOUNDED = _Bounded()


class LayerbankError(Exception):
    """Base of all errors of layerbank: a message in four parts.

    Args:
        message: the key of a message in the tables, or a message (for packages that extend layerbank).
        values: the values that its parts name in braces.

    Attributes:
        key: the key; empty if the message is in no table.
        values: the values as text.
        where, expected, got, todo: the four parts with the values filled in.

    >>> import layerbank as lb
    >>> try:
    ...     lb.open_images("photos")
    ... except lb.LayerbankError as error:
    ...     print(error.key, error.values["nearest"])
    data.no_scheme folder:photos
    """

    key: str
    where: str
    expected: str
    got: str
    todo: str

    def __init__(self, message: str | Message, /, **values: object) -> None:
        self.key = message if isinstance(message, str) else ""
        parts = find_message(message) if isinstance(message, str) else message
        self.values = {name: str(value) for name, value in values.items()}
        self.where, self.expected, self.got, self.todo = (
            _BOUNDED.format(part, **values) for part in (parts.where, parts.expected, parts.got, parts.todo)
        )
        super().__init__(str(self))

    def __str__(self) -> str:
        return f"{self.where}: expected {self.expected}, got {self.got}. {self.todo}"

    def __reduce__(self) -> tuple[object, ...]:
        """Errors cross from worker processes: all of the state is text."""
        return _restore, (type(self),), self.__dict__


def _restore(kind: type[LayerbankError]) -> LayerbankError:
    """Make an error without its state; only the built-in class that fixes its memory layout can."""
    solid: type = kind
    while solid.__module__ != "builtins":
        solid = solid.__base__ or object
    error: LayerbankError = solid.__new__(kind)  # type: ignore[call-overload]
    return error


class RequestError(LayerbankError, ValueError):
    """The request was wrong; nothing was done.

    >>> import layerbank as lb
    >>> try:
    ...     lb.ProbeJob(data="folder:photos", model="timm/vit_tiny_patch16_224", probes="alf")
    ... except lb.RequestError as error:
    ...     print(error.where)
    probe job, probes
    """


class WorkError(LayerbankError, RuntimeError):
    """The work failed; what was committed before is kept.

    >>> import layerbank as lb
    >>> try:
    ...     lb.images_from(["nowhere.jpg"], ["cat"]).load(0)
    ... except lb.WorkError as error:
    ...     print(error.key)
    data.bad_image
    """
