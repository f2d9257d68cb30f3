"""Lengths of time on a command line, and as people say them."""

from __future__ import annotations

import re

from .errors import RequestError

_SECONDS = {"d": 86400.0, "h": 3600.0, "min": 60.0}


def parse_age(text: str, where: str) -> float:
    """Seconds of a length of time such as 7d, 12h or 30min.

    >>> parse_age("1.5h", "--unfinished"), parse_age("0d", "--unfinished")
    (5400.0, 0.0)

    Raises:
        RequestError: no such length.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(d|h|min)", text.strip())
    if match is None:
        raise RequestError(
            where=where,
            expected="days, hours or minutes, such as 7d, 12h or 30min",
            got=repr(text),
            todo="Give a number and one of the three units.",
        )
    return float(match[1]) * _SECONDS[match[2]]


def age_text(seconds: float) -> str:
    """
    >>> age_text(30), age_text(7300), age_text(700_000)
    ('0 min', '2 h', '8 d')
    """
    unit = next((unit for unit, length in _SECONDS.items() if seconds >= 2 * length), "min")
    return f"{seconds // _SECONDS[unit]:.0f} {unit}"
