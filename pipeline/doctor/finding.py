"""What one check found."""

from __future__ import annotations

from typing import NamedTuple

OK, WARNING, PROBLEM = "ok", "warning", "problem"


class Finding(NamedTuple):
    """One line of the doctor's table.

    Attributes:
        name: what was looked at.
        state: ok, warning (it works, not as well as it could) or problem (something cannot work).
        found: what is there.
        todo: what to do, a full sentence; empty where all is well.
    """

    name: str
    state: str
    found: str
    todo: str = ""


def first_line(error: BaseException) -> str:
    """What an error says first."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
