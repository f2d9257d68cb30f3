"""The result of one check."""

from __future__ import annotations

from typing import NamedTuple

OK, WARNING, PROBLEM = "ok", "warning", "problem"


class Finding(NamedTuple):
    """One line of the doctor's table.

    Attributes:
        name: what was checked.
        state: ok, warning (it works, not as well as it could) or problem (something cannot work).
        found: what was found.
        todo: what to do, a full sentence; empty if nothing.
    """

    name: str
    state: str
    found: str
    todo: str = ""
