"""Sizes, durations, counts and lists of numbers: read from a command line, and written for people."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from .errors import RequestError

_SECONDS = {"d": 86400.0, "h": 3600.0, "min": 60.0}
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_PERCENTAGE = re.compile(r"(\d{1,3}(?:\.\d{1,9})?) ?%", re.ASCII)
_DIGITS = re.compile(r"[0-9]{1,18}")
_SIZE = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*(k|m|g|t|ki|mi|gi|ti)?b?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Read a size with a unit, in bytes.

    Raises:
        RequestError: it is not a size, or zero.

    >>> parse_size("4GB"), parse_size("1.5 GiB"), parse_size("512m")
    (4000000000, 1610612736, 512000000)
    """
    match = _SIZE.fullmatch(text.strip())
    units = {unit.lower(): factor for unit, factor in _UNITS.items()}
    size_bytes = float(match[1]) * units[(match[2] or "").lower()] if match else 0.0
    if not 1 <= size_bytes < math.inf:
        raise RequestError("layerbank.not_a_size", text=text)
    return int(size_bytes)


def size(num_bytes: float) -> str:
    """Write a size for people.

    >>> size(1_234_567)
    '1.2 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"


def duration(seconds: float) -> str:
    """Write a time for people.

    >>> duration(0.4), duration(50), duration(2000), duration(50_000), duration(5e7)
    ('0.4 s', '50 s', '33 min', '13.9 h', '13,889 h')
    """
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    hours = seconds / 3600
    return f"{seconds / 60:.0f} min" if hours < 1.5 else f"{hours:,.1f} h" if hours < 100 else f"{hours:,.0f} h"


def parse_age(text: str, where: str) -> float:
    """Read a length of time such as 7d, 12h or 30min, in seconds.

    >>> parse_age("1.5h", "--unfinished"), parse_age("0d", "--unfinished")
    (5400.0, 0.0)

    Raises:
        RequestError: it is not a length of time.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(d|h|min)", text.strip())
    if match is None:
        raise RequestError("layerbank.not_an_age", option=where, text=text)
    return float(match[1]) * _SECONDS[match[2]]


def age_text(seconds: float) -> str:
    """
    >>> age_text(30), age_text(7300), age_text(700_000)
    ('0 min', '2 h', '8 d')
    """
    unit = next((unit for unit, length in _SECONDS.items() if seconds >= 2 * length), "min")
    return f"{seconds // _SECONDS[unit]:.0f} {unit}"


def parse_numbers(text: str, *, where: str, at_least: int) -> tuple[int, ...]:
    """Read whole numbers with commas between them, each once, in the order given.

    Args:
        text: such as "4,8,24".
        where: the option, for the message.
        at_least: the smallest number allowed.

    Raises:
        RequestError: something else, a number that is too small, or nothing at all.

    >>> parse_numbers("8, 4,8", where="--num-heads", at_least=1)
    (8, 4)
    """
    numbers: list[int] = []
    for part in text.split(","):
        number = whole_number(part.strip())
        if number is None or number < at_least:
            raise RequestError(
                "layerbank.not_whole_numbers", option=where, least=at_least, next=at_least + 1, text=text
            )
        numbers.append(number)
    return tuple(dict.fromkeys(numbers))


def parse_percentages(text: str) -> tuple[float, ...]:
    """Read percentages above 0 up to 100 with commas between them, each once, as fractions.

    Raises:
        RequestError: something else.

    >>> parse_percentages("1%, 10 %,1%")
    (0.01, 0.1)
    """
    fractions = []
    for part in text.split(","):
        match = _PERCENTAGE.fullmatch(part.strip())
        if match is None or not 0 < float(match[1]) <= 100:
            raise RequestError("data.bad_fraction_list", text=text)
        fractions.append(float(match[1]) / 100)
    return tuple(dict.fromkeys(fractions))


def whole_number(text: str) -> int | None:
    """Read a whole number from 0 below 10^18, which an int64 holds; None for any other text.

    >>> whole_number("007"), whole_number("-1"), whole_number("9" * 40), whole_number("²")
    (7, None, None, None)
    """
    return int(text) if _DIGITS.fullmatch(text) else None


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun; the plural of most is `noun` + s.

    >>> counted(1, "model"), counted(1200, "image"), counted(2, "class", "classes")
    ('1 model', '1,200 images', '2 classes')
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def few(names: Sequence[str], most: int = 5) -> str:
    """The first of some names.

    >>> few(["cat", "dog"]), few(["1", "2", "3", "4"], most=2), few([])
    ('cat, dog', '1, 2, ... (4 in all)', 'none')
    """
    more = f", ... ({len(names):,} in all)" if len(names) > most else ""
    return ", ".join(names[:most]) + more or "none"
